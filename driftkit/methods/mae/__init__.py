"""Masked autoencoder: an encoder for drifting that one trains oneself. Open `objective.py` first."""
