"""The field with its halves scaled apart: with factors of 1 the field itself, else what loops give."""

import pytest
import torch

from driftkit.methods.drifting import aggregated_drift, drift_field
from driftkit.tutorial.toy_field import fields_by_temperature, scaled_drift, scaled_field

TAUS = (0.05, 0.2)


def points(n=24, p=30):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, n, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(1, p, 2, generator=generator, dtype=torch.float64)
    return x, y + torch.tensor([1.0, 0.0])


def literal_halves(x, y_pos, tau):
    """V+ and V-, Eq. (10), (11) with the affinities of Algorithm 2, in loops."""
    x, y_pos = x[0], y_pos[0]
    y = torch.cat([x, y_pos])
    n, k = len(x), len(y)
    kernel = torch.zeros(n, k, dtype=torch.float64)
    for i in range(n):
        for j in range(k):
            kernel[i, j] = 0.0 if i == j else torch.exp(-(x[i] - y[j]).norm() / tau)
    A = (kernel / kernel.sum(dim=1, keepdim=True) * kernel / kernel.sum(dim=0, keepdim=True)).sqrt()
    pull, push = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(n):
        for j in range(k):
            if j < n:
                push[i] += A[i, j] * A[i, n:].sum() * (y[j] - x[i])
            else:
                pull[i] += A[i, j] * A[i, :n].sum() * (y[j] - x[i])
    return pull, push


def test_factors_of_1_give_exactly_the_field():
    x, y = points()
    assert torch.equal(scaled_field(x, y, tau=0.3), drift_field(x, y, x, tau=0.3))
    mine, own = scaled_drift(x, y, taus=TAUS), aggregated_drift(x, y, taus=TAUS)
    assert torch.equal(mine.v, own.v)
    assert torch.equal(mine.drift_scale, own.drift_scale)


@pytest.mark.parametrize(("attraction", "repulsion"), [(1.5, 1.0), (1.0, 1.5), (1.0, 0.0), (0.0, 1.0), (2.0, 2.0)])
def test_halves_are_scaled_apart(attraction, repulsion):
    x, y = points()
    pull, push = literal_halves(x, y, tau=0.3)
    v = scaled_field(x, y, tau=0.3, attraction=attraction, repulsion=repulsion)
    torch.testing.assert_close(v[0], attraction * pull - repulsion * push, rtol=1e-9, atol=1e-12)


def test_factors_close_to_1_give_nearly_the_aggregated_drift():
    x, y = points()
    near = scaled_drift(x, y, taus=TAUS, attraction=1 + 1e-9)
    own = aggregated_drift(x, y, taus=TAUS)
    torch.testing.assert_close(near.v, own.v, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(near.drift_scale, own.drift_scale, rtol=1e-6, atol=0)


def test_fields_by_temperature_have_the_norms_that_the_drift_reports():
    x, y = points()
    drift = aggregated_drift(x, y, taus=TAUS)
    V = fields_by_temperature(x, y, drift.feature_scale, taus=TAUS, attraction=1, repulsion=1)
    torch.testing.assert_close(V.square().mean(dim=(2, 3)).sqrt(), drift.drift_scale, rtol=1e-6, atol=0)
