"""From distances to the coefficients of the field: the kernel k, the affinity A and its variants, the weights W.

Algorithm 2 takes A = sqrt(softmax over y * softmax over x) of log k, and W+ = A+ sum(A-), W- = A- sum(A+). Kernels are
taken relative to the nearest pair of a field, a factor that the softmaxes cancel.
"""

import itertools
import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from driftkit.errors import UsageError
from driftkit.methods.drifting.precision import MAX_EXPONENT
from driftkit.runtime.ranks import Ranks

Kernel = Literal["laplace", "gaussian"]
SINGLE = Ranks()


@dataclass(frozen=True)
class Affinity:
    """How the affinity of x_i and y_k follows from their distance d_ik.

    Attributes:
        kernel: "laplace" k = exp(-d / width), as in the paper, or "gaussian" k = exp(-(d / width)^2 / 2).
        normalisation: "both" A = sqrt(P * Q), P and Q the softmaxes over y and over x, as in the paper; "rows" A = P;
            "none" A = k; "sinkhorn(n)" n rounds of normalising columns to N / K and rows to 1.
        floor: lower bound of A before weighting, the masked self entry included (the authors' release: 1e-3).
    """

    kernel: Kernel = "laplace"
    normalisation: str = "both"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise UsageError(f"kernel: expected {' or '.join(get_args(Kernel))}, got {self.kernel!r}")
        if self.normalisation not in ("both", "rows", "none") and not self.sinkhorn_rounds:
            raise UsageError(
                f"normalisation: expected both, rows, none or sinkhorn(N) with N >= 1, got {self.normalisation!r}"
            )
        if not self.floor >= 0:
            raise UsageError(f"affinity_floor: expected a value >= 0, got {self.floor}")
        if self.floor and self.normalisation == "none":
            raise UsageError("affinity_floor: unnormalised affinities have no scale to bound; leave it at 0")

    @property
    def sinkhorn_rounds(self) -> int:
        """Rounds of Sinkhorn's normalisation; 0 for the others."""
        match = re.fullmatch(r"sinkhorn\(([1-9][0-9]{0,3})\)", self.normalisation)
        return int(match[1]) if match else 0

    def sharpness(self, tau: float) -> float:
        """s in log k = -s * `power(d)`, for distances in units of the kernel's width over tau."""
        return 1 / tau if self.kernel == "laplace" else 0.5 / tau**2

    def power(self, distance: torch.Tensor) -> torch.Tensor:
        """The power of a distance that log k is proportional to: d or d^2."""
        return distance if self.kernel == "laplace" else distance.square()


def log_affinity(
    log_k: torch.Tensor, affinity: Affinity, *, weight: torch.Tensor | None = None, ranks: Ranks = SINGLE
) -> torch.Tensor:
    """log A, [G, ..., n, K], times `weight` [G, K], from log k, -inf where masked; `ranks` hold the rows."""
    log_a = log_k
    if affinity.normalisation == "rows":
        log_a = log_a - _log_sum_over_y(log_a)
    elif affinity.normalisation == "both":
        log_a = log_a - _log_sum_over_y(log_a) / 2 - _log_sum_over_x(log_a, ranks) / 2
    for _ in range(affinity.sinkhorn_rounds):
        num_rows, num_columns = log_a.shape[-2] * ranks.world_size, log_a.shape[-1]
        log_a = log_a - _log_sum_over_x(log_a, ranks) + math.log(num_rows / num_columns)
        log_a = log_a - _log_sum_over_y(log_a)
    if affinity.floor > 0:
        log_a = log_a.clamp(min=math.log(affinity.floor))
    if weight is None:
        return log_a
    return log_a + weight.log().view(len(log_a), *[1] * (log_a.ndim - 2), -1)


