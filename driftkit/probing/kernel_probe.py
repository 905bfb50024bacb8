"""What the drifting field would see through an encoder, measured on real images and on wrong versions of them.

Everything goes through the field that training uses, at its batch size and with its normalisation (one feature scale
per vector). Verdicts are drawn elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from driftkit.encoders.features import FeatureSet
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import DriftkitError
from driftkit.methods.drifting import aggregated_drift
from driftkit.methods.drifting.distance import pairwise_distance
from driftkit.probing.corruptions import CORRUPTIONS, ONE_CLASS, CorruptionSpec
from driftkit.probing.feature_bank import Bank, EncodedImages, GroupShape
from driftkit.probing.feature_statistics import (
    distance_concentration,
    effective_rank,
    kernel_statistics,
    neighbour_purity,
    participation_ratio,
    signal_share,
    spectrum,
)
from driftkit.probing.measurement import EncoderMeasurement, GroupMeasurement, KernelMeasurement, Separation
from driftkit.probing.restoration import restoration
from driftkit.runtime.progress import Report
from driftkit.runtime.random import generator_for
from driftkit.storage.images import to_float, to_uint8

STATISTIC_VECTORS = 4  # of a group, in neighbour purity and rank, whose cost grows with the square of the images
MAX_REPEATS = 4
CLASS_REPEATS = 2
NUM_CLASSES = 3  # that are tried as "one class"
RANK_IMAGES = 1000
ANCHOR_SHARE = 8  # one in so many of a batch stays when the others change


@dataclass(frozen=True)
class ProbeImages:
    """What is measured on, uint8 [*, 3, H, W], in random order.

    Attributes:
        real: all real images, at least 4 batches.
        labels: int64 of `real`; None where unlabelled.
        one_class: images of a single class each, `one_class_count` or more; empty where there are none.
    """

    real: torch.Tensor
    labels: torch.Tensor | None
    one_class: Sequence[torch.Tensor] = ()


@dataclass(frozen=True)
class _Design:
    """Which images of a pool form the batches: the same anchors in all, and others that no two batches share."""

    x: list[torch.Tensor]
    y: list[torch.Tensor]
    anchors: int


@dataclass(frozen=True)
class _Pools:
    """Real images that batches are drawn from: one pool plays the generated side, one the real side."""

    x_images: torch.Tensor
    x: Bank
    y: Bank


@dataclass(frozen=True)
class _Drifts:
    """Of one group: norms [R, T] and signal shares [T]."""

    norm: torch.Tensor
    signal: torch.Tensor


def one_class_count(batch_size: int) -> int:
    """Images of one class that `ProbeImages.one_class` needs of each class."""
    return _pool_size(batch_size, CLASS_REPEATS)


def measure_encoder(
    encoder: FrozenEncoder,
    feature_set: FeatureSet,
    images: ProbeImages,
    *,
    batch_size: int,
    taus: tuple[float, ...],
    seed: int = 0,
    report: Report = lambda what, done, total: None,
) -> EncoderMeasurement:
    """Measure every feature group; the same arguments give the same numbers.

    Args:
        encoder: frozen, on the device to measure on.
        feature_set: which vectors its maps give.
        images: at least 4 * batch_size real ones.
        batch_size: generated images per step, and as many real ones.
        taus: temperatures to try.
        seed: of every random draw.
        report: progress (what, just done, total).

    Raises:
        ValueError: too few images.
        DriftkitError: features that are not finite, or all of them constant.
    """
    count = len(images.real)
    repeats = min(MAX_REPEATS, count // (2 * batch_size))
    if repeats < 2:
        raise ValueError(f"got {count} images, expected at least {4 * batch_size} for batches of {batch_size}")
    extract = EncodedImages(encoder, feature_set, seed, report, total=_num_extracted(images, repeats, batch_size))
    half = repeats * batch_size
    pools = _Pools(images.real[:half], extract(images.real[:half]), extract(images.real[half : 2 * half]))
    rest = extract(images.real[2 * half :], STATISTIC_VECTORS)
    _check_varied(pools.x)
    design = _design(half, batch_size, repeats, seed)
    floors = _floors(pools, design, taus)
    steps = 2 * len(CORRUPTIONS) + bool(images.one_class)
    separation: dict[str, dict[str, Separation]] = {name: {} for name in floors}
    sensitivity: dict[str, dict[str, float]] = {name: {} for name in floors}
    for spec in CORRUPTIONS:
        _add_corruption(spec, pools, extract, design, taus, floors, separation, sensitivity)
        report("field", 1, steps)
    if images.one_class:
        by_class = _one_class(images.one_class, extract, pools.y, batch_size, taus, seed)
        for name, floor in floors.items():
            separation[name][ONE_CLASS] = _separation([drifts[name] for drifts in by_class], floor)
        report("field", 1, steps)
    restored = _restoration(extract, images.real, design, half, taus, report, steps)
    groups = []
    for name, shape in extract.groups.items():
        vectors = [v[:STATISTIC_VECTORS] for v in (pools.x[name], pools.y[name], rest[name]) if v.shape[1]]
        rest[name] = torch.cat(vectors, dim=1)
        groups.append(
            _group(
                shape, pools, rest[name], images.labels, design, taus, floors[name], sensitivity[name], separation[name]
            )
        )
    purity = None if images.labels is None else _joined_purity(extract.groups, rest, images.labels)
    return EncoderMeasurement(groups, purity, restored, repeats)


def _add_corruption(
    spec: CorruptionSpec,
    pools: _Pools,
    extract: EncodedImages,
    design: _Design,
    taus: tuple[float, ...],
    floors: dict[str, _Drifts],
    separation: dict[str, dict[str, Separation]],
    sensitivity: dict[str, dict[str, float]],
) -> None:
    """Put what the groups see of one corruption into `separation` and `sensitivity`."""
    wrong_images = _corrupted(spec, pools.x_images, extract.seed)
    wrong = extract(wrong_images)
    drifts = _drift_banks(wrong, pools.y, design, taus)
    pixels = relative_change(to_float(pools.x_images).flatten(1)[None], to_float(wrong_images).flatten(1)[None])
    for name, floor in floors.items():
        separation[name][spec.name] = _separation([drifts[name]], floor)
        if spec.per_image and pixels > 0:  # grey images made grey do not change
            sensitivity[name][spec.name] = relative_change(pools.x[name], wrong[name]) / pixels


def _restoration(
    extract: EncodedImages,
    real: torch.Tensor,
    design: _Design,
    half: int,
    taus: tuple[float, ...],
    report: Report,
    steps: int,
) -> dict[str, float]:
    """Of the first batch, by fault that leaves image i a version of image i."""
    clean = to_float(real[design.x[0]]).to(extract.device)
    others = to_float(real[half + design.y[0]]).to(extract.device)
    restored = {}
    for spec in CORRUPTIONS:
        if spec.mends:
            wrong = to_float(_corrupted(spec, real[design.x[0]], extract.seed)).to(extract.device)
            restored[spec.name] = restoration(
                extract.groups_of, wrong, clean, others, taus=taus, chunk=max(2, extract.chunk // 4)
            )
        report("field", 1, steps)
    return restored


def _num_extracted(images: ProbeImages, repeats: int, batch_size: int) -> int:
    wrong = len(CORRUPTIONS) * repeats * batch_size
    return len(images.real) + wrong + len(images.one_class) * one_class_count(batch_size)


def _corrupted(spec: CorruptionSpec, images: torch.Tensor, seed: int) -> torch.Tensor:
    """uint8 to uint8, as a generator's images are when they are stored."""
    return to_uint8(spec.apply(to_float(images), generator_for(seed, f"probe-{spec.name}")))


