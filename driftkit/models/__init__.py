"""Networks, by kind. They know no method.

Open `unet.py` first.
"""
