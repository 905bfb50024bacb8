"""What the drifting field would see through an encoder, measured on real images and on wrong versions of them.

Everything goes through the field that training uses, at its batch size and with its normalisation (one feature scale
per vector). Verdicts are drawn elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from driftkit.artifacts.images import to_float
from driftkit.drift.field import aggregated_drift, pairwise_distance
from driftkit.encoders.features import FeatureGroup, FeatureSet
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import DriftkitError
from driftkit.evaluation.corruptions import CORRUPTIONS, ONE_CLASS, CorruptionSpec
from driftkit.evaluation.feature_statistics import (
    distance_concentration,
    effective_rank,
    kernel_statistics,
    neighbour_purity,
    participation_ratio,
    signal_share,
    spectrum,
)
from driftkit.runtime.random import generator_for

Report = Callable[[str, int, int], None]

FIELD_VECTORS = 16  # of a group, in the field: a 4x4 grid whole, a drawn part of larger ones
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
class KernelMeasurement:
    """What the kernel does at one temperature between real images.

    Attributes:
        perplexity, fraction: over how many points a row of the softmax spreads, and that over their number.
        logit_spread: standard deviation of the logits in a row.
        floor, floor_sd: norm of V before it is normalised when both sides are real: mean and standard deviation.
        floor_signal: share of its power that other batches repeat, which should be near 0.
    """

    tau: float
    perplexity: float
    fraction: float
    logit_spread: float
    floor: float
    floor_sd: float
    floor_signal: float


@dataclass(frozen=True)
class Separation:
    """Wrong images against real ones, one value per temperature.

    Attributes:
        ratio: norm of V over the floor; 1 means that the field does not see it.
        z: how many standard deviations of the floor it lies above the floor.
        signal: share of V's power that other batches repeat, less that of real images: what training can follow.
    """

    ratio: list[float]
    z: list[float]
    signal: list[float]


@dataclass(frozen=True)
class GroupMeasurement:
    """One feature group: values are means over its vectors.

    Attributes:
        name, map, kind, vectors, channels: as the feature set made it.
        distance_concentration: standard deviation over mean of the distances between real images.
        purity: share of the 10 nearest neighbours with the same class; None where unlabelled.
        effective_rank, participation_ratio: see `feature_statistics`.
        kernel: per temperature.
        sensitivity: relative change of the features over relative change of the pixels, by corruption.
        separation: by corruption.
    """

    name: str
    map: str
    kind: str
    vectors: int
    channels: int
    distance_concentration: float
    purity: float | None
    effective_rank: float
    participation_ratio: float
    kernel: list[KernelMeasurement]
    sensitivity: dict[str, float] = field(default_factory=dict)
    separation: dict[str, Separation] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderMeasurement:
    """All groups, and the class purity of the whole: every map's global vector, brought to one scale and joined."""

    groups: list[GroupMeasurement]
    purity: float | None
    repeats: int


@dataclass(frozen=True)
class _Design:
    """Which images of a pool form the batches: the same anchors in all, and others that no two batches share."""

    x: list[torch.Tensor]
    y: list[torch.Tensor]
    anchors: int


@dataclass(frozen=True)
class _Drifts:
    """Of one group: norms [R, T] and signal shares [T]."""

    norm: torch.Tensor
    signal: torch.Tensor


Bank = dict[str, torch.Tensor]
"""Group name -> its picked vectors, [L, N, C] float32."""


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
    extract = _Extractor(encoder, feature_set, seed, report, total=_num_extracted(images, repeats, batch_size))
    half = repeats * batch_size
    x_images, y_images = images.real[:half], images.real[half : 2 * half]
    x, y = extract(x_images), extract(y_images)
    rest = extract(images.real[2 * half :], STATISTIC_VECTORS)
    names = list(x)
    _check_varied(x)

    design = _design(half, batch_size, repeats, seed)
    there, back = _drift_banks(x, y, design, taus), _drift_banks(y, x, design, taus)
    floors = {
        name: _Drifts(
            torch.cat([there[name].norm, back[name].norm]), torch.stack([there[name].signal, back[name].signal]).mean(0)
        )
        for name in names
    }
    separation: dict[str, dict[str, Separation]] = {name: {} for name in names}
    sensitivity: dict[str, dict[str, float]] = {name: {} for name in names}
    for spec in CORRUPTIONS:
        wrong_images = _corrupted(spec, x_images, seed)
        wrong = extract(wrong_images)
        drifts = _drift_banks(wrong, y, design, taus)
        pixel_change = _relative_change(*(to_float(i).flatten(1)[None].to(y[names[0]]) for i in (x_images, wrong_images)))
        for name in names:
            separation[name][spec.name] = _separation([drifts[name]], floors[name])
            if spec.per_image:
                sensitivity[name][spec.name] = _relative_change(x[name], wrong[name]) / max(pixel_change, 1e-12)
        report("field", 1, len(CORRUPTIONS) + bool(images.one_class))
    if images.one_class:
        by_class = _one_class(images.one_class, extract, y, batch_size, taus, seed)
        for name in names:
            separation[name][ONE_CLASS] = _separation([drifts[name] for drifts in by_class], floors[name])
        report("field", 1, len(CORRUPTIONS) + 1)
    statistics = {n: torch.cat([v[:STATISTIC_VECTORS] for v in (x[n], y[n], rest[n]) if v.shape[1]], 1) for n in names}
    groups = [
        _group(extract.groups[name], x[name], y[name], statistics[name], images.labels, design, taus,
               floors[name], sensitivity[name], separation[name])
        for name in names
    ]  # fmt: skip
    purity = None if images.labels is None else _joined_purity(extract.groups, statistics, images.labels)
    return EncoderMeasurement(groups, purity, repeats)


