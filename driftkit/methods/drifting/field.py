"""The drifting field V, and its normalised sum over temperatures. The algorithm is here; variants and memory are not.

Letters are those of arXiv 2602.04770: x generated features, y+ positives, y- negatives, tau the temperature, S the
feature scale, lambda the drift scale. G counts independent fields, one per feature vector j, computed together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from driftkit.errors import UsageError
from driftkit.methods.drifting.affinity import Affinity, Kernel, log_affinity, write_coefficients
from driftkit.methods.drifting.distance import pairwise_distance
from driftkit.methods.drifting.precision import MAX_DISTANCE, MIN_DISTANCE, WAITS, compute_dtype, result_dtype
from driftkit.methods.drifting.sharing import SharedFeatures, check_shapes, share_features
from driftkit.methods.drifting.workspace import CHUNK_BYTES, ScaleOver, Workspace, scale_groups
from driftkit.runtime.device import ieee_float32
from driftkit.runtime.ranks import Ranks


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
    """Drifting field at the generated features, at one temperature: pull of the positives minus push of the negatives.

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
    num_neg, num_pos = y_neg.shape[1], y_pos.shape[1]
    if mask_self and num_neg < x.shape[1]:
        raise UsageError(f"mask_self needs at least as many negatives as x, got {num_neg} for {x.shape[1]}")
    dtype = result_dtype((x, y_pos, y_neg))
    x, y_pos, y_neg = (t.detach().to(dtype) for t in (x, y_pos, y_neg))
    with ieee_float32(x.device):
        y = torch.cat([y_neg, y_pos], dim=1)  # [G, K, C], K = M + P
        dist = pairwise_distance(x, y)  # [G, N, K]
        logit = affinity.power(dist / tau) * -affinity.sharpness(1.0)  # [G, N, K], log k
        if mask_self:
            torch.diagonal(logit, 0, 1, 2).fill_(-torch.inf)
        A = log_affinity(logit, affinity).exp_()  # [G, N, K]
        A_neg, A_pos = A.split([num_neg, num_pos], dim=2)  # [G, N, M], [G, N, P]
        W_neg = A_neg * A_pos.sum(dim=2, keepdim=True)  # [G, N, M]
        W_pos = A_pos * A_neg.sum(dim=2, keepdim=True)  # [G, N, P]
        return torch.bmm(torch.cat([-W_neg, W_pos], dim=2), y)  # [G, N, C], W_pos @ y_pos - W_neg @ y_neg


def _drift_of_fields(
    ws: Workspace, fields: range, affinity: Affinity, sharpness: Sequence[float], out: torch.Tensor
) -> tuple["_Scales", torch.Tensor, torch.Tensor]:
    """Algorithm 2 within Appendix A.6, for F fields that share their scales with no others.

    Args:
        ws: the points, n of the N generated ones of this rank and the K of all ranks, y = [x | further y- | y+], of
            which only as many fields as fit are loaded at a time. Often there is one chunk.
        sharpness: of the kernel at the T temperatures, ascending: 1 / tau.
        out: [G, n, C]; sum over tau of V / lambda is written to the rows of these fields.

    Returns:
        The scales [F], log lambda in units of (prescaled) features [F, T], and effective points [F, T].
    """
    num_all, channels = ws.points.x.shape[1:]
    chunks = ws.chunks(fields)
    # Eq. (21), (22): features are divided by S = d_mean / sqrt(C), distances by tau * sqrt(C): together by d_mean * tau
    scales = _scales(ws, fields, affinity)  # d_mean, d_min, d_range [F]
    rate = scales.rate(affinity, sharpness)  # [F, T], log k = -rate * d
    diagnostics = []
    for taus, v_tau in ws.kept_drifts(fields):  # all temperatures at once if memory allows; [F, T, n, C]
        sums = []
        for chunk, at in chunks:
            y, dist = ws.y[: len(chunk)], ws.distance[: len(chunk)]  # [F, K, C], [F, n, K]
            if len(chunks) > 1:  # else they are still those of the scales
                ws.load(chunk, scales.prescale[at])
            # Algorithm 2: A = sqrt(softmax over y * softmax over x), W = [-A- sum A+ | A+ sum A-], V = W y
            W = ws.coefficients[: len(chunk), taus]  # [F, T, n, K], over exp(log_unit)
            effective, log_unit = write_coefficients(
                dist, scales.d_min[at], rate[at, taus], W, affinity, num_negatives=ws.points.num_negatives,
                weight=ws.weight(chunk), self_at=ws.points.first_row, ranks=ws.ranks,
                max_exponents=(scales.d_range[at, None] * rate[at, taus]).amax(dim=0).tolist() if ws.wait else None,
            )  # [F, T] each  # fmt: skip
            torch.bmm(W.flatten(1, 2), y, out=v_tau[at].flatten(1, 2))
            power = torch.linalg.vector_norm(v_tau[at], dim=(2, 3)).square_()  # [F, T], sum of V^2
            sums.append(torch.stack([power, effective, log_unit]))
        power, effective, log_unit = torch.cat(sums, dim=1)  # [F, T] each
        # Eq. (25): lambda = sqrt(mean V^2), over the rows of all ranks and all fields that share it, in a common unit
        common_unit = ws.group_max(fields, ws.ranks.max(log_unit))  # [F, T]
        unit = (log_unit - common_unit).exp()  # [F, T], of this rank's V of each field
        power, effective = ws.ranks.sum(torch.stack([power * unit.square(), effective])) / num_all  # [F, T] each
        lam = ws.group_mean(fields, power / channels).sqrt()  # [F, T]
        # Eq. (23): V / lambda, summed over tau
        inverse = torch.where(scales.distinct[:, None] & ~(lam <= 0), unit / lam, 0.0)  # [F, T]
        for chunk, at in chunks:
            v = torch.bmm(inverse[at, None], v_tau[at].flatten(2)).view(len(chunk), *out.shape[1:])  # [F, n, C]
            ws.store(out, chunk, v if taus.start == 0 else v + ws.select(out, chunk))
        diagnostics.append(torch.stack([lam.log() + common_unit, effective]))
    log_lambda, effective = torch.cat(diagnostics, dim=2)
    return scales, log_lambda, effective


