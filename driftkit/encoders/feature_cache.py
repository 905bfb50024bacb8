"""Features of real images, computed once and mapped from disk: the encoder then sees only generated images.

A cache is a folder whose name is a digest of everything its content follows from. It holds a card, the mean features,
and shards of consecutive images. A shard is written whole or not at all, so that an interrupted build is continued.
Every image's features have a checksum, which is verified when they are first used: reading tens of GiB at every start
would take longer than many a run.

What is computed of an image is a `CacheSource`: features of an encoder here, latents in `latent_cache`.
"""

import contextlib
import math
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel

from driftkit.encoders.feature_sets import FeatureGroup, FeatureSet
from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.errors import ArtifactError, DriftkitError, NotFoundError, ResourceError
from driftkit.protocols import Execution
from driftkit.runtime.device import copy_to
from driftkit.runtime.progress import phase, progress, silent
from driftkit.runtime.ranks import Ranks
from driftkit.storage.files import digest_json, read_tensors, state_digest, write_tensors
from driftkit.storage.images import to_float
from driftkit.storage.lock import locked_file
from driftkit.storage.records import Record

SHARD_IMAGES = 1024
BATCH = 128  # images the encoder sees at a time while the cache is built
NumberFormat = Literal["bfloat16", "float16"]
CARD_FILE, OFFSET_FILE = "card.json", "offset.safetensors"
OFFSET_IMAGES = 512  # whose mean the features are kept as differences from
SPARE_BYTES = 2**28  # left free on the disk


class CachedGroup(BaseModel):
    """One feature group: L vectors per image, C channels."""

    map: str
    kind: str
    vectors: int
    channels: int


class FeatureCacheCard(Record):
    """What a cache holds: image i is in shard i // shard_images, row i % shard_images; then flip, then the groups."""

    kind: ClassVar[str] = "feature cache"

    key: dict[str, Any]  # everything that the features of an image follow from
    groups: tuple[CachedGroup, ...]
    count: int
    flips: bool
    shard_images: int
    number_format: NumberFormat = "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        """That of the numbers on disk."""
        dtype: torch.dtype = getattr(torch, self.number_format)
        return dtype

    @property
    def folder_name(self) -> str:
        return digest_json(self.document())[:32]

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
        images = self.images_of(shard)
        return images.stop - images.start, 1 + self.flips, self.width

    @property
    def num_bytes(self) -> int:
        return self.count * (1 + self.flips) * self.width * self.dtype.itemsize


class CacheSource(ABC):
    """What a cache's content is computed by."""

    key: Mapping[str, Any]  # everything that the content of an image follows from
    device: torch.device  # where it is computed
    number_format: ClassVar[NumberFormat]  # of the numbers on disk
    fewer_bytes: ClassVar[str]  # what takes less room, for the error of a full disk

    @abstractmethod
    def groups(self, images: torch.Tensor) -> list[FeatureGroup]:
        """What is kept of uint8 images [N, 3, H, W]. Raises DriftkitError: some of it cannot be kept."""

    def rows(self, images: torch.Tensor) -> torch.Tensor:
        """The same, float32 [N, width] on the CPU."""
        flat = torch.cat([g.values.transpose(0, 1).flatten(1).float() for g in self.groups(images)], dim=1)
        return flat.cpu()


@dataclass(frozen=True)
class FeatureSource(CacheSource):
    """What a cache's features are computed by."""

    encoder: FrozenEncoder  # on `device`
    features: FeatureSet  # makes groups of the encoder's maps
    key: Mapping[str, Any]  # everything that the features of an image follow from
    device: torch.device  # where the encoder is
    execution: Execution = field(default_factory=Execution)  # the context it runs in
    number_format: ClassVar[NumberFormat] = "bfloat16"
    fewer_bytes: ClassVar[str] = "leave out `objective.cache_features`, choose a smaller `objective.feature_set`"

    def groups(self, images: torch.Tensor) -> list[FeatureGroup]:
        """Feature groups of uint8 images [N, 3, H, W]. Raises DriftkitError: one is not finite."""
        with torch.no_grad(), self.execution.autocast():
            real = to_float(images.to(self.device)).contiguous(memory_format=torch.channels_last)
            groups = self.features(self.encoder.maps(real), real)
        bad = [g.name for g in groups if not bool(torch.isfinite(g.values).all())]
        if bad:
            raise DriftkitError(f"features of real images are not finite: {', '.join(bad)}; none of them were cached")
        return groups


