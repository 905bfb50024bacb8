"""Features of real images, computed once and mapped from disk: the encoder then sees only generated images.

A cache is a folder whose name is a digest of everything its content follows from. It holds a card and shards of
consecutive images; a shard is written whole or not at all, so that an interrupted build goes on where it stopped.
Every image's features come with a checksum, which is looked at when they are first used: reading tens of GiB at every
start would take longer than many a run.
"""

import contextlib
import math
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftkit.encoders.features import FeatureGroup, FeatureSet
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import ArtifactError, DriftkitError, NotFoundError, ResourceError
from driftkit.protocols import Execution
from driftkit.runtime.device import copy_to
from driftkit.runtime.progress import progress, silent
from driftkit.runtime.ranks import Ranks
from driftkit.storage.files import digest_json, read_json, read_tensors, state_digest, write_json, write_tensors
from driftkit.storage.images import to_float
from driftkit.storage.lock import locked_file

FORMAT = 2
KIND = "feature cache"
SHARD_IMAGES = 1024
BATCH = 128  # images the encoder sees at a time while the cache is built
DTYPE = torch.bfloat16
OFFSET_FILE = "offset.safetensors"
OFFSET_IMAGES = 512  # whose mean the features are kept as differences from
SPARE_BYTES = 2**28  # left free on the disk


@dataclass(frozen=True)
class CachedGroup:
    """What the cache knows of one feature group: its names, L vectors per image, C channels."""

    map: str
    kind: str
    vectors: int
    channels: int


@dataclass(frozen=True)
class CacheLayout:
    """Where the features of image i stand: shard i // shard_images, row i % shard_images, flip, then the groups."""

    groups: tuple[CachedGroup, ...]
    count: int
    flips: bool
    shard_images: int

    @property
    def width(self) -> int:
        """Numbers per image and orientation."""
        return sum(g.vectors * g.channels for g in self.groups)

    @property
    def num_shards(self) -> int:
        return math.ceil(self.count / self.shard_images)

    def images_of(self, shard: int) -> slice:
        return slice(shard * self.shard_images, min((shard + 1) * self.shard_images, self.count))

    def shape_of(self, shard: int) -> tuple[int, int, int]:
        """[images, orientations, width] of a shard."""
        which = self.images_of(shard)
        return which.stop - which.start, 1 + self.flips, self.width

    @property
    def num_bytes(self) -> int:
        return self.count * (1 + self.flips) * self.width * DTYPE.itemsize


@dataclass(frozen=True)
class FeatureSource:
    """What a cache's features are made by.

    Attributes:
        features: makes groups of the encoder's maps.
        key: everything that the features of an image follow from.
        device: where the encoder is.
        how: the context it runs in.
    """

    encoder: FrozenEncoder
    features: FeatureSet
    key: Mapping[str, Any]
    device: torch.device
    how: Execution = field(default_factory=Execution)

    def groups(self, images: torch.Tensor) -> list[FeatureGroup]:
        """Feature groups of uint8 images [N, 3, H, W].

        Raises:
            DriftkitError: one is not finite.
        """
        with torch.no_grad(), self.how.autocast():
            real = to_float(images.to(self.device)).contiguous(memory_format=torch.channels_last)
            groups = self.features(self.encoder.maps(real), real)
        bad = [g.name for g in groups if not bool(torch.isfinite(g.values).all())]
        if bad:
            raise DriftkitError(f"features of real images are not finite: {', '.join(bad)}; nothing was cached of them")
        return groups

    def rows(self, images: torch.Tensor) -> torch.Tensor:
        """The same, float32 [N, width] on the CPU."""
        flat = torch.cat([g.values.transpose(0, 1).flatten(1).float() for g in self.groups(images)], dim=1)
        return flat.cpu()


