"""The loss: its value and gradient against autograd on the written-out formula, and its scale invariance."""

import torch

from driftkit.methods.drifting import aggregated_drift, drift_loss
from tests.methods.drifting.points import draw


def loss_of(x, pos, **options):
    return drift_loss(x, aggregated_drift(x, pos, **options))


def test_gradient_equals_that_of_the_written_out_regression():
    x, pos = draw(3, 6, 5).requires_grad_(), draw(3, 7, 5, seed=1).requires_grad_()
    weight = torch.tensor([1.0, 2.0, 0.5])
    out = aggregated_drift(x, pos, scale_over="location")
    loss = drift_loss(x, out)
    (loss * weight).sum().backward()
    reference = x.detach().clone().requires_grad_()
    scaled = reference / out.feature_scale[:, None, None]
    written = ((scaled - (scaled + out.v).detach()) ** 2).mean(dim=(1, 2))
    (written * weight).sum().backward()
    assert torch.allclose(loss, written, rtol=1e-5)
    assert torch.allclose(x.grad, reference.grad, rtol=1e-4, atol=1e-7)
    assert pos.grad is None


def test_loss_does_not_change_when_features_are_rescaled():
    x, pos = draw(2, 6, 5), draw(2, 7, 5, seed=1)
    assert torch.allclose(loss_of(x, pos), loss_of(100 * x, 100 * pos), rtol=1e-4)


def test_loss_is_finite_at_a_small_temperature_under_bfloat16_autocast():
    x, pos = draw(2, 32, 64).bfloat16().requires_grad_(), draw(2, 32, 64, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(x, pos, taus=(0.02,))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert torch.isfinite(x.grad).all()
    assert x.grad.dtype == torch.bfloat16


def test_drift_scale_falls_as_the_generated_set_approaches_the_positives():
    pos = draw(1, 256, 4, seed=1)
    far = aggregated_drift(draw(1, 256, 4) + 2, pos).drift_scale.mean()
    near = aggregated_drift(draw(1, 256, 4), pos).drift_scale.mean()
    assert near < far