@dataclass(frozen=True)
class _GroupShape:
    name: str
    map: str
    kind: str
    vectors: int
    channels: int
    picks: torch.Tensor  # int64, the vectors that are looked at


class _Extractor:
    """Features of uint8 images, some at a time; which vectors are kept is drawn once, with the first images."""

    def __init__(self, encoder: FrozenEncoder, feature_set: FeatureSet, seed: int, report: Report, *, total: int):
        self.encoder = encoder
        self.feature_set = feature_set
        self.seed = seed
        self.report = report
        self.total = total
        self.groups: dict[str, _GroupShape] = {}
        # About 2 MB of input at a time: activations stay below a few hundred MB for every encoder of the table.
        self.chunk = max(2, min(256, 2**19 // encoder.input_size**2))
        buffers = [*encoder.parameters(), *encoder.buffers()]
        self.device = buffers[0].device if buffers else torch.device("cpu")

    def __call__(self, images: torch.Tensor, limit: int = FIELD_VECTORS) -> Bank:
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self.groups}
        with torch.inference_mode():
            for part in images.split(self.chunk) if len(images) else ():
                inputs = to_float(part).to(self.device)
                for group in self.feature_set(self.encoder.maps(inputs), inputs):
                    shape = self._shape(group)
                    values = group.values[shape.picks[:limit].to(group.values.device)].float()
                    if not bool(torch.isfinite(values).all()):
                        raise DriftkitError(
                            f"features {group.name} of {self.encoder.name} are not finite on real images; "
                            "expected numbers: its weights are broken, or the input does not fit it"
                        )
                    parts.setdefault(group.name, []).append(values)
                self.report("features", len(part), self.total)
        return {
            name: torch.cat(values, dim=1) if values else torch.empty(min(limit, len(shape.picks)), 0, shape.channels)
            for (name, values), shape in zip(parts.items(), self.groups.values(), strict=True)
        }

    def _shape(self, group: FeatureGroup) -> _GroupShape:
        if group.name not in self.groups:
            vectors, _, channels = group.values.shape
            # Drawn, since every so-many-th place of a square map would be one of its columns.
            picks = torch.randperm(vectors, generator=generator_for(self.seed, f"probe-vectors/{group.name}"))
            kept = picks[:FIELD_VECTORS]
            self.groups[group.name] = _GroupShape(group.name, group.map, group.kind, vectors, channels, kept)
        return self.groups[group.name]


def _num_extracted(images: ProbeImages, repeats: int, batch_size: int) -> int:
    wrong = len(CORRUPTIONS) * repeats * batch_size
    return len(images.real) + wrong + len(images.one_class) * one_class_count(batch_size)


def _corrupted(spec: CorruptionSpec, images: torch.Tensor, seed: int) -> torch.Tensor:
    """uint8, as a generator's images are when they are stored: nothing hides between two levels."""
    wrong = spec.apply(to_float(images), generator_for(seed, f"probe-{spec.name}"))
    return ((wrong.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


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
    return Separation(ratio.tolist(), z.tolist(), signal.tolist())


def _one_class(
    pools: Sequence[torch.Tensor],
    extract: _Extractor,
    y: Bank,
    batch_size: int,
    taus: tuple[float, ...],
    seed: int,
) -> list[dict[str, _Drifts]]:
    """Field of images of one class against all, for each class that is tried."""
    y_count = next(iter(y.values())).shape[1]
    design = _design(y_count, batch_size, CLASS_REPEATS, seed)
    return [_drift_banks(extract(pool[: one_class_count(batch_size)]), y, design, taus) for pool in pools]


def _relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    """Mean distance a version has from its original, over the mean distance of different originals: [L, N, C] -> []."""
    changed = (after - before).square().sum(dim=2).sqrt().mean(dim=1)  # [L]
    some = before[:, :512]
    centred = some - some.mean(dim=1, keepdim=True)
    count = centred.shape[1]
    apart = pairwise_distance(centred, centred, self_at=0).sum(dim=(1, 2)) / (count * (count - 1))
    return float(torch.where(apart > 0, changed / torch.where(apart > 0, apart, 1.0), 0.0).mean())


def _group(
    shape: _GroupShape,
    x: torch.Tensor,
    y: torch.Tensor,
    statistics: torch.Tensor,
    labels: torch.Tensor | None,
    design: _Design,
    taus: tuple[float, ...],
    floor: _Drifts,
    sensitivity: dict[str, float],
    separation: dict[str, Separation],
) -> GroupMeasurement:
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


def _joined_purity(shapes: dict[str, _GroupShape], values: Bank, labels: torch.Tensor) -> float:
    """Class purity of each map's global vector (the mean of its fewest places), scaled to unit spread, joined."""
    chosen: dict[str, _GroupShape] = {}
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
