"""What the drifting field sees through an encoder, measured on real images and on corrupted versions of them.

Everything goes through the field that training uses, at its batch size and with its normalization (one feature scale
per vector). What the numbers mean for training is in `verdict`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import INPUT, FeatureGroup
from driftkit.errors import DriftkitError
from driftkit.methods.drifting import aggregated_drift
from driftkit.methods.drifting.distance import pairwise_distance
from driftkit.probing.feature_statistics import (
    distance_concentration,
    effective_rank,
    kernel_statistics,
    neighbour_purity,
    participation_ratio,
    pixel_alignment,
    signal_share,
    spectrum,
)
from driftkit.probing.probe_images import (
    CLASS_REPEATS,
    CORRUPTIONS,
    ONE_CLASS,
    CorruptionSpec,
    ProbeImages,
    num_anchors,
    one_class_count,
    pool_size,
)
from driftkit.probing.probe_record import EncoderMeasurement, GroupMeasurement, KernelMeasurement, Separation
from driftkit.runtime.progress import Report, no_report, phase
from driftkit.runtime.random import generator_for
from driftkit.storage.images import to_float, to_uint8

Bank = dict[str, torch.Tensor]
"""Group name -> its picked vectors, [L, N, C] float32."""

FIELD_VECTORS = 16  # of a group, in the field: a 4x4 grid whole, a drawn part of larger ones
STATISTIC_VECTORS = 4  # of a group, in neighbour purity and rank, whose cost grows with the square of the images
CHUNK_PIXELS = 2**19  # that go through the encoder at a time: its activations stay below a few hundred MB
MAX_REPEATS = 4
RANK_IMAGES = 1000


@dataclass(frozen=True)
class GroupShape:
    """One feature group, and which of its vectors are measured."""

    name: str
    map: str
    kind: str
    vectors: int
    channels: int
    picks: torch.Tensor  # int64


class ProbeFeatures:
    """Features of uint8 images, some at a time; which vectors are kept is drawn once, with the first images."""

    def __init__(self, encoders: EncoderUnion, seed: int, report: Report, *, total: int):
        self.encoders = encoders
        self.seed = seed
        self.report = report
        self.total = total
        self.shapes: dict[str, GroupShape] = {}
        self.chunk = max(2, min(256, CHUNK_PIXELS // encoders.input_size**2))
        self.device = encoders.device

    def __call__(self, images: torch.Tensor, limit: int = FIELD_VECTORS) -> Bank:
        """The first `limit` picked vectors of uint8 images [N, 3, H, W]. Raises DriftkitError: one is not finite."""
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self.shapes}
        with torch.no_grad():  # not inference mode: `picks` made in it could not take part in a gradient later
            for part in images.split(self.chunk) if len(images) else ():
                for group in self.groups_of(self.inputs(part)):
                    values = group.values[:limit].float()
                    if not bool(torch.isfinite(values).all()):
                        raise DriftkitError(
                            f"features {group.name} of {self.encoders.name} are not finite on real images; "
                            "expected numbers: its weights are broken, or the input does not fit it"
                        )
                    parts.setdefault(group.name, []).append(values)
                self.report("features", len(part), self.total)
        return {
            name: torch.cat(values, dim=1) if values else torch.empty(min(limit, len(shape.picks)), 0, shape.channels)
            for (name, values), shape in zip(parts.items(), self.shapes.values(), strict=True)
        }

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images as the encoder takes them."""
        return to_float(images).to(self.device)

    def groups_of(self, inputs: torch.Tensor) -> list[FeatureGroup]:
        """The picked vectors of float images [N, 3, H, W] in [-1, 1], with gradient to them."""
        groups = self.encoders.groups(inputs)
        picks = [self._shape(g).picks.to(g.values.device) for g in groups]
        return [FeatureGroup(g.map, g.kind, g.values[p]) for g, p in zip(groups, picks, strict=True)]

    def _shape(self, group: FeatureGroup) -> GroupShape:
        if group.name not in self.shapes:
            vectors, _, channels = group.values.shape
            # Drawn, since every so-many-th place of a square map would be one of its columns.
            picks = torch.randperm(vectors, generator=generator_for(self.seed, f"probe-vectors/{group.name}"))
            kept = picks[:FIELD_VECTORS]
            self.shapes[group.name] = GroupShape(group.name, group.map, group.kind, vectors, channels, kept)
        return self.shapes[group.name]


@dataclass(frozen=True)
class _Drifts:
    """Of one group: norms [R, T] and signal shares [T]."""

    norm: torch.Tensor
    signal: torch.Tensor


