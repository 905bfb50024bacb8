"""The drifting field V, and its normalised sum over temperatures.

Letters are the paper's (arXiv 2602.04770): x generated features, y+ positives, y- negatives, tau the temperature,
S_j the feature scale, lambda_j the drift scale. G counts independent fields, one per feature vector, computed together.
Distances are made in `distance.py`, coefficients in `affinity.py`.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from driftkit.errors import NonFiniteError, UsageError
from driftkit.methods.drifting.affinity import WHOLE_RANGE, Affinity, Columns, Kernel, log_affinity, write_coefficients
from driftkit.methods.drifting.distance import pairwise_distance, write_distances
from driftkit.methods.drifting.sharing import Points, SharedFeatures, check_shapes, share_features
from driftkit.runtime.device import ieee_float32
from driftkit.runtime.ranks import Ranks

ScaleOver = Literal["map", "location"] | Sequence[int] | torch.Tensor

# Fields are computed some at a time in a workspace of about this many bytes: on a CPU that stays in the caches; on a
# GPU every part costs launches and, with several ranks, reductions.
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 2 * 2**30}

# Where the host knows values for nothing; elsewhere it would have to wait for the device.
WAITS = ("cpu",)

# Where a scale is shared by more fields than fit, V is kept for all temperatures at once if it takes no more than this
# many workspaces; beyond, temperatures come one after another and distances are made anew for each.
KEPT_CHUNKS = 8

# Kernels sharper than this amplify the rounding of float32 distances beyond 1e-5: they are computed in float64.
SHARPEST_FLOAT32 = 64.0

# So few multiplications take no time in float64, and rounding is then nobody's concern.
SMALL_PROBLEM = 2**22

# Squares of smaller distances leave the range of float32: features are brought to another unit first.
SMALLEST_DISTANCE = 1e-14


@dataclass(frozen=True)
class AggregatedDrift:
    """Result of `aggregated_drift`. All tensors are without gradient, and equal on all ranks but for `v`."""

    v: torch.Tensor
    """[G, N, C], the sum of V_tau / lambda_tau over the temperatures, in units of normalised features."""
    feature_scale: torch.Tensor
    """[G], S_j: features divided by it have a mean distance of sqrt(C)."""
    drift_scale: torch.Tensor
    """[T, G], lambda_tau: root mean square of V_tau before it is normalised. This, not the loss, tells of progress.
    Shown as 0 below the smallest float32, as happens at small tau while all images are alike; v is right there, too."""
    effective_points: torch.Tensor
    """[T, G], how many points a generated one feels: (sum of A)^2 / (sum of A^2) over y, mean over x. Near 1: only its
    nearest neighbour; near N + P: all alike."""
    logit_range: torch.Tensor
    """[T, G], largest minus smallest log k of the field: small where the kernel hardly tells points apart."""


def drift_field(
    x: torch.Tensor,
    y_pos: torch.Tensor,
    y_neg: torch.Tensor,
    *,
    tau: float,
    mask_self: bool = True,
    kernel: Kernel = "laplace",
    normalisation: str = "both",
) -> torch.Tensor:
    """Drifting field at the generated features: pull of the positives minus push of the negatives.

    Args:
        x: generated features, [G, N, C].
        y_pos: features of real images, [G, P, C], in the units of x.
        y_neg: features of generated images, [G, M, C]; with `mask_self`, the first N are x itself.
        tau: kernel width in the units of x, > 0 (sqrt(C) already applied).
        mask_self: keep y_neg[:, i] from pushing x[:, i]; needs M >= N.
        kernel, normalisation: as for `aggregated_drift`.

    Returns:
        V, [G, N, C], in the units of x, float32 or wider, without gradient.

    Raises:
        UsageError: shapes disagree, tau <= 0, or mask_self with M < N.

    Source: arXiv 2602.04770, Eq. (10)-(12) and Algorithm 2. Differs: the affinities are formed in log space.
    """
    affinity = Affinity(kernel, normalisation)
    if not tau > 0:
        raise UsageError(f"tau must be > 0, got {tau}")
    check_shapes(x, y_pos, y_neg)
    x, y_pos, y_neg = _as_float(x, y_pos, y_neg)
    if mask_self and y_neg.shape[1] < x.shape[1]:
        raise UsageError(f"mask_self needs at least as many negatives as x, got {y_neg.shape[1]} for {x.shape[1]}")
    y = torch.cat([y_neg, y_pos], dim=1)  # [G, M + P, C]
    columns = Columns(y_neg.shape[1], None, x.shape[1], Ranks())
    with ieee_float32(x.device):
        logits = affinity.power_of(pairwise_distance(x, y) / tau) * -affinity.sharpness(1.0)
        if mask_self:
            torch.diagonal(logits, 0, 1, 2).fill_(-torch.inf)
        weights = log_affinity(logits, affinity, columns).exp_()
        push, pull = weights.split([y_neg.shape[1], y_pos.shape[1]], dim=2)
        coefficients = torch.cat([-push * pull.sum(2, keepdim=True), pull * push.sum(2, keepdim=True)], dim=2)
        return torch.bmm(coefficients, y)


def aggregated_drift(
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
) -> AggregatedDrift:
    """Normalised drift of generated features, summed over temperatures.

    Generated features push one another (each but itself) and are pulled by the positives. For every field,

        d_mean = weighted mean of |x_i - y_k| over all x and all y (x itself among them, its own distance 0 too), and
            over all fields that share the scale
        S = d_mean / sqrt(C)
        k = exp(-|x_i - y_k| / (d_mean * tau))
        A = sqrt(k / (sum of k over y) * k / (sum of k over x)), times the weight of y
        V_tau = sum_k A+_ik (sum A-_i) y+_k - sum_k A-_ik (sum A+_i) y-_k, on features divided by S
        v = sum over tau of V_tau / lambda_tau, lambda_tau = sqrt(mean V_tau^2)

    Args:
        generated: x, [G, N, C], any floating type; this rank's rows.
        positives: y+, [G, P, C]; this rank's.
        negatives: further negatives beside the generated ones, [G, M, C].
        taus: temperatures relative to the mean distance, each > 0.
        negative_weight: weights of `negatives`, [G, M], >= 0; they enter the affinities and the mean distance.
        scale_over: "map" shares S and lambda among all G fields, "location" gives each its own; G integers share them
            among the fields of equal number (a tensor of them is read, for which a GPU is waited for).
        affinity_floor: lower bound of A before weighting, the masked self entry included (the authors' release: 1e-3).
        kernel: "laplace", or "gaussian": k = exp(-(|x_i - y_k| / (d_mean * tau))^2 / 2).
        normalisation: "both", or one of the variants that `Affinity` describes: rows, none, sinkhorn(N).
        chunk_bytes: size of the workspace, at least that of one field; None: `CHUNK_BYTES` of the device. Beyond it,
            memory is taken by the result and, where a scale is shared by more fields than fit, by their V: of all
            temperatures if that is at most 8 workspaces, else of one at a time. Kernels too sharp for sums of
            exponentials take three more matrices of pairs, of the fields at hand.
        ranks: the processes whose features together are the batch; features of all of them are gathered once, and
            every rank computes the rows of its own x.
        shared: what `share_features` gave for the same features and ranks, when their exchange was begun beforehand.
        wait: whether the host may read values, for which it waits for the device. It then takes the cheapest form of
            the distances and softmaxes that is exact for them. Otherwise all are in the form that is exact for any:
            distances by products of float64, softmaxes by logarithms. None: on a CPU alone.

    Returns:
        The drift, its scales, and what the kernels look like. Where all points of a field coincide, v and S are 0.
        Without `wait`, fields of features that are not finite, and those that share a scale with them, are NaN.

    Raises:
        UsageError: shapes, temperatures, weights or options that do not fit.
        NonFiniteError: features that are not finite, with `wait`.

    Source: arXiv 2602.04770, Algorithm 2 and Appendix A.6 (tau_tilde = tau * sqrt(C) on features divided by S).
    Differs: products on features centred at the mean of x, which V does not depend on; `affinity_floor` is off.
    """
    if not taus or not min(taus) > 0:
        raise UsageError(f"taus: expected temperatures > 0, got {tuple(taus)}")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise UsageError(f"chunk_bytes: expected a positive number, got {chunk_bytes}")
    affinity = Affinity(kernel, normalisation, affinity_floor)
    groups = _scale_groups(scale_over, generated)
    shared = shared or share_features(generated, positives, negatives, negative_weight=negative_weight, ranks=ranks)
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(generated.device.type, CHUNK_BYTES["cuda"])
    if wait is None:
        wait = generated.device.type in WAITS
    with ieee_float32(generated.device), torch.no_grad():
        return _Computation(shared.points(), groups, tuple(taus), affinity, chunk_bytes, wait=wait).result()


def workspace_bytes(*, num_rows: int, num_columns: int, channels: int, num_taus: int, wait: bool = True) -> int:
    """What one field takes of the workspace in float32: its points, distances, coefficients and V_tau.

    Args:
        num_rows: generated features of this rank; num_columns: negatives and positives of all ranks.
        wait: as for `aggregated_drift`; without, points and distances of float64 and the logarithms count, too.
    """
    pairs = num_rows * num_columns
    count = pairs * (1 + num_taus) + num_columns * channels + num_taus * num_rows * channels
    if not wait:
        count += max(2 * (pairs + (num_rows + num_columns) * channels), 3 * num_taus * pairs)
    return 4 * count


def field_flops(*, num_rows: int, num_columns: int, channels: int, num_taus: int) -> int:
    """Floating point operations of one field's matrix products: one of all pairs, and one per temperature.

    The arguments are those of `workspace_bytes`.
    """
    return 2 * num_rows * num_columns * channels * (1 + num_taus)


class _Computation:
    """One call: its points, its options and the workspace in which some fields at a time are computed."""

    def __init__(
        self,
        points: Points,
        groups: "_ScaleGroups",
        taus: tuple[float, ...],
        affinity: Affinity,
        chunk_bytes: int,
        *,
        wait: bool,
    ):
        self.points, self.affinity, self.ranks = points, affinity, points.ranks
        self.groups, self.chunk_bytes, self.wait = groups, chunk_bytes, wait
        # From broad to narrow: those that need logarithms are then the last ones.
        self.by_width = sorted(range(len(taus)), key=lambda t: -taus[t])
        self.sharpness = [affinity.sharpness(taus[t]) for t in self.by_width]
        given = (points.x, *points.others)
        result = torch.float64 if any(p.dtype == torch.float64 for p in given) else torch.float32
        g, _, c = points.x.shape
        n, k, t = points.num_rows, points.num_columns, len(taus)
        sharp = self.sharpness[-1] > SHARPEST_FLOAT32
        self.dtype = torch.float64 if sharp or g * n * k * c <= SMALL_PROBLEM else result
        one_field = workspace_bytes(num_rows=n, num_columns=k, channels=c, num_taus=t, wait=wait)
        self.most = max(1, min(g, chunk_bytes // (one_field * (torch.finfo(self.dtype).bits // 32))))
        new = points.x.new_empty
        self.y = new((self.most, k, c), dtype=self.dtype)
        self.distance = new((self.most, n, k), dtype=self.dtype)
        self.coefficients = new((self.most, t, n, k), dtype=self.dtype)
        self.v_tau = new((self.most, t, n, c), dtype=self.dtype)
        self.v = new((g, n, c), dtype=result)
        # What is known of every field: mean, least and spread of distances, unit; log lambda, effective points.
        self.found = new((4, g), dtype=self.dtype)
        self.found_per_tau = new((2, g, t), dtype=self.dtype)

    def result(self) -> AggregatedDrift:
        for fields in _whole_groups(self.groups.counts, self.most):
            self._solve(fields)
        scales = _Scales(*self.found.unbind(0))
        scale = scales.mean / self.v.shape[2] ** 0.5
        log_length, effective = self.found_per_tau.unbind(0)
        drift_scale = log_length.exp() / torch.where(scales.apart, scale, 1.0)[:, None]
        spread = scales.spread[:, None] * self._sharpness(scales)
        told = torch.stack([drift_scale, effective, spread]).to(self.v.dtype)
        told = torch.where(scales.apart[:, None], told, 0.0)  # [3, G, T]
        told = torch.stack([told[..., self.by_width.index(t)] for t in range(len(self.by_width))], dim=1)  # [3, T, G]
        return AggregatedDrift(self.v, (scale / scales.unit).to(self.v.dtype), *told.unbind(0))

    def _solve(self, fields: range) -> None:
        """Fields whose scale groups are whole: all at once where they fit, else their distances are made twice."""
        parts = [range(i, min(i + self.most, fields.stop)) for i in range(fields.start, fields.stop, self.most)]
        if not self.wait:
            scales = self._scales(fields, parts, unit=self._unit(fields))
        else:
            scales = self._scales(fields, parts, unit=None)
            if not bool((torch.isfinite(scales.mean) & (scales.mean >= SMALLEST_DISTANCE)).all()):
                self._require_finite(fields)
                scales = self._scales(fields, parts, unit=self._unit(fields))
        self._put(self.found, fields, torch.stack([scales.mean, scales.least, scales.spread, scales.unit]), dim=1)
        for some in self._temperatures(fields, parts):
            self._add_drift(fields, parts, scales, some)

    def _temperatures(self, fields: range, parts: list[range]) -> list[slice]:
        """All temperatures at once, or one after another where V of all of them would take much memory."""
        num_taus = len(self.sharpness)
        vectors = self.v[0].numel() * len(fields) * num_taus * self.v_tau.element_size()
        if len(parts) == 1 or vectors <= KEPT_CHUNKS * self.chunk_bytes:
            return [slice(0, num_taus)]
        return [slice(t, t + 1) for t in range(num_taus)]

    def _add_drift(self, fields: range, parts: list[range], scales: "_Scales", some: slice) -> None:
        """Add V_tau / lambda_tau of some temperatures to v, and tell lambda and the effective numbers of points."""
        num_all, (n, c) = self.points.x.shape[1], self.v.shape[1:]
        if len(parts) == 1:
            kept = self.v_tau[:, some]
        else:
            kept = self.v_tau.new_empty((len(fields), some.stop - some.start, n, c))
        told = []
        for part in parts:
            at = slice(part.start - fields.start, part.stop - fields.start)
            if len(parts) > 1:
                self._write_distances(part, scales.unit[at])
            told.append(self._write_v_tau(part, scales.at(at), some, kept[at]))
        power, effective, unit = torch.cat(told, dim=1)  # [F, T] each
        common = self._greatest_of_group(fields, self.ranks.max(unit))
        size = (unit - common).exp()  # of this rank's and this field's V in terms of those it shares lambda with
        power, effective = self.ranks.sum(torch.stack([power * size.square(), effective])) / num_all
        length = self._shared(fields, power / c).sqrt()  # lambda, in units of the features and of `common`
        inverse = torch.where(scales.apart[:, None] & ~(length <= 0), size / length, 0.0)
        for part in parts:
            at = slice(part.start - fields.start, part.stop - fields.start)
            v = torch.bmm(inverse[at, None], kept[at].flatten(2)).view(len(part), n, c)
            self._put(self.v, part, v if some.start == 0 else v + self._pick(self.v, part))
        told_per_tau = torch.stack([length.log() + common, effective])
        self._put(self.found_per_tau[:, :, some], fields, told_per_tau, dim=1)

    def _scales(self, fields: range, parts: list[range], *, unit: torch.Tensor | None) -> "_Scales":
        """Distances of every field summed up; where there is one part, they stay in the workspace."""
        unit = self.y.new_ones(len(fields)) if unit is None else unit
        found = []
        for part in parts:
            self._write_distances(part, unit[part.start - fields.start : part.stop - fields.start])
            found.append(self._part_scales(part))
        mean, most, least = torch.cat(found, dim=1)
        mean = self._shared(fields, self.ranks.sum(mean))
        weight = self._weight(fields)
        if weight is not None:  # one mean over all pairs that share the scale, whatever the weights of each field
            mean = mean / self._shared(fields, weight.sum(dim=1))
        most, minus_least = self.ranks.max(torch.stack([most, -least]))
        spread = self.affinity.power_of(most) - self.affinity.power_of(-minus_least)
        return _Scales(mean, -minus_least, spread, unit)

    def _part_scales(self, part: range) -> torch.Tensor:
        """[3, F]: this rank's share of the mean distance (with weights, times their sum), greatest and least one."""
        distance, weight = self.distance[: len(part)], self._weight(part)
        covered = distance[:, :, -1].sum(dim=1)  # stands for the distances to oneself, which are 0
        if weight is None:
            mean = (distance.sum(dim=(1, 2)) - covered) / self.points.num_columns
        else:
            mean = torch.bmm(distance, weight[:, :, None]).sum(dim=(1, 2)) - covered
        flat = distance.flatten(1)
        return torch.stack([mean / self.points.x.shape[1], flat.amax(dim=1), flat.amin(dim=1)])

    def _require_finite(self, fields: range) -> None:
        """Raise NonFiniteError for features that are not finite."""
        finite = torch.isfinite(self._largest(fields)).tolist()
        if not all(finite):
            raise NonFiniteError(
                [self.groups.field_at(at) for at, good in zip(fields, finite, strict=True) if not good]
            )

    def _largest(self, fields: range) -> torch.Tensor:
        """[F], the greatest size of a feature; not finite where one of them is not."""
        largest = [self._pick(p, fields).abs().amax(dim=(1, 2)) for p in (self.points.x, *self.points.others)]
        return torch.stack(largest).to(self.dtype).amax(dim=0)  # a maximum with nan is nan

    def _unit(self, fields: range) -> torch.Tensor:
        """[F], powers of two that bring the features of every scale group near 1; 1 where they are not finite."""
        largest = self._greatest_of_group(fields, self._largest(fields))
        usable = torch.isfinite(largest) & (largest > 0)
        return torch.where(usable, torch.exp2(-torch.frexp(largest).exponent.to(self.dtype)), 1.0)

    def _write_distances(self, part: range, unit: torch.Tensor) -> None:
        """All points of some fields, centred at the mean of x, and the distances of this rank's x to all."""
        y, points = self.y[: len(part)], self.points
        start = 0
        for source in (points.x, *points.others):
            stop = start + source.shape[1]
            torch.mul(self._pick(source, part), unit[:, None, None], out=y[:, start:stop])
            start = stop
        y.sub_(y[:, : points.x.shape[1]].mean(dim=1, keepdim=True))
        rows = y[:, points.first_row : points.first_row + points.num_rows]
        write_distances(rows, y, self.distance[: len(part)], self_at=points.first_row, wait=self.wait)

    def _write_v_tau(self, part: range, scales: "_Scales", taus: slice, out: torch.Tensor) -> torch.Tensor:
        """V_tau [F, T, n, C] of some temperatures, into `out`, from the distances in the workspace, which are used up.

        Returns:
            [3, F, T]: sums over this rank's rows of V_tau^2 and of the effective numbers of points, and the logarithm
            of what V_tau has to be multiplied by.
        """
        distance, coefficients = self.distance[: len(part)], self.coefficients[: len(part), taus]
        excess = self.affinity.excess(distance, scales.least)
        torch.diagonal(excess, self.points.first_row, 1, 2).fill_(torch.inf)
        exponents = self._sharpness(scales)[:, taus]  # [F, T]
        reach = [math.inf] * exponents.shape[1]
        if self.wait:
            reach = (scales.spread[:, None] * exponents).amax(dim=0).tolist()
        columns = Columns(self.points.num_negatives, self._weight(part), self.points.x.shape[1], self.ranks)
        told = [
            write_coefficients(
                excess, -exponents[:, some], coefficients[:, some], self.affinity, columns, reach=reach[some.stop - 1]
            )
            for some in self._alike(reach)
        ]
        effective, unit = (torch.cat(parts, dim=1) for parts in zip(*told, strict=True))
        if self.affinity.normalisation == "none":  # nothing cancelled that k was taken relative to the nearest pair
            unit = unit - 2 * self.affinity.power_of(scales.least)[:, None] * exponents
        t, n = coefficients.shape[1:3]
        v_tau = out.flatten(1, 2)
        torch.bmm(coefficients.flatten(1, 2), self.y[: len(part)], out=v_tau)
        power = torch.linalg.vector_norm(v_tau.unflatten(1, (t, n)), dim=(2, 3)).square_()
        return torch.stack([power, effective, unit])

    def _alike(self, reach: list[float]) -> list[slice]:
        """Temperatures that are computed together: those whose exponentials stay in range, and each other one alone.

        Where that is not known, all together: fewer launches.
        """
        if not self.wait:
            return [slice(0, len(reach))]
        whole = sum(value < WHOLE_RANGE[self.dtype] for value in reach)  # from broad to narrow: they come first
        together = [slice(0, whole)] if whole else []
        return together + [slice(t, t + 1) for t in range(whole, len(reach))]

    def _sharpness(self, scales: "_Scales") -> torch.Tensor:
        """[F, T]: how fast log k falls with the power of the distance that the kernel uses."""
        unit = self.affinity.power_of(torch.where(scales.apart, scales.mean, 1.0))
        return torch.stack([sharpness / unit for sharpness in self.sharpness], dim=1)

    def _weight(self, part: range) -> torch.Tensor | None:
        return None if self.points.weight is None else self._pick(self.points.weight, part).to(self.dtype)

    def _shared(self, fields: range, values: torch.Tensor) -> torch.Tensor:
        """Every field's value [F, ...] replaced by the mean over its scale group."""
        if self.groups.alone:
            return values
        index, count = self.groups.members(fields)
        sums = torch.segment_reduce(values, "sum", lengths=count, axis=0, unsafe=True)  # in one order on all ranks
        return (sums / count.to(values).view(-1, *[1] * (values.ndim - 1)))[index]

    def _greatest_of_group(self, fields: range, values: torch.Tensor) -> torch.Tensor:
        """Every field's value [F, ...] replaced by the greatest of its scale group."""
        if self.groups.alone:
            return values
        index, count = self.groups.members(fields)
        start = values.new_full((len(count), *values.shape[1:]), -torch.inf)
        index_of = index.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
        return start.scatter_reduce_(0, index_of, values, "amax")[index]

    def _pick(self, tensor: torch.Tensor, fields: range) -> torch.Tensor:
        order = self.groups.order
        return tensor[fields.start : fields.stop] if order is None else tensor[order[fields.start : fields.stop]]

    def _put(self, tensor: torch.Tensor, fields: range, values: torch.Tensor, *, dim: int = 0) -> None:
        order = self.groups.order
        if order is None:
            tensor.narrow(dim, fields.start, len(fields)).copy_(values)
        else:
            tensor.index_copy_(dim, order[fields.start : fields.stop], values.to(tensor.dtype))


@dataclass(frozen=True)
class _Scales:
    """What the distances of some fields say, [F] each; equal on all ranks."""

    mean: torch.Tensor  # over the scale group
    least: torch.Tensor
    spread: torch.Tensor  # greatest minus least distance, in the power that the kernel uses
    unit: torch.Tensor  # what the features were multiplied by

    @property
    def apart(self) -> torch.Tensor:
        """Where points differ at all: elsewhere the distance is 0 over scale 0, and there is no drift."""
        return ~(self.mean <= 0)  # NaN counts: it is to be seen in the result

    def at(self, where: slice) -> "_Scales":
        return _Scales(self.mean[where], self.least[where], self.spread[where], self.unit[where])


class _ScaleGroups:
    """Which fields share their scales, for one call after another: nothing here follows from features.

    Attributes:
        order: int64 [G] on the device, in which every group is in one piece; None: as the fields come.
        counts: fields of each group, in that order.
        alone: every field has scales of its own.
    """

    def __init__(self, numbers: tuple[int, ...], device: torch.device):
        self._order = sorted(range(len(numbers)), key=numbers.__getitem__)
        self._numbers = [numbers[field] for field in self._order]
        self._device = device
        self._members: dict[range, tuple[torch.Tensor, torch.Tensor]] = {}
        in_order = self._order == list(range(len(numbers)))
        self.order = None if in_order else torch.tensor(self._order, device=device)
        self.counts = [len(list(fields)) for _, fields in itertools.groupby(self._numbers)]
        self.alone = len(self.counts) == len(numbers)

    def field_at(self, place: int) -> int:
        """The field at a place of the order."""
        return self._order[place]

    def members(self, fields: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Number of the group of each field among those at hand, and how many fields each group has."""
        if fields not in self._members:
            counts = [len(list(same)) for _, same in itertools.groupby(self._numbers[fields.start : fields.stop])]
            index = [number for number, count in enumerate(counts) for _ in range(count)]
            self._members[fields] = (
                torch.tensor(index, device=self._device),
                torch.tensor(counts, device=self._device),
            )
        return self._members[fields]


@functools.lru_cache(maxsize=64)
def _groups_of(numbers: tuple[int, ...], device: torch.device) -> _ScaleGroups:
    return _ScaleGroups(numbers, device)


def _whole_groups(counts: Sequence[int], most: int) -> Iterator[range]:
    """Ranges of whole groups: at most `most` fields where a group allows it."""
    start = size = 0
    for count in counts:
        if size and size + count > most:
            yield range(start, start + size)
            start, size = start + size, 0
        size += count
    yield range(start, start + size)


def _scale_groups(scale_over: ScaleOver, x: torch.Tensor) -> _ScaleGroups:
    if isinstance(scale_over, torch.Tensor):
        scale_over = scale_over.tolist()
    if scale_over == "map":
        return _groups_of((0,) * x.shape[0], x.device)
    if scale_over == "location":
        return _groups_of(tuple(range(x.shape[0])), x.device)
    if isinstance(scale_over, str):
        raise UsageError(f"scale_over: expected 'map', 'location' or {x.shape[0]} integers, got {scale_over!r}")
    numbers = tuple(scale_over)
    if len(numbers) != x.shape[0] or not all(isinstance(number, int) for number in numbers):
        raise UsageError(f"scale_over: expected {x.shape[0]} integers, got {scale_over}")
    return _groups_of(numbers, x.device)


def _as_float(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """All in float32, or float64 where one of them is: half precision is too coarse for distances and softmax."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return [t.detach().to(torch.float64 if wide else torch.float32) for t in tensors]