class FeatureCache:
    """An open, complete cache.

    Features are kept as differences from the pack's mean: bfloat16 has 8 bits, and many features (means, standard
    deviations) differ between images by less than 1/256 of their size.

    Args:
        folder: of the cache.
        layout: what stands where.
        offset: mean features, float32 [width].
        shards: what each file holds, mapped.
    """

    def __init__(self, folder: Path, layout: CacheLayout, offset: torch.Tensor, shards: Sequence["Shard"]):
        self.folder, self.layout, self.offset, self.shards = folder, layout, offset, shards
        self._seen = torch.zeros(layout.count, 1 + layout.flips, dtype=torch.bool)

    def groups(self, indices: torch.Tensor, flips: torch.Tensor, *, device: torch.device) -> list[FeatureGroup]:
        """Feature groups of images of the pack.

        Args:
            indices: which images, int64 [N].
            flips: which of them are mirrored, bool [N].

        Returns:
            Groups of [L, N, C], float32 on the device, in the order of the feature set.

        Raises:
            ArtifactError: features are not those that were written.
        """
        self.offset = self.offset.to(device)
        rows = [self._row(image, int(flip)) for image, flip in zip(indices.tolist(), flips.tolist(), strict=True)]
        features = copy_to(torch.stack(rows), device).float() + self.offset
        parts = features.split([g.vectors * g.channels for g in self.layout.groups], dim=1)
        return [
            FeatureGroup(g.map, g.kind, part.view(len(rows), g.vectors, g.channels).transpose(0, 1))
            for g, part in zip(self.layout.groups, parts, strict=True)
        ]

    def _row(self, image: int, flip: int) -> torch.Tensor:
        number, place = divmod(image, self.layout.shard_images)
        shard = self.shards[number]
        row = shard.features[place, flip]
        if not self._seen[image, flip]:
            if checksum(row) != int(shard.checksums[place, flip]):
                raise ArtifactError(
                    f"{shard_path(self.folder, number)} is damaged: the features of image {image} are not those that "
                    "were written; remove the file to have it made anew"
                )
            self._seen[image, flip] = True
        return row


@dataclass(frozen=True)
class Shard:
    """Features of consecutive images, as differences from the pack's mean.

    Attributes:
        features: bfloat16 [n, orientations, width].
        checksums: CRC-32 of each image's features, int64 [n, orientations].
    """

    features: torch.Tensor
    checksums: torch.Tensor

    def damaged(self) -> list[int]:
        """Places of images whose features are not those that were written; reads everything."""
        return sorted(
            {
                place
                for place, rows in enumerate(self.features)
                for flip, row in enumerate(rows)
                if checksum(row) != int(self.checksums[place, flip])
            }
        )


def checksum(row: torch.Tensor) -> int:
    """CRC-32 of the bytes of a tensor."""
    return zlib.crc32(row.contiguous().view(torch.uint8).numpy().data)


def open_cache(
    root: Path,
    images: torch.Tensor,
    source: FeatureSource,
    *,
    flips: bool,
    ranks: Ranks,
    shard_images: int = SHARD_IMAGES,
) -> FeatureCache:
    """The cache of these images' features, built first as far as it is not there. All ranks share the work.

    Args:
        root: folder that holds caches, seen by all ranks.
        images: uint8 [N, 3, H, W].
        flips: also keep the features of the mirrored images.
        shard_images: images per file.

    Raises:
        ResourceError: the disk lacks room for it.
        ArtifactError: the cache there is damaged.
        DriftkitError: a feature is not finite.
    """
    described = tuple(
        CachedGroup(g.map, g.kind, g.values.shape[0], g.values.shape[2]) for g in source.groups(images[:1])
    )
    layout = CacheLayout(described, len(images), flips, shard_images)
    document = {"format": FORMAT, "kind": KIND, **source.key, "layout": asdict(layout)}
    folder = root / digest_json(document)[:32]
    if missing := _missing(folder, layout, source, ranks):
        if ranks.is_main:
            _require_room(folder, layout, missing)
        with locked_file(folder) if ranks.is_main else contextlib.nullcontext():
            ranks.barrier()
            # Another process may have made them while this one waited for the lock.
            if missing := _missing(folder, layout, source, ranks):
                _build(folder, document, layout, images, source, ranks, missing)
    return read_cache(folder, layout)


def _missing(folder: Path, layout: CacheLayout, source: FeatureSource, ranks: Ranks) -> list[int]:
    """What is missing for one rank is missing for all: their file systems may show them different folders."""
    absent = torch.tensor([float(not shard_path(folder, s).is_file()) for s in range(layout.num_shards)])
    return ranks.max(absent.to(source.device)).nonzero().flatten().tolist()


def _build(
    folder: Path,
    document: Mapping[str, Any],
    layout: CacheLayout,
    images: torch.Tensor,
    source: FeatureSource,
    ranks: Ranks,
    missing: list[int],
) -> None:
    if ranks.is_main:
        _begin(folder, document, images, source)
    ranks.barrier()
    mine = missing[ranks.rank :: ranks.world_size]
    total = sum(layout.shape_of(shard)[0] for shard in mine)
    offset = read_offset(folder, layout)
    title = f"encoding real images once ({layout.num_bytes / 2**30:.2f} GiB)"
    with progress(title, total) if ranks.is_main else silent() as advance:
        for shard in mine:
            rows = _encode_shard(images[layout.images_of(shard)], source, offset, layout, advance)
            _write_shard(folder, shard, rows, offset)
    ranks.barrier()


def read_cache(folder: Path, layout: CacheLayout) -> FeatureCache:
    """A complete cache that is there.

    Raises:
        ArtifactError: a file is absent, damaged, or one of another place or cache.
    """
    offset = read_offset(folder, layout)
    return FeatureCache(
        folder, layout, offset, [read_shard(folder, n, layout, offset) for n in range(layout.num_shards)]
    )