@dataclass(frozen=True)
class _Batches:
    """Which images of two pools form the batches: the same anchors in all, and others that no two batches share."""

    x: list[torch.Tensor]
    y: list[torch.Tensor]
    anchors: int
    taus: tuple[float, ...]

    def drifts(self, x: Bank, y: Bank) -> dict[str, _Drifts]:
        """Field of every batch, by group; x plays the generated images."""
        return {name: self._drifts(x[name], y[name]) for name in x}

    def _drifts(self, x: torch.Tensor, y: torch.Tensor) -> _Drifts:
        """Every temperature by itself: the normalized sum over them would hide which one helps."""
        norms, signals = [], []
        for tau in self.taus:
            at_anchors, norm = [], []
            for x_at, y_at in zip(self.x, self.y, strict=True):
                drift = aggregated_drift(x[:, x_at], y[:, y_at], taus=(tau,), scale_over="location")
                at_anchors.append(drift.v[:, : self.anchors])
                norm.append(drift.drift_scale[0].mean())
            norms.append(torch.stack(norm))
            signals.append(signal_share(torch.stack(at_anchors)).mean())
        return _Drifts(torch.stack(norms, dim=1).double().cpu(), torch.stack(signals).double().cpu())


def measure_encoder(
    encoders: EncoderUnion,
    images: ProbeImages,
    *,
    batch_size: int,
    taus: tuple[float, ...],
    seed: int = 0,
    report: Report = no_report,
) -> EncoderMeasurement:
    """Measure every feature group; the same arguments give the same numbers.

    Args:
        encoders: on the device to measure on.
        images: at least 4 * batch_size real ones.
        batch_size: generated images per step, and as many real ones.
        taus: temperatures to try.
        report: progress (task, just done, total).

    Raises:
        ValueError: too few images.
        DriftkitError: features that are not finite, or all of them constant.
    """
    count = len(images.real)
    repeats = min(MAX_REPEATS, count // (2 * batch_size))
    if repeats < 2:
        raise ValueError(f"got {count} images, expected at least {4 * batch_size} for batches of {batch_size}")
    half = repeats * batch_size
    num_encoded = count + len(CORRUPTIONS) * half + len(images.one_class) * one_class_count(batch_size)
    features = ProbeFeatures(encoders, seed, report, total=num_encoded)
    report("features", 0, num_encoded)
    x_images = images.real[:half]
    x, y = features(x_images), features(images.real[half : 2 * half])
    remaining = features(images.real[2 * half :], STATISTIC_VECTORS)
    _require_varied(x)
    batches = _batches(half, batch_size, repeats, taus, seed)
    with phase("field between real images"):
        floors = _floors(x, y, batches)
    steps = 2 * len(CORRUPTIONS) + bool(images.one_class)
    separation: dict[str, dict[str, Separation]] = {name: {} for name in floors}
    sensitivity: dict[str, dict[str, float]] = {name: {} for name in floors}
    for spec in CORRUPTIONS:
        corrupted_images = _corrupted(spec, x_images, seed)
        corrupted = features(corrupted_images)
        drifts = batches.drifts(corrupted, y)
        pixels = relative_change(to_float(x_images).flatten(1)[None], to_float(corrupted_images).flatten(1)[None])
        for name, floor in floors.items():
            separation[name][spec.name] = _separation([drifts[name]], floor)
            if spec.per_image and pixels > 0:  # grey images made grey do not change
                sensitivity[name][spec.name] = relative_change(x[name], corrupted[name]) / pixels
        report("field", 1, steps, unit="measurements")
    if images.one_class:
        class_batches = _batches(half, batch_size, CLASS_REPEATS, taus, seed)
        pools = [features(pool[: one_class_count(batch_size)]) for pool in images.one_class]
        by_class = [class_batches.drifts(pool, y) for pool in pools]
        for name, floor in floors.items():
            separation[name][ONE_CLASS] = _separation([drifts[name] for drifts in by_class], floor)
        report("field", 1, steps, unit="measurements")
    alignment = {}
    for spec in CORRUPTIONS:  # on the first batch
        if spec.is_reversible:
            clean = images.real[batches.x[0]]
            alignment[spec.name] = pixel_alignment(
                features.groups_of,
                features.inputs(_corrupted(spec, clean, seed)),
                features.inputs(clean),
                features.inputs(images.real[half + batches.y[0]]),
                taus=taus,
                chunk=max(2, features.chunk // 4),
            )
        report("field", 1, steps, unit="measurements")
    statistics, groups = {}, []
    for name, shape in features.shapes.items():
        vectors = [v[:STATISTIC_VECTORS] for v in (x[name], y[name], remaining[name]) if v.shape[1]]
        few = statistics[name] = torch.cat(vectors, dim=1)  # a few vectors of all images
        first = x[name][:, batches.x[0]], y[name][:, batches.y[0]]  # one batch of real images, and another
        shares = [spectrum(vector[:RANK_IMAGES]) for vector in few]
        labels = images.labels
        groups.append(
            GroupMeasurement(
                name=name,
                map=shape.map,
                kind=shape.kind,
                vectors=shape.vectors,
                channels=shape.channels,
                distance_concentration=float(distance_concentration(first[0]).mean()),
                purity=None if labels is None else float(neighbour_purity(few, labels.to(few.device)).mean()),
                effective_rank=sum(map(effective_rank, shares)) / len(shares),
                participation_ratio=sum(map(participation_ratio, shares)) / len(shares),
                kernel=_kernel(*first, floors[name], taus),
                sensitivity=sensitivity[name],
                separation=separation[name],
            )
        )
    purity = None if images.labels is None else _joined_purity(features.shapes, statistics, images.labels)
    return EncoderMeasurement(groups, purity, alignment, repeats)


def _corrupted(spec: CorruptionSpec, images: torch.Tensor, seed: int) -> torch.Tensor:
    """uint8 to uint8, as a generator's images are when they are stored."""
    return to_uint8(spec.apply(to_float(images), generator_for(seed, f"probe-{spec.name}")))


def _batches(y_count: int, batch_size: int, repeats: int, taus: tuple[float, ...], seed: int) -> _Batches:
    """Batches for a pool of `pool_size` or more x and `y_count` y; every batch starts with the anchors."""
    anchors = num_anchors(batch_size)
    x_order = torch.randperm(pool_size(batch_size, repeats), generator=generator_for(seed, "probe-x"))
    y_order = torch.randperm(y_count, generator=generator_for(seed, "probe-y"))
    fixed, others = x_order[:anchors], x_order[anchors:].split(batch_size - anchors)
    x = [torch.cat([fixed, other]) for other in others]
    return _Batches(x, list(y_order.split(batch_size)[:repeats]), anchors, taus)


def _floors(x: Bank, y: Bank, batches: _Batches) -> dict[str, _Drifts]:
    """Field between real images, each pool once on either side."""
    forth, back = batches.drifts(x, y), batches.drifts(y, x)
    return {
        name: _Drifts(torch.cat([forth[name].norm, back[name].norm]), (forth[name].signal + back[name].signal) / 2)
        for name in forth
    }


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


def _kernel(x: torch.Tensor, y: torch.Tensor, floor: _Drifts, taus: tuple[float, ...]) -> list[KernelMeasurement]:
    kernel = kernel_statistics(x, y, taus=taus)
    perplexity, spread = kernel["perplexity"].mean(dim=1).tolist(), kernel["logit_spread"].mean(dim=1).tolist()
    mean, sd = floor.norm.mean(dim=0).tolist(), floor.norm.std(dim=0).tolist()
    return [
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
    ]


def relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    """Mean distance a version has from its original, over the mean distance of different originals: [L, N, C] -> []."""
    changed = (after - before).square().sum(dim=2).sqrt().mean(dim=1)  # [L]
    some = before[:, :512]
    centred = some - some.mean(dim=1, keepdim=True)
    count = centred.shape[1]
    apart = pairwise_distance(centred, centred, self_at=0).sum(dim=(1, 2)) / (count * (count - 1))
    return float(torch.where(apart > 0, changed / torch.where(apart > 0, apart, 1.0), 0.0).mean())


def _joined_purity(shapes: dict[str, GroupShape], values: Bank, labels: torch.Tensor) -> float:
    """Class purity of each map's global vector (the mean of its fewest places), scaled to unit spread, joined."""
    chosen: dict[str, GroupShape] = {}
    for shape in shapes.values():
        of_input = shape.map == INPUT and len({s.map for s in shapes.values()}) > 1
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


def _require_varied(bank: Bank) -> None:
    """Refuse an encoder that gives the same for every image: there is nothing to measure."""
    if all(not bool((v - v[:, :1]).any()) for v in bank.values()):
        raise DriftkitError(
            "every feature is the same for all images; expected features that differ: "
            "the weights are broken, or the images are all alike"
        )
