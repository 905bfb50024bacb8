"""The Gaussian-kernel discrepancy is the literal double sum."""

import math

import pytest
import torch

from driftkit.metrics.base import MetricInputs
from driftkit.metrics.mmd import MMD, gaussian_mmd
from tests.metrics.conftest import draw, stats


def literal_mmd(x, y, sigma):
    """Kernels pair by pair in Python's float64."""
    x, y = (
        [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows.double().tolist()] for rows in (x, y)
    )

    def mean(a, b):
        values = [
            math.exp(-sum((u - v) ** 2 for u, v in zip(p, q, strict=True)) / (2 * sigma**2)) for p in a for q in b
        ]
        return math.fsum(values) / len(values)

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize(("shift", "sigma"), [(0.0, 10.0), (0.5, 10.0), (3.0, 1.0)])
def test_it_is_the_literal_double_sum(shift, sigma):
    x, y = draw(23, 0, shift, dim=7), draw(31, 1, dim=7)
    assert gaussian_mmd(x, y, sigma=sigma) == pytest.approx(literal_mmd(x, y, sigma), rel=1e-5)


def test_equal_sets_are_at_zero_and_lengths_do_not_count():
    x, y = draw(40, 0), draw(50, 1, 0.5)
    assert gaussian_mmd(x, x) == pytest.approx(0, abs=1e-4)
    assert gaussian_mmd(3 * x, y) == pytest.approx(gaussian_mmd(x, y), rel=1e-4)
    assert gaussian_mmd(x[torch.randperm(40)], y) == pytest.approx(gaussian_mmd(x, y), rel=1e-6)


def test_the_row_gives_one_number():
    near, far = (MMD.compute(MetricInputs(stats(60, 0, shift), stats(60, 1))).values["mmd"] for shift in (0.0, 2.0))
    assert far > 5 * near > 0