@dataclass(frozen=True)
class Shard:
    """Features of consecutive images, as differences from the mean features."""

    features: torch.Tensor  # of the card's number format, [n, orientations, width]
    checksums: torch.Tensor  # CRC-32 of each image's features, int64 [n, orientations]

    def is_damaged(self, row: int, flip: int) -> bool:
        return checksum(self.features[row, flip]) != int(self.checksums[row, flip])

    def damaged(self) -> list[int]:
        """Rows whose features are not those that were written; reads everything."""
        count, orientations = self.checksums.shape
        return [row for row in range(count) if any(self.is_damaged(row, flip) for flip in range(orientations))]


class FeatureCache:
    """An open, complete cache.

    Features are kept as differences from their mean, `offset`, float32 [width]: bfloat16 has 8 bits, and many features
    (means, standard deviations) differ between images by less than 1/256 of their size.
    """

    def __init__(self, folder: Path, card: FeatureCacheCard, offset: torch.Tensor, shards: Sequence[Shard]):
        self.folder, self.card, self.offset, self.shards = folder, card, offset, shards
        self._verified = torch.zeros(card.count, 1 + card.flips, dtype=torch.bool)

    def groups(self, indices: torch.Tensor, flips: torch.Tensor, *, device: torch.device) -> list[FeatureGroup]:
        """Feature groups of images of the pack: [L, N, C], float32 on the device, in the order of the feature set.

        Args:
            indices: which images, int64 [N].
            flips: which of them are mirrored, bool [N].

        Raises ArtifactError where features are not those that were written.
        """
        self.offset = self.offset.to(device)
        rows = [self._row(image, int(flip)) for image, flip in zip(indices.tolist(), flips.tolist(), strict=True)]
        features = copy_to(torch.stack(rows), device).float() + self.offset
        parts = features.split([g.vectors * g.channels for g in self.card.groups], dim=1)
        return [
            FeatureGroup(g.map, g.kind, part.view(len(rows), g.vectors, g.channels).transpose(0, 1))
            for g, part in zip(self.card.groups, parts, strict=True)
        ]

    def _row(self, image: int, flip: int) -> torch.Tensor:
        number, row = divmod(image, self.card.shard_images)
        shard = self.shards[number]
        if not self._verified[image, flip]:
            if shard.is_damaged(row, flip):
                raise ArtifactError(
                    f"{shard_path(self.folder, number)} is damaged: the features of image {image} are not those that "
                    "were written; remove the file to have it built again"
                )
            self._verified[image, flip] = True
        return shard.features[row, flip]


def checksum(row: torch.Tensor) -> int:
    """CRC-32 of the bytes of a tensor."""
    return zlib.crc32(row.contiguous().view(torch.uint8).numpy().data)


def open_cache(
    root: Path,
    images: torch.Tensor,
    source: CacheSource,
    *,
    flips: bool,
    ranks: Ranks,
    shard_images: int = SHARD_IMAGES,
) -> FeatureCache:
    """The cache of these images' features; shards that are missing are built first. All ranks share the work.

    Args:
        root: folder that holds caches, seen by all ranks.
        images: uint8 [N, 3, H, W].
        flips: also keep the features of the mirrored images.

    Raises:
        ResourceError: the disk lacks room for it.
        ArtifactError: the cache is damaged.
        DriftkitError: a feature is not finite.
    """
    groups = tuple(
        CachedGroup(map=g.map, kind=g.kind, vectors=g.values.shape[0], channels=g.values.shape[2])
        for g in source.groups(images[:1])
    )
    card = FeatureCacheCard(
        key=dict(source.key),
        groups=groups,
        count=len(images),
        flips=flips,
        shard_images=shard_images,
        number_format=source.number_format,
    )
    folder = root / card.folder_name
    if missing := _missing(folder, card, source, ranks):
        if ranks.is_main:
            _require_room(folder, card, len(missing), source.fewer_bytes)
        with locked_file(folder) if ranks.is_main else contextlib.nullcontext():
            ranks.barrier()
            # Another process may have built them while this one waited for the lock.
            if missing := _missing(folder, card, source, ranks):
                _build(folder, card, images, source, ranks, missing)
    offset = read_offset(folder, card)
    return FeatureCache(folder, card, offset, [read_shard(folder, n, card, offset) for n in range(card.num_shards)])


def read_card(folder: Path) -> FeatureCacheCard:
    """The card of the cache in a folder. Raises ArtifactError: it is absent, damaged or of another cache."""
    card = FeatureCacheCard.read(folder / CARD_FILE)
    if card.folder_name != folder.resolve().name:
        raise ArtifactError(f"{folder / CARD_FILE} is the card of another cache; remove the folder to build it again")
    return card


