"""Features to compare."""

import torch

from driftkit.metrics.base import FeatureStats


def draw(count, seed, shift=0.0, dim=10):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def stats(count, seed, shift=0.0, **fields):
    """Statistics of `draw`n features."""
    return FeatureStats.of_rows(draw(count, seed, shift), **fields)
