"""The energy distance against loops, and where it is zero."""

import pytest
import torch

from driftkit.metrics.energy_distance import energy_distance


def literal(x, y):
    def mean(a, b):
        return sum(float((p - q).norm()) for p in a for q in b) / (len(a) * len(b))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def test_it_is_the_literal_double_sum():
    x, y = torch.randn(12, 3), torch.randn(9, 3) + 0.5
    assert energy_distance(x, y) == pytest.approx(literal(x.double(), y.double()), rel=1e-9)
    assert energy_distance(x, y) == pytest.approx(energy_distance(y, x), rel=1e-12)


def test_it_is_zero_for_the_same_points_in_any_order_and_grows_with_a_shift():
    x = torch.randn(200, 2)
    assert energy_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    distances = [energy_distance(x, x + shift) for shift in (0.1, 0.5, 2.0)]
    assert distances == sorted(distances)
    assert energy_distance(torch.zeros(3, 2), torch.tensor([[3.0, 4.0]])) == pytest.approx(10.0)
