"""The energy distance between two sets of points: for points of few dimensions, where it needs no features."""

import torch


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over all pairs, in the units of the points, >= 0; 0 for equal sets.

    Args:
        x, y: points, [N, D] and [M, D]; distances are float64.

    Source: Székely and Rizzo 2013, with means over all pairs (the V-statistic). Differs: nothing.
    """
    x, y = x.double(), y.double()
    across, within_x, within_y = (torch.cdist(a, b).mean() for a, b in ((x, y), (x, x), (y, y)))
    return float((2 * across - within_x - within_y).clamp(min=0))
