"""Features of real images, computed once and mapped from disk: the encoder then sees only generated images.

A cache is a folder whose name is a digest of everything its content follows from. It holds a card and shards of
consecutive images; a shard is written whole or not at all, so that an interrupted build goes on where it stopped.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftkit.artifacts.files import digest_json, read_tensors, state_digest, write_json, write_tensors
from driftkit.artifacts.images import to_float
from driftkit.encoders.features import FeatureGroup, FeatureSet
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import DriftkitError, MissingError, ResourceError
from driftkit.protocols import Execution
from driftkit.runtime.distributed import Ranks
from driftkit.runtime.progress import progress, silent

FORMAT = 1
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
        shards: bfloat16 [n, orientations, width] each, mapped.
    """

    def __init__(self, folder: Path, layout: CacheLayout, offset: torch.Tensor, shards: Sequence[torch.Tensor]):
        self.folder, self.layout, self.offset, self.shards = folder, layout, offset, shards

    def groups(self, indices: torch.Tensor, flips: torch.Tensor, *, device: torch.device) -> list[FeatureGroup]:
        """Feature groups of images of the pack.

        Args:
            indices: which images, int64 [N].
            flips: which of them are mirrored, bool [N].

        Returns:
            Groups of [L, N, C], float32 on the device, in the order of the feature set.
        """
        size = self.layout.shard_images
        self.offset = self.offset.to(device)
        rows = [
            self.shards[image // size][image % size, int(flip)]
            for image, flip in zip(indices.tolist(), flips.tolist(), strict=True)
        ]
        features = torch.stack(rows).to(device).float() + self.offset
        parts = features.split([g.vectors * g.channels for g in self.layout.groups], dim=1)
        return [
            FeatureGroup(g.map, g.kind, part.view(len(rows), g.vectors, g.channels).transpose(0, 1))
            for g, part in zip(self.layout.groups, parts, strict=True)
        ]


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
        MissingError: the cache there is damaged.
        DriftkitError: a feature is not finite.
    """
    described = tuple(
        CachedGroup(g.map, g.kind, g.values.shape[0], g.values.shape[2]) for g in source.groups(images[:1])
    )
    layout = CacheLayout(described, len(images), flips, shard_images)
    document = {"format": FORMAT, "kind": "feature cache", **source.key, "layout": asdict(layout)}
    folder = root / digest_json(document)[:32]
    # What is missing for one rank is missing for all: their file systems may show them different folders.
    absent = torch.tensor([float(not _shard_path(folder, s).is_file()) for s in range(layout.num_shards)])
    missing = ranks.max(absent.to(source.device)).nonzero().flatten().tolist()
    if missing:
        if ranks.is_main:
            _require_room(folder, layout, missing)
            _begin(folder, document, images, source)
        ranks.barrier()
        mine = missing[ranks.rank :: ranks.world_size]
        total = sum(layout.shape_of(shard)[0] for shard in mine)
        offset = _read(folder / OFFSET_FILE, "offset", (layout.width,), torch.float32)
        title = f"encoding real images once ({layout.num_bytes / 2**30:.2f} GiB)"
        with progress(title, total) if ranks.is_main else silent() as advance:
            for shard in mine:
                rows = _encode_shard(images[layout.images_of(shard)], source, offset, layout, advance)
                header = {"offset": state_digest({"offset": offset})}
                write_tensors(_shard_path(folder, shard), {"features": rows}, header=header)
        ranks.barrier()
    offset = _read(folder / OFFSET_FILE, "offset", (layout.width,), torch.float32)
    # Two processes that begin one cache at once may each write an offset: shards of the one that lost say so.
    digest = state_digest({"offset": offset})
    shards = [
        _read(_shard_path(folder, shard), "features", layout.shape_of(shard), DTYPE, offset_digest=digest)
        for shard in range(layout.num_shards)
    ]
    return FeatureCache(folder, layout, offset, shards)


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
        write_tensors(folder / OFFSET_FILE, {"offset": torch.cat([source.rows(p) for p in some.split(BATCH)]).mean(0)})
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


def _read(
    path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype, *, offset_digest: str | None = None
) -> torch.Tensor:
    if not path.is_file():
        raise MissingError(f"{path} is not there: processes on several machines need one DRIFTKIT_CACHE they all see")
    tensors, header = read_tensors(path)
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise MissingError(f"{path} is damaged: expected {name} {list(shape)}; remove the file to have it made anew")
    if offset_digest is not None and header.get("offset") != offset_digest:
        raise MissingError(f"{path} was made with another {OFFSET_FILE}; remove the file to have it made anew")
    return tensor


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"