def read_offset(folder: Path, card: FeatureCacheCard) -> torch.Tensor:
    """Mean features from which all others are differences, float32 [width]; ArtifactError where damaged or absent."""
    path = folder / OFFSET_FILE
    tensors, header = _read(path, {"offset": (torch.float32, (card.width,))})
    if header.get("sha256") != state_digest(tensors):
        raise ArtifactError(f"{path} is damaged; remove the folder to have the cache built again")
    return tensors["offset"]


def read_shard(folder: Path, number: int, card: FeatureCacheCard, offset: torch.Tensor) -> Shard:
    """One file of a cache, mapped; its checksums are not verified.

    Raises ArtifactError where it is absent, damaged, or of another place or cache.
    """
    path = shard_path(folder, number)
    shape = card.shape_of(number)
    tensors, header = _read(path, {"features": (card.dtype, shape), "checksums": (torch.int64, shape[:2])})
    if header != {**header, **_shard_header(folder, number, offset)}:
        raise ArtifactError(
            f"{path} is of another place or cache, or was made with another {OFFSET_FILE}; remove it to build it again"
        )
    return Shard(tensors["features"], tensors["checksums"])


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{shard:05d}.safetensors"


def _shard_header(folder: Path, number: int, offset: torch.Tensor) -> dict[str, str]:
    return {"offset": state_digest({"offset": offset}), "shard": str(number), "cache": folder.resolve().name}


def _read(
    path: Path, expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise NotFoundError(f"{path} is not there: processes on several machines need one DRIFTKIT_CACHE they all see")
    tensors, header = read_tensors(path)
    for name, (dtype, shape) in expected.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ArtifactError(f"{path} is damaged: expected {name} {list(shape)}; remove it to build it again")
    return tensors, header


def _missing(folder: Path, card: FeatureCacheCard, source: CacheSource, ranks: Ranks) -> list[int]:
    """What is missing for one rank is missing for all: their file systems may show them different folders."""
    absent = torch.tensor([float(not shard_path(folder, s).is_file()) for s in range(card.num_shards)])
    return ranks.max(absent.to(source.device)).nonzero().flatten().tolist()


def _require_room(folder: Path, card: FeatureCacheCard, num_missing: int, fewer_bytes: str) -> None:
    needed = card.num_bytes * num_missing // card.num_shards
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed + SPARE_BYTES > free:
        raise ResourceError(
            f"the cache needs {needed / 2**30:.1f} GiB in {folder.parent} and {free / 2**30:.1f} GiB are free; "
            f"{fewer_bytes}, or let DRIFTKIT_CACHE name a larger disk"
        )


def _build(
    folder: Path,
    card: FeatureCacheCard,
    images: torch.Tensor,
    source: CacheSource,
    ranks: Ranks,
    missing: list[int],
) -> None:
    if ranks.is_main:
        if not (folder / OFFSET_FILE).is_file():  # it stays once it is there: every shard depends on it
            some = images[torch.linspace(0, len(images) - 1, min(OFFSET_IMAGES, len(images))).long()]
            with phase(f"mean features of {len(some):,} real images"):
                mean = {"offset": torch.cat([source.rows(part) for part in some.split(BATCH)]).mean(0)}
            write_tensors(folder / OFFSET_FILE, mean, header={"sha256": state_digest(mean)})
        card.write(folder / CARD_FILE)
    ranks.barrier()
    own = missing[ranks.rank :: ranks.world_size]
    offset = read_offset(folder, card)
    title = f"encoding real images once ({card.num_bytes / 2**30:.2f} GiB)"
    with progress(title, sum(card.shape_of(n)[0] for n in own)) if ranks.is_main else silent() as advance:
        for number in own:
            rows = _encode_shard(images[card.images_of(number)], source, offset, card, advance)
            checksums = torch.tensor([[checksum(row) for row in orientations] for orientations in rows])
            header = _shard_header(folder, number, offset)
            write_tensors(shard_path(folder, number), {"features": rows, "checksums": checksums}, header=header)
    ranks.barrier()


def _encode_shard(
    images: torch.Tensor,
    source: CacheSource,
    offset: torch.Tensor,
    card: FeatureCacheCard,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """The features of a shard, [n, orientations, width]."""
    rows = torch.empty((len(images), 1 + card.flips, card.width), dtype=card.dtype)
    first = 0
    for part in images.split(BATCH):
        for orientation in range(1 + card.flips):
            features = source.rows(part.flip(-1) if orientation else part)
            rows[first : first + len(part), orientation] = (features - offset).to(card.dtype)
        first += len(part)
        advance(len(part))
    return rows
