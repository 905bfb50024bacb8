"""Distances of close pairs are as exact as those of distant ones."""

import pytest
import torch

from driftkit.methods.drifting.distance import pairwise_distance
from tests.methods.drifting.points import draw


@pytest.mark.parametrize("channels", [64, 256])  # product in float64; differences of the close pairs
def test_close_pairs_are_as_exact_as_distant_ones(channels, wait):
    x = draw(1, 20, channels)
    near = x[:, :1] + 1e-4 * draw(1, 2, channels, seed=1)
    y = torch.cat([x, near, draw(1, 300, channels, seed=2)], dim=1)
    got = pairwise_distance(x, y, self_at=0, wait=wait)
    want = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert ((got.double() - want).abs() <= 1e-6 * want).all()


def test_many_close_pairs_are_exact(wait):
    x = draw(1, 20, 256)
    y = torch.cat([x, x + 1e-4 * draw(1, 20, 256, seed=1), draw(1, 3, 256, seed=2)], dim=1)
    got = pairwise_distance(x, y, self_at=0, wait=wait)
    want = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert ((got.double() - want).abs() <= 1e-6 * want).all()