def _pool_size(batch_size: int, repeats: int) -> int:
    anchors = _num_anchors(batch_size)
    return anchors + repeats * (batch_size - anchors)


def _num_anchors(batch_size: int) -> int:
    return max(1, batch_size // ANCHOR_SHARE)


def _design(y_count: int, batch_size: int, repeats: int, seed: int) -> _Design:
    """Batches for a pool of `_pool_size` or more x and `y_count` y; every batch starts with the anchors."""
    anchors = _num_anchors(batch_size)
    x_order = torch.randperm(_pool_size(batch_size, repeats), generator=generator_for(seed, "probe-x"))
    y_order = torch.randperm(y_count, generator=generator_for(seed, "probe-y"))
    fixed, others = x_order[:anchors], x_order[anchors:].split(batch_size - anchors)
    return _Design([torch.cat([fixed, o]) for o in others], list(y_order.split(batch_size)[:repeats]), anchors)


def _floors(pools: _Pools, design: _Design, taus: tuple[float, ...]) -> dict[str, _Drifts]:
    """Field between real images, each pool once on either side."""
    there, back = _drift_banks(pools.x, pools.y, design, taus), _drift_banks(pools.y, pools.x, design, taus)
    return {
        name: _Drifts(torch.cat([there[name].norm, back[name].norm]), (there[name].signal + back[name].signal) / 2)
        for name in there
    }


def _drift_banks(x: Bank, y: Bank, design: _Design, taus: tuple[float, ...]) -> dict[str, _Drifts]:
    return {name: _drifts(x[name], y[name], design, taus) for name in x}


def _drifts(x: torch.Tensor, y: torch.Tensor, design: _Design, taus: tuple[float, ...]) -> _Drifts:
    """Field of every batch at every temperature, by itself: the normalised sum over them would hide which one helps."""
    norms, signals = [], []
    for tau in taus:
        at_anchors, norm = [], []
        for x_at, y_at in zip(design.x, design.y, strict=True):
            drift = aggregated_drift(x[:, x_at], y[:, y_at], taus=(tau,), scale_over="location")
            at_anchors.append(drift.v[:, : design.anchors])
            norm.append(drift.drift_scale[0].mean())
        norms.append(torch.stack(norm))
        signals.append(signal_share(torch.stack(at_anchors)).mean())
    return _Drifts(torch.stack(norms, dim=1).double().cpu(), torch.stack(signals).double().cpu())


def _separation(drifts: Sequence[_Drifts], floor: _Drifts) -> Separation:
    norm = torch.cat([d.norm for d in drifts]).mean(dim=0)  # [T]
    mean, sd = floor.norm.mean(dim=0), floor.norm.std(dim=0)
    ratio = torch.where(mean > 0, norm / torch.where(mean > 0, mean, 1.0), 1.0)
    # A spread below a thousandth of the floor is that of too few repeats, not of the field.
    spread = torch.maximum(sd, 1e-3 * mean)
    z = torch.where(spread > 0, (norm - mean) / torch.where(spread > 0, spread, 1.0), 0.0)
    signal = torch.stack([d.signal for d in drifts]).mean(dim=0) - floor.signal
    signal = signal.clamp(max=1.0)  # a floor below 0 by chance must not make more than all of it
    return Separation(ratio.tolist(), z.tolist(), signal.tolist())


def _one_class(
    pools: Sequence[torch.Tensor],
    extract: EncodedImages,
    y: Bank,
    batch_size: int,
    taus: tuple[float, ...],
    seed: int,
) -> list[dict[str, _Drifts]]:
    """Field of images of one class against all, for each class that is tried."""
    y_count = next(iter(y.values())).shape[1]
    design = _design(y_count, batch_size, CLASS_REPEATS, seed)
    return [_drift_banks(extract(pool[: one_class_count(batch_size)]), y, design, taus) for pool in pools]


def relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    """Mean distance a version has from its original, over the mean distance of different originals: [L, N, C] -> []."""
    changed = (after - before).square().sum(dim=2).sqrt().mean(dim=1)  # [L]
    some = before[:, :512]
    centred = some - some.mean(dim=1, keepdim=True)
    count = centred.shape[1]
    apart = pairwise_distance(centred, centred, self_at=0).sum(dim=(1, 2)) / (count * (count - 1))
    return float(torch.where(apart > 0, changed / torch.where(apart > 0, apart, 1.0), 0.0).mean())


def _group(
    shape: GroupShape,
    pools: _Pools,
    statistics: torch.Tensor,
    labels: torch.Tensor | None,
    design: _Design,
    taus: tuple[float, ...],
    floor: _Drifts,
    sensitivity: dict[str, float],
    separation: dict[str, Separation],
) -> GroupMeasurement:
    x, y = pools.x[shape.name], pools.y[shape.name]
    shares = [spectrum(vector[:RANK_IMAGES]) for vector in statistics]
    kernel = kernel_statistics(x[:, design.x[0]], y[:, design.y[0]], taus=taus)
    perplexity, spread = kernel["perplexity"].mean(dim=1).tolist(), kernel["logit_spread"].mean(dim=1).tolist()
    mean, sd = floor.norm.mean(dim=0).tolist(), floor.norm.std(dim=0).tolist()
    return GroupMeasurement(
        name=shape.name,
        map=shape.map,
        kind=shape.kind,
        vectors=shape.vectors,
        channels=shape.channels,
        distance_concentration=float(distance_concentration(x[:, design.x[0]]).mean()),
        purity=None if labels is None else float(neighbour_purity(statistics, labels.to(x.device)).mean()),
        effective_rank=sum(map(effective_rank, shares)) / len(shares),
        participation_ratio=sum(map(participation_ratio, shares)) / len(shares),
        kernel=[
            KernelMeasurement(
                tau=tau,
                perplexity=perplexity[t],
                fraction=perplexity[t] / float(kernel["candidates"]),
                logit_spread=spread[t],
                floor=mean[t],
                floor_sd=sd[t],
                floor_signal=float(floor.signal[t]),
            )
            for t, tau in enumerate(taus)
        ],
        sensitivity=sensitivity,
        separation=separation,
    )


def _joined_purity(shapes: dict[str, GroupShape], values: Bank, labels: torch.Tensor) -> float:
    """Class purity of each map's global vector (the mean of its fewest places), scaled to unit spread, joined."""
    chosen: dict[str, GroupShape] = {}
    for shape in shapes.values():
        of_input = shape.map == "input" and len({s.map for s in shapes.values()}) > 1
        if of_input or shape.kind.endswith(("std", "rms")):
            continue
        if shape.map not in chosen or shape.vectors < chosen[shape.map].vectors:
            chosen[shape.map] = shape
    parts = []
    for shape in chosen.values() or shapes.values():
        vector = values[shape.name].mean(dim=0)
        scale = (vector - vector.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        parts.append(vector / scale if scale > 0 else vector)
    joined = torch.cat(parts, dim=1)[None]
    return float(neighbour_purity(joined, labels.to(joined.device))[0])


def _check_varied(bank: Bank) -> None:
    """Refuse an encoder that gives the same for every image: there is nothing to measure."""
    if all(not bool((v - v[:, :1]).any()) for v in bank.values()):
        raise DriftkitError(
            "every feature is the same for all images; expected features that differ: "
            "the weights are broken, or the images are all alike"
        )
