"""A masked autoencoder, whose encoder is used for drifting.

Open `objective.py` first.
"""