def read_card(folder: Path) -> CacheLayout:
    """The layout of the cache in a folder.

    Raises:
        ArtifactError: its card is absent, damaged, of another version or of another cache.
    """
    path = folder / "card.json"
    card = read_json(path)
    if card.get("kind") != KIND or card.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} is of kind {card.get('kind')!r} and format {card.get('format')!r}, this driftkit reads "
            f"{KIND} {FORMAT}; remove the folder to have it made anew"
        )
    if digest_json(card)[:32] != folder.resolve().name:
        raise ArtifactError(f"{path} is the card of another cache; remove the folder to have it made anew")
    try:
        found = dict(card["layout"])
        return CacheLayout(**{**found, "groups": tuple(CachedGroup(**group) for group in found["groups"])})
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} describes no cache: {error}; remove the folder to have it made anew") from None


def read_shard(folder: Path, number: int, layout: CacheLayout, offset: torch.Tensor) -> Shard:
    """One file of a cache, mapped; its checksums are not looked at.

    Raises:
        ArtifactError: it is absent, damaged, or one of another place or cache.
    """
    path = shard_path(folder, number)
    shape = layout.shape_of(number)
    tensors, header = _read(path, {"features": (DTYPE, shape), "checksums": (torch.int64, shape[:2])})
    if header.get("shard") != str(number) or header.get("cache") != folder.resolve().name:
        raise ArtifactError(f"{path} is the file of another place or cache; remove it to have it made anew")
    if header.get("offset") != state_digest({"offset": offset}):
        raise ArtifactError(f"{path} was made with another {OFFSET_FILE}; remove the file to have it made anew")
    return Shard(tensors["features"], tensors["checksums"])


def _write_shard(folder: Path, number: int, rows: torch.Tensor, offset: torch.Tensor) -> None:
    checksums = torch.tensor([[checksum(row) for row in both] for both in rows])
    header = {"offset": state_digest({"offset": offset}), "shard": str(number), "cache": folder.resolve().name}
    write_tensors(shard_path(folder, number), {"features": rows, "checksums": checksums}, header=header)


def _require_room(folder: Path, layout: CacheLayout, missing: list[int]) -> None:
    needed = layout.num_bytes * len(missing) // layout.num_shards
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed + SPARE_BYTES > free:
        raise ResourceError(
            f"the feature cache needs {needed / 2**30:.1f} GiB in {folder.parent} and {free / 2**30:.1f} GiB are free; "
            "leave out --cache-features, choose a smaller feature set, or let DRIFTKIT_CACHE name a larger disk"
        )


def _begin(folder: Path, document: Mapping[str, Any], images: torch.Tensor, source: FeatureSource) -> None:
    """The card, and the mean features of some images, which every shard needs. Both stay as they are once there."""
    if not (folder / OFFSET_FILE).is_file():
        some = images[torch.linspace(0, len(images) - 1, min(OFFSET_IMAGES, len(images))).long()]
        offset = torch.cat([source.rows(p) for p in some.split(BATCH)]).mean(0)
        write_tensors(folder / OFFSET_FILE, {"offset": offset}, header={"sha256": state_digest({"offset": offset})})
    write_json(folder / "card.json", document)


def _encode_shard(
    images: torch.Tensor,
    source: FeatureSource,
    offset: torch.Tensor,
    layout: CacheLayout,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """bfloat16 [n, orientations, width]."""
    rows = torch.empty((len(images), 1 + layout.flips, layout.width), dtype=DTYPE)
    first = 0
    for part in images.split(BATCH):
        for orientation in range(1 + layout.flips):
            features = source.rows(part.flip(-1) if orientation else part)
            rows[first : first + len(part), orientation] = (features - offset).to(DTYPE)
        first += len(part)
        advance(len(part))
    return rows


def read_offset(folder: Path, layout: CacheLayout) -> torch.Tensor:
    """The mean features from which all others are differences, float32 [width].

    Raises:
        ArtifactError: they are absent or damaged.
    """
    path = folder / OFFSET_FILE
    tensors, header = _read(path, {"offset": (torch.float32, (layout.width,))})
    if header.get("sha256") != state_digest(tensors):
        raise ArtifactError(f"{path} is damaged; remove the folder to have the cache made anew")
    return tensors["offset"]


def _read(
    path: Path, expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise NotFoundError(f"{path} is not there: processes on several machines need one DRIFTKIT_CACHE they all see")
    tensors, header = read_tensors(path)
    for name, (dtype, shape) in expected.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ArtifactError(
                f"{path} is damaged: expected {name} {list(shape)}; remove the file to have it made anew"
            )
    return tensors, header


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{shard:05d}.safetensors"
