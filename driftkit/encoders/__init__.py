"""Frozen encoders, what vectors are made of their maps, and caches of those. Networks trained here are in `models`.

Open `registry.py` first.
"""
