"""The drifting field V, and its normalised sum over temperatures.

Letters are the paper's (arXiv 2602.04770): x generated features, y+ positives, y- negatives, tau the temperature,
S_j the feature scale, lambda_j the drift scale. G counts independent fields, one per feature vector, computed together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from driftkit.errors import NonFiniteError, UsageError
from driftkit.runtime.distributed import Ranks

ScaleOver = Literal["map", "location"]

# Fields are computed some at a time, so that their [N, K] matrices take about this many bytes: on a CPU they then stay
# in the second-level cache, which halves the time at [72, 256, 768]; on a GPU larger launches gain.
CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}


# exp(-80) is far above the smallest float32: logits within this range leave no entry of their exponential at zero.
WHOLE_RANGE = 80.0


@dataclass(frozen=True)
class AggregatedDrift:
    """Result of `aggregated_drift`. All tensors are without gradient."""

    v: torch.Tensor
    """[G, N, C], the sum of V_tau / lambda_tau over the temperatures, in units of normalised features."""
    feature_scale: torch.Tensor
    """[G], S_j: features divided by it have a mean distance of sqrt(C)."""
    drift_scale: torch.Tensor
    """[T, G], lambda_tau: root mean square of V_tau before it is normalised. This, not the loss, tells of progress."""


def drift_field(
    x: torch.Tensor, y_pos: torch.Tensor, y_neg: torch.Tensor, *, tau: float, mask_self: bool = True
) -> torch.Tensor:
    """Drifting field at the generated features: pull of the positives minus push of the negatives.

    Args:
        x: generated features, [G, N, C].
        y_pos: features of real images, [G, P, C], in the units of x.
        y_neg: features of generated images, [G, M, C]; with `mask_self`, the first N are x itself.
        tau: kernel width in the units of x, > 0 (sqrt(C) already applied).
        mask_self: keep y_neg[:, i] from pushing x[:, i]; needs M >= N.

    Returns:
        V, [G, N, C], in the units of x, float32 or wider, without gradient.

    Raises:
        UsageError: shapes disagree, tau <= 0, or mask_self with M < N.

    Source: arXiv 2602.04770, Eq. (10)-(12) and Algorithm 2. Differs: the affinities are formed in log space.
    """
    if tau <= 0:
        raise UsageError(f"tau must be > 0, got {tau}")
    with torch.autocast(x.device.type, enabled=False):
        return _plain_field(x, y_pos, y_neg, tau=tau, mask_self=mask_self)


def _plain_field(
    x: torch.Tensor, y_pos: torch.Tensor, y_neg: torch.Tensor, *, tau: float, mask_self: bool
) -> torch.Tensor:
    x, y_pos, y_neg = _as_float(x, y_pos, y_neg)
    _check_shapes(x, y_pos, y_neg)
    if mask_self and y_neg.shape[1] < x.shape[1]:
        raise UsageError(f"mask_self needs at least as many negatives as x, got {y_neg.shape[1]} for {x.shape[1]}")
    y = torch.cat([y_neg, y_pos], dim=1)  # [G, M + P, C]
    distance = pairwise_distance(x, y)
    weights = _affinity(distance / -tau, self_at=0 if mask_self else None, weight=None, floor=0.0, ranks=Ranks())
    return torch.bmm(_pull_and_push(weights, y_neg.shape[1]), y)


def aggregated_drift(
    generated: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    *,
    taus: Sequence[float] = (0.02, 0.05, 0.2),
    negative_weight: torch.Tensor | None = None,
    scale_over: ScaleOver | torch.Tensor = "map",
    affinity_floor: float = 0.0,
    ranks: Ranks | None = None,
) -> AggregatedDrift:
    """Normalised drift of generated features, summed over temperatures.

    Generated features push one another (each but itself) and are pulled by the positives. For every field,

        d_mean = weighted mean of |x_i - y_k| over all x and all y (x itself among them, its own distance 0 too)
        S = d_mean / sqrt(C)
        A = sqrt(softmax over y * softmax over x) of -|x_i - y_k| / (d_mean * tau)
        V_tau = sum_k A+_ik (sum A-_i) y+_k - sum_k A-_ik (sum A+_i) y-_k, on features divided by S
        v = sum over tau of V_tau / lambda_tau, lambda_tau = sqrt(mean V_tau^2)

    Args:
        generated: x, [G, N, C], any floating type; this rank's rows.
        positives: y+, [G, P, C]; this rank's.
        negatives: further negatives beside the generated ones, [G, M, C].
        taus: temperatures relative to the mean distance, each > 0.
        negative_weight: weights of `negatives`, [G, M], >= 0; they enter the affinities and the mean distance.
        scale_over: "map" shares S and lambda among all G fields, "location" gives each its own; an integer tensor
            [G] shares them among the fields of equal number.
        affinity_floor: lower bound of A before weighting, the masked self entry included (the authors' release: 1e-3).
        ranks: the processes whose features together are the batch; features of all of them are gathered once, and
            every rank computes the rows of its own x.

    Returns:
        The drift, the feature scales and the drift scales. Where all points of a field coincide, v and S are 0.

    Raises:
        UsageError: shapes, temperatures or weights that do not fit.
        NonFiniteError: features that are not finite.

    Source: arXiv 2602.04770, Algorithm 2 and Appendix A.6 (tau_tilde = tau * sqrt(C) on features divided by S).
    Differs: products on features centred at the mean of x, which V does not depend on; `affinity_floor` is off.
    """
    with torch.autocast(generated.device.type, enabled=False):
        return _aggregate(
            generated,
            positives,
            negatives,
            taus=tuple(taus),
            negative_weight=negative_weight,
            scale_over=scale_over,
            affinity_floor=affinity_floor,
            ranks=ranks or Ranks(),
        )


def _aggregate(
    generated: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None,
    *,
    taus: tuple[float, ...],
    negative_weight: torch.Tensor | None,
    scale_over: ScaleOver | torch.Tensor,
    affinity_floor: float,
    ranks: Ranks,
) -> AggregatedDrift:
    if not taus or min(taus) <= 0:
        raise UsageError(f"taus: expected temperatures > 0, got {taus}")
    if affinity_floor < 0:
        raise UsageError(f"affinity_floor: expected a value >= 0, got {affinity_floor}")
    none = generated.new_empty((generated.shape[0], 0, generated.shape[-1]))
    x, y_pos, extra = _as_float(generated, positives, none if negatives is None else negatives)
    _check_shapes(x, y_pos, extra)
    extra_weight = _check_weight(negative_weight, extra)
    groups = _scale_groups(scale_over, x)

    n = x.shape[1]
    all_x, y_pos = ranks.gather_dim1(x), ranks.gather_dim1(y_pos)
    extra = extra if negatives is None else ranks.gather_dim1(extra)
    centre = all_x.mean(dim=1, keepdim=True)  # [G, 1, C]
    y = torch.cat([all_x, extra, y_pos], dim=1) - centre  # [G, K, C]: negatives first, as `_pull_and_push` expects
    x = x - centre
    weight = None
    if negative_weight is not None:
        weight = y.new_ones(y.shape[:2])
        weight[:, all_x.shape[1] : all_x.shape[1] + extra.shape[1]] = ranks.gather_dim1(extra_weight[..., None])[..., 0]

    v = torch.empty_like(x)
    feature_scale = x.new_empty(x.shape[0])
    drift_scale = x.new_empty((len(taus), x.shape[0]))
    chunk_bytes = CHUNK_BYTES.get(x.device.type, CHUNK_BYTES["cuda"])
    matrices = 2 + len(taus)  # alive at once: distances, a temporary, and the coefficients of every temperature
    for fields in _chunks(groups, chunk_bytes // max(1, matrices * x.element_size() * n * y.shape[1])):
        v[fields], feature_scale[fields], drift_scale[:, fields] = _normalised_drift(
            x[fields],
            y[fields],
            None if weight is None else weight[fields],
            num_negatives=all_x.shape[1] + extra.shape[1],
            fields=fields,
            groups=groups[fields],
            taus=taus,
            floor=affinity_floor,
            ranks=ranks,
        )
    return AggregatedDrift(v, feature_scale, drift_scale)


def _normalised_drift(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    num_negatives: int,
    fields: torch.Tensor,
    groups: torch.Tensor,
    taus: Sequence[float],
    floor: float,
    ranks: Ranks,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """v [G, n, C], S [G] and lambda [T, G] for fields whose scale groups are complete."""
    num_all = x.shape[1] * ranks.world_size
    distance = pairwise_distance(x, y, self_at=ranks.rank * x.shape[1])  # [G, n, K]
    weight_sum = y.new_full((y.shape[0],), y.shape[1]) if weight is None else weight.sum(dim=1)
    weighted = distance if weight is None else distance * weight[:, None, :]
    distance_mean = ranks.sum(weighted.sum(dim=(1, 2))) / (num_all * weight_sum)
    if not bool(torch.isfinite(distance_mean).all()):
        raise NonFiniteError(fields[~torch.isfinite(distance_mean)].tolist())
    distance_mean = _mean_over(groups, distance_mean)
    # A field whose points all coincide has distance 0 over scale 0: any scale but 0 gives the right zero.
    safe = torch.where(distance_mean > 0, distance_mean, 1.0)
    scaled_y = y / (safe / x.shape[-1] ** 0.5)[:, None, None]
    logits, logit_range = _relative_logits(distance, safe, self_at=ranks.rank * x.shape[1], ranks=ranks)
    coefficients = distance.new_empty((x.shape[0], len(taus), *distance.shape[1:]))  # [G, T, n, K]
    for t, tau in enumerate(taus):
        _coefficients(
            logits, coefficients[:, t], tau=tau, whole=logit_range / tau < WHOLE_RANGE, weight=weight, floor=floor,
            num_negatives=num_negatives, ranks=ranks,
        )  # fmt: skip
    v_tau = torch.bmm(coefficients.flatten(1, 2), scaled_y).unflatten(1, (len(taus), x.shape[1]))  # [G, T, n, C]
    power = ranks.sum(v_tau.square().sum(dim=(2, 3))) / (num_all * x.shape[-1])  # [G, T]
    norm = torch.stack([_mean_over(groups, p) for p in power.unbind(1)]).sqrt()  # lambda_tau, [T, G]
    v = (v_tau / torch.where(norm > 0, norm, 1.0).T[:, :, None, None]).sum(dim=1)
    v = torch.where((distance_mean > 0)[:, None, None], v, 0.0)
    return v, distance_mean / x.shape[-1] ** 0.5, torch.where(distance_mean > 0, norm, 0.0)


def _relative_logits(
    distance: torch.Tensor, scale: torch.Tensor, *, self_at: int, ranks: Ranks
) -> tuple[torch.Tensor, float]:
    """(lowest distance of the field - distance) / scale, in place, -inf where a point meets itself; and their range.

    Softmaxes do not depend on the shift, and differences from the nearest point are exact where it matters.
    """
    highest = ranks.max(distance.flatten(1).amax(dim=1))
    torch.diagonal(distance, self_at, 1, 2).fill_(torch.inf)
    lowest = -ranks.max(-distance.flatten(1).amin(dim=1))
    logits = distance.sub_(lowest[:, None, None]).div_(-scale[:, None, None])
    return logits, float(((highest - lowest) / scale).max())


def _coefficients(
    logits: torch.Tensor,
    out: torch.Tensor,
    *,
    tau: float,
    whole: bool,
    weight: torch.Tensor | None,
    floor: float,
    num_negatives: int,
    ranks: Ranks,
) -> None:
    """Write [-W- | W+], [G, n, K], the coefficients of the negatives, then of the positives, into `out`.

    With E = exp(logits / tau), the affinity is E_ik / sqrt(R_i S_k), R and S being the sums of E over rows and columns.
    Where no entry of E underflows (`whole`) that takes one exponential; elsewhere both softmaxes are in logarithms.
    """
    torch.mul(logits, 1 / tau, out=out)
    if not whole:
        out.copy_(_pull_and_push(_affinity(out, self_at=None, weight=weight, floor=floor, ranks=ranks), num_negatives))
        return
    out.exp_()
    over_y = out.sum(dim=2, keepdim=True)
    over_x = ranks.sum(out.sum(dim=1, keepdim=True))
    # With N = 1 the only entry of a self column is masked: its column sums to nothing, and it must stay 0, not nan.
    column = torch.where(over_x > 0, over_x.rsqrt(), 0.0)
    if floor > 0:
        affinity = out.mul_(column).mul_(over_y.rsqrt()).clamp_(min=floor)
        out.copy_(_pull_and_push(affinity if weight is None else affinity * weight[:, None, :], num_negatives))
        return
    out.mul_(column if weight is None else column * weight[:, None, :])
    push, pull = out[..., :num_negatives], out[..., num_negatives:]
    push_sum, pull_sum = push.sum(dim=2, keepdim=True), pull.sum(dim=2, keepdim=True)
    push.mul_(-pull_sum / over_y)
    pull.mul_(push_sum / over_y)


def pairwise_distance(x: torch.Tensor, y: torch.Tensor, *, self_at: int | None = None) -> torch.Tensor:
    """Euclidean distances [G, N, K] between x [G, N, C] and y [G, K, C], each to about float32 precision.

    Args:
        self_at: column at which y holds x[:, 0] (then x[:, 1], ...), whose distances are exactly 0.

    Squares come from one product; where that cancels (pairs much closer than their norms), they are computed again from
    differences, since small temperatures would amplify the error.
    """
    x_square, y_square = x.square().sum(-1), y.square().sum(-1)
    size = x_square[:, :, None] + y_square[:, None, :]
    square = torch.baddbmm(size, x, y.transpose(1, 2), alpha=-2)
    if self_at is not None:
        torch.diagonal(square, self_at, 1, 2).zero_()
    close = square < 1e-3 * size
    if self_at is not None:
        torch.diagonal(close, self_at, 1, 2).fill_(False)
    g, i, k = torch.nonzero(close, as_tuple=True)
    for part in torch.arange(len(g), device=g.device).split(max(1, 2**24 // x.shape[-1])):
        difference = x[g[part], i[part]] - y[g[part], k[part]]
        square[g[part], i[part], k[part]] = difference.square().sum(-1)
    return square.clamp_(min=0).sqrt_()


def _affinity(
    logits: torch.Tensor, *, self_at: int | None, weight: torch.Tensor | None, floor: float, ranks: Ranks
) -> torch.Tensor:
    """A = sqrt(softmax over y * softmax over x), [G, n, K], from logits that it overwrites."""
    if self_at is not None:
        torch.diagonal(logits, self_at, 1, 2).fill_(-torch.inf)
    over_y = torch.logsumexp(logits, dim=2, keepdim=True)
    over_x = _logsumexp_over_ranks(torch.logsumexp(logits, dim=1, keepdim=True), ranks)
    # With N = 1 the only entry of a self column is masked: its column sums to nothing, and it must stay 0, not nan.
    over_x = torch.where(torch.isneginf(over_x), 0.0, over_x)
    over_y = torch.where(torch.isneginf(over_y), 0.0, over_y)
    affinity = logits.sub_(over_y / 2).sub_(over_x / 2).exp_()
    if floor > 0:
        affinity.clamp_(min=floor)
    return affinity if weight is None else affinity * weight[:, None, :]


def _logsumexp_over_ranks(local: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    if ranks.world_size == 1:
        return local
    highest = ranks.max(local)
    finite = torch.where(torch.isneginf(highest), 0.0, highest)
    return ranks.sum((local - finite).exp()).log() + finite


def _pull_and_push(affinity: torch.Tensor, num_negatives: int) -> torch.Tensor:
    """[-W- | W+], [G, n, K]: the coefficients of the negatives, then of the positives."""
    push, pull = affinity[..., :num_negatives], affinity[..., num_negatives:]
    push_sum, pull_sum = push.sum(-1, keepdim=True), pull.sum(-1, keepdim=True)
    return torch.cat([push * -pull_sum, pull * push_sum], dim=-1)


def _mean_over(groups: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Replace every value by the mean over the fields of its scale group, [G]."""
    numbers, index = torch.unique(groups, return_inverse=True)
    sums = values.new_zeros(len(numbers)).index_add_(0, index, values)
    return (sums / torch.bincount(index, minlength=len(numbers)))[index]


def _chunks(groups: torch.Tensor, limit: int) -> Iterator[torch.Tensor]:
    """Indices of fields to compute together: whole scale groups, at most `limit` fields where a group allows it."""
    order = torch.argsort(groups, stable=True)
    _, counts = torch.unique(groups, return_counts=True)
    start = size = 0
    for count in counts.tolist():
        if size and size + count > limit:
            yield order[start : start + size]
            start, size = start + size, 0
        size += count
    yield order[start : start + size]


def _scale_groups(scale_over: ScaleOver | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if isinstance(scale_over, torch.Tensor):
        if scale_over.shape != x.shape[:1] or scale_over.is_floating_point():
            raise UsageError(
                f"scale_over: expected integers [{x.shape[0]}], got {scale_over.dtype} {list(scale_over.shape)}"
            )
        return scale_over.to(x.device)
    if scale_over == "map":
        return torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    if scale_over == "location":
        return torch.arange(x.shape[0], device=x.device)
    raise UsageError(f"scale_over: expected 'map' or 'location', got {scale_over!r}")


def _check_shapes(x: torch.Tensor, y_pos: torch.Tensor, y_neg: torch.Tensor) -> None:
    for name, t in (("generated", x), ("positives", y_pos), ("negatives", y_neg)):
        if t.ndim != 3 or t.shape[0] != x.shape[0] or t.shape[-1] != x.shape[-1]:
            raise UsageError(f"{name}: expected [G={x.shape[0]}, *, C={x.shape[-1]}], got {list(t.shape)}")
    if 0 in (x.shape[0], x.shape[1], x.shape[2], y_pos.shape[1]):
        raise UsageError(
            f"expected at least one field, generated, positive and channel, got {list(x.shape)} and {list(y_pos.shape)}"
        )


def _check_weight(weight: torch.Tensor | None, negatives: torch.Tensor) -> torch.Tensor:
    if weight is None:
        return negatives.new_ones(negatives.shape[:2])
    if weight.shape != negatives.shape[:2]:
        raise UsageError(f"negative_weight: expected {list(negatives.shape[:2])}, got {list(weight.shape)}")
    if not bool((weight >= 0).all()):
        raise UsageError("negative_weight: expected weights >= 0")
    return weight.detach().to(negatives)


def _as_float(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """All in float32, or float64 where one of them is: half precision is too coarse for distances and softmax."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return [t.detach().to(torch.float64 if wide else torch.float32) for t in tensors]
