"""A tiny autoencoder with random weights, saved by diffusers as published ones are."""

import json
from pathlib import Path

import torch

LATENT_CHANNELS, FACTOR = 4, 2


def tiny_autoencoder(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """Write one that makes sides half as long, and return its folder; `changes` are of its config."""
    from diffusers import AutoencoderKL

    known = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 4,
        "scaling_factor": 2.0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoencoderKL(**{**known, **changes}).save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    """Edit config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
