"""Encoders by name and keyword, as tests ask for them."""

from driftkit.encoders.encoder_config import EncoderConfig
from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.encoders.registry import load_encoder


def load(name: object, *, image_size: int = 32, device: str = "cpu", **settings: object) -> FrozenEncoder:
    """The encoder of that name; `settings` are fields of EncoderConfig."""
    if "encoder_weights" in settings:
        settings["encoder_weights"] = str(settings["encoder_weights"])
    return load_encoder(EncoderConfig(encoder=str(name), **settings), image_size=image_size, device=device)
