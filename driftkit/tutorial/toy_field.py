"""The drifting field whose pull and push can be scaled apart: the paper's ablation of anti-symmetry."""

import dataclasses
from collections.abc import Sequence

import torch

from driftkit.methods.drifting import AggregatedDrift, aggregated_drift, drift_field
from driftkit.methods.drifting.affinity import Affinity, log_affinity
from driftkit.methods.drifting.distance import pairwise_distance


def scaled_field(
    x: torch.Tensor, y_pos: torch.Tensor, *, tau: float, attraction: float = 1.0, repulsion: float = 1.0
) -> torch.Tensor:
    """attraction V+ - repulsion V-, where V+ = sum W+ (y+ - x) and V- = sum W- (y- - x), at one temperature.

    Args:
        x: generated features, [G, N, C]; they are the negatives, too.
        y_pos: features of real data, [G, P, C].
        tau: kernel width in the units of x, > 0.

    Returns:
        [G, N, C], in the units of x, without gradient. Equal factors give `drift_field` times the factor.

    Source: arXiv 2602.04770, Eq. (10), (11), Algorithm 2, and the ablation of anti-symmetry. Differs: nothing.
    """
    if attraction == repulsion:
        return attraction * drift_field(x, y_pos, x, tau=tau)
    x = x.detach()
    logit = -pairwise_distance(x, torch.cat([x, y_pos], dim=1)) / tau  # [G, N, N + P]
    torch.diagonal(logit, 0, 1, 2).fill_(-torch.inf)
    A = log_affinity(logit, Affinity()).exp()
    A_neg, A_pos = A.split([x.shape[1], y_pos.shape[1]], dim=2)  # [G, N, N], [G, N, P]
    sum_neg, sum_pos = A_neg.sum(dim=2, keepdim=True), A_pos.sum(dim=2, keepdim=True)  # [G, N, 1]
    pull = sum_neg * (torch.bmm(A_pos, y_pos) - sum_pos * x)  # V+; W+ = A+ sum A-
    push = sum_pos * (torch.bmm(A_neg, x) - sum_neg * x)  # V-; W- = A- sum A+
    v: torch.Tensor = attraction * pull - repulsion * push
    return v


def fields_by_temperature(
    x: torch.Tensor, y_pos: torch.Tensor, scale: torch.Tensor, *, taus: Sequence[float], attraction: float,
    repulsion: float,
) -> torch.Tensor:  # fmt: skip
    """The scaled field at every temperature, [T, G, N, C], on features divided by their `scale` S [G] (A.6)."""
    S, root = scale[:, None, None], x.shape[2] ** 0.5
    factors = {"attraction": attraction, "repulsion": repulsion}
    return torch.stack([scaled_field(x / S, y_pos / S, tau=tau * root, **factors) for tau in taus])


def scaled_drift(
    x: torch.Tensor, y_pos: torch.Tensor, *, taus: Sequence[float], attraction: float = 1.0, repulsion: float = 1.0
) -> AggregatedDrift:
    """`aggregated_drift` with the two halves of the field scaled; with both factors 1 it is that function's result.

    Source: arXiv 2602.04770, Eq. (23), (25): V / lambda summed over temperatures. Differs: nothing.
    """
    drift = aggregated_drift(x, y_pos, taus=taus)
    if attraction == repulsion == 1:
        return drift
    V = fields_by_temperature(
        x.detach(), y_pos, drift.feature_scale, taus=taus, attraction=attraction, repulsion=repulsion
    )
    lam = V.square().mean(dim=(2, 3)).sqrt()  # [T, G]
    v = torch.where(lam[..., None, None] > 0, V / lam[..., None, None], 0.0).sum(dim=0)
    return dataclasses.replace(drift, v=v, drift_scale=lam)