class _Scales(NamedTuple):
    """What the distances of some fields give, [F] each, in prescaled features; equal on all ranks."""

    d_mean: torch.Tensor  # over the scale group
    d_min: torch.Tensor
    d_range: torch.Tensor  # greatest minus least, in the power of the distance that the kernel takes
    prescale: torch.Tensor  # power of two that features were multiplied by

    @property
    def distinct(self) -> torch.Tensor:
        """Where points differ at all: elsewhere the distance is 0 over scale 0, and there is no drift."""
        return ~(self.d_mean <= 0)  # NaN counts: it is to be seen in the result

    def rate(self, affinity: Affinity, sharpness: Sequence[float]) -> torch.Tensor:
        """[F, T]: how fast log k falls with the power of the distance that the kernel takes."""
        width = affinity.power(torch.where(self.distinct, self.d_mean, 1.0))
        return torch.stack([s / width for s in sharpness], dim=1)


def _scales(ws: Workspace, fields: range, affinity: Affinity) -> _Scales:
    """Scales of the features as they are where float32 holds their squares, else of prescaled ones."""
    if ws.wait:
        scales = _scales_of(ws, fields, affinity, ws.y.new_ones(len(fields)))
        if bool(((scales.d_mean >= MIN_DISTANCE) & (scales.d_mean <= MAX_DISTANCE)).all()):
            return scales
        ws.require_finite(fields)
    return _scales_of(ws, fields, affinity, ws.prescale(fields))


def _scales_of(ws: Workspace, fields: range, affinity: Affinity, prescale: torch.Tensor) -> _Scales:
    """Distances of every field summed up; those of the last chunk stay in the workspace."""
    sums = []
    for chunk, at in ws.chunks(fields):
        _, dist = ws.load(chunk, prescale[at])  # [F, n, K]
        weight = ws.weight(chunk)
        in_place_of_self = dist[:, :, -1].sum(dim=1)  # [F]; distances to oneself, which are 0, count in the mean
        if weight is None:
            mean = (dist.sum(dim=(1, 2)) - in_place_of_self) / ws.points.num_columns
        else:
            mean = torch.bmm(dist, weight[:, :, None]).sum(dim=(1, 2)) - in_place_of_self
        flat = dist.flatten(1)
        sums.append(torch.stack([mean / ws.points.x.shape[1], flat.amax(dim=1), flat.amin(dim=1)]))
    mean, d_max, d_min = torch.cat(sums, dim=1)  # [F] each
    mean = ws.group_mean(fields, ws.ranks.sum(mean))
    weight = ws.weight(fields)
    if weight is not None:  # one mean over all pairs that share the scale, whatever the weights of each field
        mean = mean / ws.group_mean(fields, weight.sum(dim=1))
    d_max, minus_min = ws.ranks.max(torch.stack([d_max, -d_min]))
    return _Scales(mean, -minus_min, affinity.power(d_max) - affinity.power(-minus_min), prescale)


