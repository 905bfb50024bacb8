"""The kernel distance of two sets of features (KID where the features are Inception's)."""

import numpy as np
import torch

from driftkit.metrics.base import Metric, MetricInputs, MetricResult, Quantity
from driftkit.runtime.device import float64_device, ieee_float32

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
CHUNK = 4096  # rows at a time in float64
RANDOM_SEED = 2020  # torch-fidelity's own, so that its command line draws the same subsets


def kernel_distance(
    generated: torch.Tensor,
    reference: torch.Tensor,
    *,
    subset_size: int,
    subsets: int = KID_SUBSETS,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """`kid_mean`, without bias, and `kid_std` of the squared maximum mean discrepancy with the kernel (x.y / D + 1)^3.

    Products are float32, of features less their mean, and the constant that all kernel values share is left out, so
    that rounding is relative to how far kernel values differ; sums over them are float64.

    Args:
        generated, reference: float32 [N, D] and [M, D], at least `subset_size` rows each.
        subset_size: rows of either set in a random subset, >= 2.

    Source: Binkowski et al. 2018 (arXiv 1801.01401), Eq. (4). Differs: nothing; subsets are torch-fidelity's.
    """
    place = float64_device(device)
    dim = reference.shape[1]
    centre = reference.mean(dim=0).double()
    constant = 1 + float(centre @ centre) / dim
    draws = np.random.RandomState(RANDOM_SEED)
    counts = (len(generated), len(reference))
    drawn = [[draws.choice(count, subset_size, replace=False) for count in counts] for _ in range(subsets)]
    picks = torch.from_numpy(np.array(drawn)).to(place)  # [subsets, 2, subset_size]
    values = []
    with ieee_float32(place):
        x, y = (_centred(rows.to(place), centre.to(place)) for rows in (generated, reference))
        for for_x, for_y in picks:
            one, other = x[for_x], y[for_y]
            within = _mean(one, one, constant, without_self=True) + _mean(other, other, constant, without_self=True)
            values.append(within - 2 * _mean(one, other, constant))
    subset_values = torch.stack(values)
    return {"kid_mean": float(subset_values.mean()), "kid_std": float(subset_values.std(correction=0))}


def _centred(rows: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Features less the centre m, with their products with m: [N, D + 1], float32, over the root of D."""
    less = rows - centre.float()
    along = torch.cat([(part.double() @ centre).float() for part in less.split(CHUNK)])
    return torch.cat([less / rows.shape[1] ** 0.5, along[:, None] / rows.shape[1]], dim=1)


def _mean(x: torch.Tensor, y: torch.Tensor, constant: float, *, without_self: bool = False) -> torch.Tensor:
    """Mean over all pairs of the kernel less constant^3, float64 []."""
    # x.y / D + 1 = constant + u, with u = (x - m).(y - m) / D + (x - m).m / D + (y - m).m / D
    u = torch.addmm(y[:, -1], x[:, :-1], y[:, :-1].T).add_(x[:, -1:])
    kernel = (u + 3 * constant).mul_(u).add_(3 * constant**2).mul_(u)
    total = kernel.sum(dim=1, dtype=torch.float64).sum()
    if not without_self:
        return total / kernel.numel()
    return (total - kernel.diagonal().double().sum()) / (len(x) * (len(x) - 1))


def _compute(inputs: MetricInputs) -> MetricResult:
    generated, reference = inputs.generated.rows, inputs.reference.rows
    size = min(KID_SUBSET_SIZE, min(len(generated), len(reference)) // 2)
    values = kernel_distance(generated, reference, subset_size=size, device=inputs.device)
    return MetricResult(values, {"kid_subsets": KID_SUBSETS, "kid_subset_size": size})


KID = Metric(
    name="kid",
    label="KID",
    help="Kernel distance over 100 random subsets of min(1000, half of the smaller set) images.",
    quantities=(
        Quantity(
            "kid_mean", "KID", "lower", "distance", "Kernel distance to the reference, unbiased.", spread="kid_std"
        ),
    ),
    needs="rows",
    min_images=4,
    compute=_compute,
)