def write_coefficients(
    distance: torch.Tensor,
    min_distance: torch.Tensor,
    rate: torch.Tensor,
    out: torch.Tensor,
    affinity: Affinity,
    *,
    num_negatives: int,
    weight: torch.Tensor | None,
    self_at: int,
    max_exponents: list[float] | None,
    ranks: Ranks,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write W = [-W- | W+] / exp(log_unit), the coefficients of the negatives, then of the positives.

    Args:
        distance: [F, n, K], overwritten.
        min_distance: [F], the least of all pairs, self pairs aside.
        rate: [F, T], rising over T: log k = -rate * `affinity.power(d)`.
        out: [F, T, n, K], overwritten.
        num_negatives: how many of the columns come before the positives.
        weight: [F, K], factors of the affinities; None: 1.
        self_at: column at which y holds the first row's x; self pairs get no affinity.
        max_exponents: largest -log k relative to the nearest pair, per temperature; None: unknown. They decide by
            the rule of `precision` whether W comes from k itself, in float32 or float64, or from log k.
        ranks: those who hold the rows.

    Returns:
        Both [F, T]: the effective number of points that a generated one feels, (sum of A)^2 / (sum of A^2) over y,
        summed over these rows; and log_unit, the log of the largest sum of W+ over a row. Where images are all alike,
        affinities to the real ones are so small that without it the squares of V would underflow.
    """
    gap = distance if affinity.kernel == "laplace" else distance.square_()
    gap.sub_(affinity.power(min_distance)[:, None, None])  # exact near the nearest pair
    torch.diagonal(gap, self_at, 1, 2).fill_(torch.inf)
    columns = (num_negatives, weight, ranks)
    narrow, wide, num_taus = out.dtype, torch.float64, rate.shape[1]
    # Temperatures within range together, they come first, and each other one by itself; all if nothing is known.
    exponents = max_exponents or [math.inf] * num_taus
    together = sum(e < MAX_EXPONENT[narrow] for e in exponents) if max_exponents else num_taus
    bounds = sorted({0, *range(together, num_taus + 1)})
    stats = []
    for start, stop in itertools.pairwise(bounds):
        exponent = exponents[stop - 1] if affinity.normalisation in ("both", "rows") else math.inf
        factor, w = -rate[:, start:stop, None, None], out[:, start:stop]
        if MAX_EXPONENT[narrow] <= exponent < MAX_EXPONENT[wide]:
            k = (gap[:, None] * factor.to(wide)).exp_()
            effective, log_unit = _coefficients_of_kernel(k, affinity, *columns)
            w.copy_(k)
            stats.append((effective.to(narrow), log_unit.to(narrow)))
        else:
            torch.mul(gap[:, None], factor, out=w)
            if exponent < MAX_EXPONENT[narrow]:
                stats.append(_coefficients_of_kernel(w.exp_(), affinity, *columns))
            else:
                stats.append(_coefficients_of_log_kernel(w, affinity, *columns))
    effective, log_unit = (torch.cat(parts, dim=1) for parts in zip(*stats, strict=True))
    if affinity.normalisation == "none":  # k relative to the nearest pair was not cancelled
        log_unit = log_unit - 2 * affinity.power(min_distance)[:, None] * rate
    return effective, log_unit


def _coefficients_of_kernel(
    k: torch.Tensor, affinity: Affinity, num_negatives: int, weight: torch.Tensor | None, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor]:
    """W from k [F, T, n, K], in place.

    A_ij = k_ij r_i c_j with r from the sums of rows and c from those of columns. W_ij is k_ij c_j r_i^2 times the sum
    of k c over the other half of the row: r enters last.
    """
    row_sum = k.sum(dim=3, keepdim=True)  # [F, T, n, 1]
    r, c = row_sum.reciprocal(), None
    if affinity.normalisation == "both":
        column_sum = ranks.sum(k.sum(dim=2, keepdim=True))  # [F, T, 1, K]
        # With N = 1 the only entry of a self column is masked: its column sums to nothing, and it must stay 0, not nan.
        r, c = row_sum.rsqrt(), torch.where(column_sum > 0, column_sum.rsqrt(), 0.0)
    if affinity.floor > 0:  # bounds A itself, before weighting
        if c is not None:
            k.mul_(c)
        k.mul_(r).clamp_(min=affinity.floor)
        r, c = torch.ones_like(r), None
    if weight is not None:
        c = weight[:, None, None, :] if c is None else c * weight[:, None, None, :]
    if c is not None:
        k.mul_(c)
    largest = k.amax(dim=3, keepdim=True)  # all entries of a row may be so small that their squares underflow
    largest = torch.where(largest > 0, largest, 1.0)
    k.div_(largest)
    r = r * largest
    neg, pos = k[..., :num_negatives], k[..., num_negatives:]
    neg_sum, pos_sum = neg.sum(dim=-1, keepdim=True), pos.sum(dim=-1, keepdim=True)  # [F, T, n, 1]
    norm: torch.Tensor = torch.linalg.vector_norm(k, dim=3)
    effective = ((neg_sum + pos_sum)[..., 0] / norm).square().sum(dim=2)
    neg_sum, pos_sum = neg_sum * r, pos_sum * r
    unit = (neg_sum * pos_sum).amax(dim=2, keepdim=True)  # [F, T, 1, 1]
    unit = torch.where(unit > 0, unit, 1.0)
    neg.mul_(-pos_sum / unit * r)
    pos.mul_(neg_sum / unit * r)
    return effective.to(k.dtype), unit[..., 0, 0].log()


def _coefficients_of_log_kernel(
    log_k: torch.Tensor, affinity: Affinity, num_negatives: int, weight: torch.Tensor | None, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor]:
    """W from log k [F, T, n, K], whatever its range, in place.

    Each half of a row, negatives and positives, is taken relative to its own largest affinity: neither vanishes where
    it is much smaller than the other.
    """
    a = log_k.copy_(log_affinity(log_k, affinity, weight=weight, ranks=ranks))
    neg, pos = a[..., :num_negatives], a[..., num_negatives:]
    (neg_max, neg_sum, neg_norm), (pos_max, pos_sum, pos_norm) = _exp_relative_to_max(neg), _exp_relative_to_max(pos)
    effective = 2 * torch.logaddexp(neg_sum, pos_sum) - torch.logaddexp(2 * neg_norm, 2 * pos_norm)
    log_unit = _zero_where_empty((neg_sum + pos_sum).amax(dim=2, keepdim=True))
    neg.mul_(-(neg_max + pos_sum - log_unit).exp())
    pos.mul_((pos_max + neg_sum - log_unit).exp())
    return effective.exp().sum(dim=(2, 3)), log_unit[..., 0, 0]


def _exp_relative_to_max(log_a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Replace log_a by exp(log_a - max of the row). Returns log of the max, sum and Euclidean norm of each row of A."""
    log_max = _zero_where_empty(log_a.amax(dim=-1, keepdim=True))
    log_a.sub_(log_max).exp_()
    norm = torch.linalg.vector_norm(log_a, dim=-1, keepdim=True)
    return log_max, log_a.sum(dim=-1, keepdim=True).log() + log_max, norm.log() + log_max


def _log_sum_over_y(logits: torch.Tensor) -> torch.Tensor:
    return _zero_where_empty(torch.logsumexp(logits, dim=-1, keepdim=True))


def _log_sum_over_x(logits: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    log_sum = torch.logsumexp(logits, dim=-2, keepdim=True)
    if ranks.world_size > 1:
        log_max = _zero_where_empty(ranks.max(log_sum))
        log_sum = ranks.sum((log_sum - log_max).exp()).log() + log_max
    return _zero_where_empty(log_sum)


def _zero_where_empty(log_sum: torch.Tensor) -> torch.Tensor:
    """A row or column that is masked wholly (N = 1) stays masked instead of becoming nan."""
    return torch.where(torch.isneginf(log_sum), 0.0, log_sum)
