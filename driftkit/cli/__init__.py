"""The commands: each module parses, calls one stage and prints. Nothing here computes.

Open `options.py` first: options are made from settings.
"""
