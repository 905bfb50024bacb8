"""The loss that regresses features onto their drifted selves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from driftkit.methods.drifting.affinity import Kernel
from driftkit.methods.drifting.field import AggregatedDrift, ScaleOver, aggregated_drift
from driftkit.methods.drifting.sharing import SharedFeatures
from driftkit.runtime.ranks import Ranks


@dataclass(frozen=True)
class DriftLoss:
    """Loss of G fields, and what the field itself said."""

    per_field: torch.Tensor
    """[G], with gradient to the generated features."""
    drift: AggregatedDrift
    """The field and its diagnostics, no gradient."""

    @property
    def drift_norm(self) -> torch.Tensor:
        """[G], lambda averaged over the temperatures: the root mean square of V before it is normalised."""
        return self.drift.drift_scale.mean(dim=0)


def drift_loss(
    generated: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    *,
    taus: Sequence[float] = (0.02, 0.05, 0.2),
    negative_weight: torch.Tensor | None = None,
    scale_over: ScaleOver = "map",
    affinity_floor: float = 0.0,
    kernel: Kernel = "laplace",
    normalisation: str = "both",
    chunk_bytes: int | None = None,
    ranks: Ranks | None = None,
    shared: SharedFeatures | None = None,
    wait: bool | None = None,
) -> DriftLoss:
    """Mean squared distance of normalised features to their drifted selves, one value per field.

    loss_g = mean over [N, C] of |x / S - sg(x / S + v)|^2, whose value is mean v^2 and whose gradient at x is
    -2 v / (S N C). Since v is normalised, the value hardly changes while training goes well: look at `drift_norm`.

    Args: as `aggregated_drift`; the gradient flows to `generated` alone. With several ranks every rank's value is the
    mean over its own rows, so gradients averaged over ranks are those of the whole batch.

    Source: arXiv 2602.04770, Algorithm 1, Eq. (13) and Appendix A.6. Differs: gradient written out, no target kept.
    """
    drift = aggregated_drift(
        generated,
        positives,
        negatives,
        taus=taus,
        negative_weight=negative_weight,
        scale_over=scale_over,
        affinity_floor=affinity_floor,
        kernel=kernel,
        normalisation=normalisation,
        chunk_bytes=chunk_bytes,
        ranks=ranks,
        shared=shared,
        wait=wait,
    )
    with torch.autocast(generated.device.type, enabled=False):
        per_field: torch.Tensor = _Regression.apply(generated, drift.v, drift.feature_scale)  # type: ignore[no-untyped-call]
    return DriftLoss(per_field, drift)


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
