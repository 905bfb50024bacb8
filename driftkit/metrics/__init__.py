"""Numbers from features of images; pure functions. Features are made in `scoring`.

Open `registry.py` first.
"""
