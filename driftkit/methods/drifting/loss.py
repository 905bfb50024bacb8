"""The loss that regresses features onto their drifted selves."""

import torch

from driftkit.methods.drifting.field import AggregatedDrift


def drift_loss(generated: torch.Tensor, drift: AggregatedDrift) -> torch.Tensor:
    """Mean squared distance of normalised features to their drifted selves, one value per field.

    loss_g = mean over [N, C] of |x / S - sg(x / S + v)|^2, whose value is mean v^2 and whose gradient at x is
    -2 v / (S N C). Since v is normalised, the value hardly changes while training goes well: look at `drift_scale`.

    Args:
        generated: x, [G, N, C], this rank's rows; the gradient flows to it.
        drift: what `aggregated_drift` gave for x.

    Returns:
        [G]. With several ranks each value is the mean over this rank's rows, so gradients averaged over ranks are those
        of the whole batch.

    Source: arXiv 2602.04770, Algorithm 1 and Eq. (26). Differs: gradient written out, no target kept.
    """
    with torch.autocast(generated.device.type, enabled=False):
        loss: torch.Tensor = _Regression.apply(generated, drift.v, drift.feature_scale)  # type: ignore[no-untyped-call]
    return loss


class _Regression(torch.autograd.Function):
    """mean |x / S - sg(x / S + v)|^2 per field: the value and gradient follow from v and S alone."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, v: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(v, scale)
        ctx.dtype = x.dtype
        return v.square().mean(dim=(1, 2))

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[no-untyped-def]
        v, scale = ctx.saved_tensors
        # Where all points coincide S is 0 and so is v: there is nothing to follow.
        factor = torch.where(scale > 0, -2 * grad / (scale * (v.shape[1] * v.shape[2])), 0.0)
        return (v * factor[:, None, None]).to(ctx.dtype), None, None
