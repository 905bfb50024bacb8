"""From distances to the coefficients of the field: kernels, their normalisation, and how many points they weigh."""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from driftkit.errors import UsageError
from driftkit.runtime.ranks import Ranks

Kernel = Literal["laplace", "gaussian"]

# Exponents of at least minus this leave no entry of their exponential, nor of its square where that is needed, at zero.
WHOLE_RANGE = {torch.float32: 80.0, torch.float64: 300.0}


@dataclass(frozen=True)
class Affinity:
    """How the affinity of x_i and y_k follows from their distance d_ik.

    Attributes:
        kernel: "laplace" k = exp(-d / width), as in the paper, or "gaussian" k = exp(-(d / width)^2 / 2).
        normalisation: "both" A = sqrt(P * Q), P and Q the softmaxes over y and over x, as in the paper; "rows" A = P;
            "none" A = k itself; "sinkhorn(n)" n turns of normalising columns to N / K and rows to 1.
        floor: lower bound of A before weighting, the masked self entry included (the authors' release: 1e-3).
    """

    kernel: Kernel = "laplace"
    normalisation: str = "both"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise UsageError(f"kernel: expected {' or '.join(get_args(Kernel))}, got {self.kernel!r}")
        if self.normalisation not in ("both", "rows", "none") and not self.turns:
            raise UsageError(
                f"normalisation: expected both, rows, none or sinkhorn(N) with N >= 1, got {self.normalisation!r}"
            )
        if not self.floor >= 0:
            raise UsageError(f"affinity_floor: expected a value >= 0, got {self.floor}")
        if self.floor and self.normalisation == "none":
            raise UsageError("affinity_floor: unnormalised affinities have no scale to bound; leave it at 0")

    @property
    def turns(self) -> int:
        """Turns of Sinkhorn's normalisation; 0 for the others."""
        match = re.fullmatch(r"sinkhorn\(([1-9][0-9]{0,3})\)", self.normalisation)
        return int(match[1]) if match else 0

    def sharpness(self, tau: float) -> float:
        """s such that log k = -s * `power_of(d)` for distances in units of their mean."""
        return 1 / tau if self.kernel == "laplace" else 0.5 / tau**2

    def power_of(self, distance: torch.Tensor) -> torch.Tensor:
        """The power of a distance that the kernel's exponent is proportional to."""
        return distance if self.kernel == "laplace" else distance.square()

    def excess(self, distance: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
        """`power_of(distance)` over that of the least distance, in place: differences from the nearest are exact."""
        powers = distance if self.kernel == "laplace" else distance.square_()
        return powers.sub_(self.power_of(least)[:, None, None])


@dataclass(frozen=True)
class Columns:
    """What the columns of an affinity matrix are.

    Attributes:
        num_negatives: how many come first; the others are positives.
        weight: [G, K], factors of the affinities; None: 1.
        num_rows: rows on all ranks.
        ranks: those who hold the rows.
    """

    num_negatives: int
    weight: torch.Tensor | None
    num_rows: int
    ranks: Ranks


def write_coefficients(
    excess: torch.Tensor,
    factors: torch.Tensor,
    out: torch.Tensor,
    affinity: Affinity,
    columns: Columns,
    *,
    reach: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write [-W- | W+] / exp(unit), the coefficients of the negatives, then of the positives.

    Args:
        excess: [G, n, K], how much farther pairs are than the nearest; inf where a point meets itself.
        factors: [G, T], < 0: times `excess`, it is the exponent of the kernel at each temperature.
        out: [G, T, n, K], overwritten.
        reach: no exponent lies below minus this, but for -inf. It decides whether the softmaxes can be made of sums of
            the kernel itself, in the type of `out` or in float64, or must be made in logarithms.

    Returns:
        Both [G, T]: the effective number of points that a generated one feels, (sum of A)^2 / (sum of A^2) over y,
        summed over the rows of this rank; and `unit`, the logarithm of the largest sum of W+ over a row. Where images
        are all alike, affinities to the real ones are so small that without it the squares of V would underflow.
    """
    sums_suffice = affinity.normalisation in ("both", "rows")
    if sums_suffice and reach < WHOLE_RANGE[out.dtype]:
        torch.mul(excess[:, None], factors[:, :, None, None], out=out)
        return _whole(out.exp_(), affinity, columns)
    if sums_suffice and reach < WHOLE_RANGE[torch.float64]:
        wide = excess[:, None] * factors.double()[:, :, None, None]
        effective, unit = _whole(wide.exp_(), affinity, columns)
        out.copy_(wide)
        return effective.to(out.dtype), unit.to(out.dtype)
    torch.mul(excess[:, None], factors[:, :, None, None], out=out)
    return _in_logarithms(out, affinity, columns)


def _in_logarithms(out: torch.Tensor, affinity: Affinity, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from log k [G, T, n, K], whatever its range, in place.

    Each half of a row, negatives and positives, is taken relative to its own largest affinity: neither vanishes where
    it is much smaller than the other.
    """
    out.copy_(log_affinity(out, affinity, columns))
    push, pull = out[..., : columns.num_negatives], out[..., columns.num_negatives :]
    (push_top, push_sum, push_norm), (pull_top, pull_sum, pull_norm) = _exponentials(push), _exponentials(pull)
    effective = 2 * torch.logaddexp(push_sum, pull_sum) - torch.logaddexp(2 * push_norm, 2 * pull_norm)
    unit = _zero_where_empty((push_sum + pull_sum).amax(dim=2, keepdim=True))
    push.mul_(-(push_top + pull_sum - unit).exp())
    pull.mul_((pull_top + push_sum - unit).exp())
    return effective.exp().sum(dim=(2, 3)), unit[..., 0, 0]


def _exponentials(logs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Replace logs by exp(logs - largest of the row). Gives the largest, and the logs of each row's sum and norm."""
    top = _zero_where_empty(logs.amax(dim=-1, keepdim=True))
    logs.sub_(top).exp_()
    norm = torch.linalg.vector_norm(logs, dim=-1, keepdim=True)
    return top, logs.sum(dim=-1, keepdim=True).log() + top, norm.log() + top


def _whole(kernel: torch.Tensor, affinity: Affinity, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from the kernel k [G, T, n, K] itself, in place.

    A_ik = k_ik u_k r_i, hence W_ik = k_ik u_k r_i^2 times the sum of k u over the other half of the row: r enters last.
    """
    by_row = _by_row(kernel, affinity)  # r
    by_column = None  # u, and the weight
    if affinity.normalisation == "both":
        column_sum = columns.ranks.sum(kernel.sum(dim=2, keepdim=True))
        # With N = 1 the only entry of a self column is masked: its column sums to nothing, and it must stay 0, not nan.
        by_column = torch.where(column_sum > 0, column_sum.rsqrt(), 0.0)
    if affinity.floor > 0:  # bounds A itself, before weighting
        if by_column is not None:
            kernel.mul_(by_column)
        kernel.mul_(by_row).clamp_(min=affinity.floor)
        by_row, by_column = torch.ones_like(by_row), None
    if columns.weight is not None:
        weight = columns.weight[:, None, None, :]
        by_column = weight if by_column is None else by_column * weight
    if by_column is not None:
        kernel.mul_(by_column)
    push, pull = kernel[..., : columns.num_negatives], kernel[..., columns.num_negatives :]
    push_sum, pull_sum = push.sum(dim=-1, keepdim=True), pull.sum(dim=-1, keepdim=True)
    # Without column sums, entries may be so small that their squares need the range of float64.
    wide = torch.float64 if affinity.normalisation == "rows" else None
    norm: torch.Tensor = torch.linalg.vector_norm(kernel, dim=3, dtype=wide)
    effective = ((push_sum + pull_sum)[..., 0] / norm).square().sum(dim=2)
    push_sum, pull_sum = push_sum * by_row, pull_sum * by_row
    size = (push_sum * pull_sum).amax(dim=2, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    push.mul_(-pull_sum / size * by_row)
    pull.mul_(push_sum / size * by_row)
    return effective.to(kernel.dtype), size[..., 0, 0].log()


def _by_row(kernel: torch.Tensor, affinity: Affinity) -> torch.Tensor:
    row_sum = kernel.sum(dim=3, keepdim=True)
    return row_sum.rsqrt() if affinity.normalisation == "both" else row_sum.reciprocal()


def log_affinity(logits: torch.Tensor, affinity: Affinity, columns: Columns) -> torch.Tensor:
    """log A, weighted, [G, ..., n, K], from log k, -inf where an entry is masked."""
    if affinity.normalisation == "rows":
        logits = logits - _over_y(logits)
    elif affinity.normalisation == "both":
        logits = logits - _over_y(logits) / 2 - _over_x(logits, columns.ranks) / 2
    for _ in range(affinity.turns):
        logits = logits - _over_x(logits, columns.ranks) + math.log(columns.num_rows / logits.shape[-1])
        logits = logits - _over_y(logits)
    if affinity.floor > 0:
        logits = logits.clamp(min=math.log(affinity.floor))
    if columns.weight is None:
        return logits
    return logits + columns.weight.log().view(len(logits), *[1] * (logits.ndim - 2), -1)


def _over_y(logits: torch.Tensor) -> torch.Tensor:
    return _zero_where_empty(torch.logsumexp(logits, dim=-1, keepdim=True))


def _over_x(logits: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    local = torch.logsumexp(logits, dim=-2, keepdim=True)
    if ranks.world_size > 1:
        highest = _zero_where_empty(ranks.max(local))
        local = ranks.sum((local - highest).exp()).log() + highest
    return _zero_where_empty(local)


def _zero_where_empty(log_sum: torch.Tensor) -> torch.Tensor:
    """A row or column that is masked wholly (N = 1) stays masked instead of becoming nan."""
    return torch.where(torch.isneginf(log_sum), 0.0, log_sum)