@dataclass(frozen=True)
class AggregatedDrift:
    """Result of `aggregated_drift`, without gradient; of the same fields on all `ranks`, but for the rows of `v`."""

    v: torch.Tensor
    """[G, N, C], the sum of V_tau / lambda_tau over the temperatures, in units of normalised features."""
    feature_scale: torch.Tensor
    """[G], S_j: features divided by it have a mean distance of sqrt(C)."""
    drift_scale: torch.Tensor
    """[T, G], lambda_tau: root mean square of V_tau before it is normalised. This, not the loss, shows progress.
    0 below the smallest float32, as happens at small tau while all images are alike; v is right there, too."""
    effective_points: torch.Tensor
    """[T, G], how many points a generated one feels: (sum of A)^2 / (sum of A^2) over y, mean over x. Near 1: only its
    nearest neighbour; near N + P: all alike."""
    logit_range: torch.Tensor
    """[T, G], largest minus smallest log k of the field: small where the kernel hardly separates points."""


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
    scale_ranks: Ranks | None = None,
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
        negatives: further negatives next to the generated ones, [G, M, C].
        taus: temperatures relative to the mean distance, each > 0.
        negative_weight: weights of `negatives`, [G, M], >= 0; they enter the affinities and the mean distance.
        scale_over: "map" shares S and lambda among all G fields, "location" gives each its own; G integers share them
            among the fields of equal number (a tensor of them is read, for which a GPU is waited for).
        affinity_floor: lower bound of A before weighting, the masked self entry included (the authors' release: 1e-3).
        kernel: "laplace", or "gaussian": k = exp(-(|x_i - y_k| / (d_mean * tau))^2 / 2).
        normalisation: "both", or one of the variants that `Affinity` describes: rows, none, sinkhorn(N).
        chunk_bytes: size of the workspace, at least that of one field; None: `CHUNK_BYTES` of the device. What is
            needed beyond it is described in `workspace`.
        ranks: the processes whose features together are the batch; features of all of them are gathered once, and
            every rank computes the rows of its own x.
        scale_ranks: processes that hold other fields of the same scale groups, equally many of each group: S and lambda
            are common to all of them, and no features are gathered. Then `ranks` is this process alone.
        shared: what `share_features` gave for the same features and ranks, when their exchange was begun beforehand.
        wait: whether the host may read values, for which it waits for the device, to choose the cheapest arithmetic
            that is exact enough (see `precision`). None: on a CPU alone.

    Returns:
        The drift, its scales, and what the kernels look like. Where all points of a field coincide, v and S are 0.
        Without `wait`, fields of features that are not finite, and those that share a scale with them, are NaN.

    Raises:
        UsageError: shapes, temperatures, weights or options that do not fit.
        NonFiniteError: features that are not finite, with `wait`.

    Source: arXiv 2602.04770, Algorithm 2 and Appendix A.6 (tau_tilde = tau * sqrt(C) on features divided by S).
    Differs, with the same result in exact arithmetic: features are centred at the mean of x and k is relative to the
    nearest pair, both of which cancel; the self pair is masked by -inf, not by 1e6. Differs in the result from the
    authors' release: S and lambda have no lower bounds (1e-3 and 1e-4), `affinity_floor` is off.
    """
    if not taus or not min(taus) > 0:
        raise UsageError(f"taus: expected temperatures > 0, got {tuple(taus)}")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise UsageError(f"chunk_bytes: expected a positive number, got {chunk_bytes}")
    affinity = Affinity(kernel, normalisation, affinity_floor)
    device = generated.device
    groups = scale_groups(scale_over, generated.shape[0], device)
    shared = shared or share_features(generated, positives, negatives, negative_weight=negative_weight, ranks=ranks)
    points = shared.points()
    g, _, c = points.x.shape
    n, k, t = points.num_rows, points.num_columns, len(taus)
    order = sorted(range(t), key=lambda at: -taus[at])  # from broad to narrow
    sharpness = [affinity.sharpness(taus[at]) for at in order]
    result = result_dtype((points.x, *points.others))
    with ieee_float32(device), torch.no_grad():
        ws = Workspace(
            points,
            groups,
            num_taus=t,
            dtype=compute_dtype(result, sharpness=sharpness[-1], multiplications=g * n * k * c),
            chunk_bytes=chunk_bytes or CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]),
            wait=device.type in WAITS if wait is None else wait,
            scale_ranks=scale_ranks or Ranks(),
        )
        v = points.x.new_empty((g, n, c), dtype=result)
        per_field, per_tau = ws.y.new_empty((g, len(_Scales._fields))), ws.y.new_empty((g, t, 2))
        for fields in ws.whole_groups():
            some_scales, *of_temperatures = _drift_of_fields(ws, fields, affinity, sharpness, v)
            ws.store(per_field, fields, torch.stack(some_scales, dim=1))
            ws.store(per_tau, fields, torch.stack(of_temperatures, dim=2))
        scales, (log_lambda, effective) = _Scales(*per_field.unbind(1)), per_tau.unbind(2)
        S = scales.d_mean / c**0.5  # [G]
        drift_scale = log_lambda.exp() / torch.where(scales.distinct, S, 1.0)[:, None]  # [G, T]
        logit_range = scales.d_range[:, None] * scales.rate(affinity, sharpness)  # [G, T]
        diagnostics = torch.stack([drift_scale, effective, logit_range]).to(result)
        diagnostics = torch.where(scales.distinct[:, None], diagnostics, 0.0)  # [3, G, T]
        diagnostics = torch.stack([diagnostics[..., order.index(at)] for at in range(t)], dim=1)  # [3, T, G]
        return AggregatedDrift(v, (S / scales.prescale).to(result), *diagnostics.unbind(0))
