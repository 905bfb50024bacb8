"""One kind of pack, and the sources it is imported from.

Open `sources.py` first.
"""
