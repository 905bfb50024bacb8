"""Packs: uint8 images and int64 labels in one memory-mapped safetensors file, and a JSON card that describes them.

How images get into a pack stands in the modules of their sources; which source a text names stands in `sources`.
"""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field

from driftkit.datasets.pack_file import PackFile, stored_sha256
from driftkit.errors import ArtifactError
from driftkit.storage.atomic import atomic_path, require_free
from driftkit.storage.files import read_tensors
from driftkit.storage.lock import locked_file
from driftkit.storage.records import Clustering, Record

SUFFIX = ".safetensors"
UNLABELLED = -1
MAX_IMAGES = 20_000_000
IMAGES_AT_A_TIME = 256
_VERIFIED: set[tuple[int | str, ...]] = set()  # files whose content this process has read and found to be right


class PackSource(BaseModel):
    """Where the images of a pack came from and what was done to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str = Field(description="what was asked for, for example shapes?split=test or photos.zip")
    kind: str = Field(description="key of its row in the table of sources: shapes, cifar10, folder, array, ...")
    options: dict[str, Any] = Field({}, description="import options: split, image_size, limit, ...")
    digest: str = Field("", description="digest of what was read; empty where nothing was")
    verified: bool | None = Field(None, description="whether known checksums agree; None where there are none")


class PackCard(Record):
    """What stands next to a pack; its checksum covers the whole content of the pack."""

    kind: ClassVar[str] = "pack"

    name: str = Field(description="name of the pack when it was written")
    count: int = Field(ge=1, description="number of images")
    classes: tuple[str, ...] = Field(description="class names in the order of the labels; empty where unlabelled")
    height: int = Field(ge=1, description="in pixels")
    width: int = Field(ge=1, description="in pixels")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="over the bytes of images [N, 3, H, W], then of labels")
    source: PackSource
    label: str = Field(description="name of these images next to a number measured on them")
    clusters: Clustering | None = Field(None, description="what the classes are; None: the labels of the images")
    notes: tuple[str, ...] = Field((), description="what a reader should know, for example skipped files")


Blocks = Generator[tuple[int, npt.NDArray[np.uint8]]]


@dataclass(frozen=True)
class ImageStream:
    """Images that are read while the pack is written, so that only a few of them are in memory at a time.

    Attributes:
        count: number of places, which is that of images where none is left out.
        blocks: some images, uint8 [n, 3, H, W], for a place and those behind it; in any order of places.
        left_out: is called when all blocks were taken: notes on places that got no image, or an ArtifactError.
    """

    count: int
    blocks: Blocks
    left_out: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class RawImages:
    """Images as a source gives them, before they are a pack."""

    images: torch.Tensor | ImageStream  # uint8 [N, 3, H, W]
    labels: torch.Tensor  # int64 [N], -1 where unlabelled; of a stream, of all places
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    verified: bool | None = None
    clusters: Clustering | None = None  # as in `PackCard`


@dataclass(frozen=True)
class ImagePack:
    """An open pack. The images are mapped from the file: what is not looked at is not read."""

    path: Path
    images: torch.Tensor  # uint8 [N, 3, H, W]
    labels: torch.Tensor  # int64 [N], -1 where unlabelled
    classes: tuple[str, ...]
    card: PackCard
    is_part: bool = False  # of what the file holds; the images are then in memory

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """Hex sha256 of the content, as the card has it; `verify` computes it again."""
        return self.card.sha256

    @property
    def image_digest(self) -> str:
        """That of the pack which has the same images with their own labels."""
        return (self.card.clusters and self.card.clusters.images) or self.digest

    @property
    def image_size(self) -> int:
        """Side in pixels; an ArtifactError where the images are not square."""
        height, width = self.images.shape[-2:]
        if height != width:
            raise ArtifactError(
                f"{self.path}: expected square images, got {width}x{height} px; "
                f"square ones: driftkit data {self.path} --image-size {min(height, width)} --output NEW.safetensors"
            )
        return int(height)

    def class_counts(self) -> dict[str, int]:
        """How many images each class has; unlabelled images count as "(unlabelled)"."""
        counts = torch.bincount(self.labels + 1, minlength=len(self.classes) + 1).tolist()
        named = dict(zip(self.classes, counts[1:], strict=True))
        return {**named, "(unlabelled)": counts[0]} if counts[0] else named

    def verify(self) -> None:
        """Read everything and compare with the card; done once for a file as it is, however often it is opened."""
        if (key := self._state()) not in _VERIFIED:
            self.require_content()
            _VERIFIED.add(key)

    def _state(self) -> tuple[int | str, ...]:
        status = self.path.stat()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, self.card.sha256)

    def require_content(self) -> None:
        """The same, however often it was done before."""
        got = content_sha256(self.images, self.labels) if self.is_part else stored_sha256(self.path)
        if got != self.card.sha256:
            raise ArtifactError(
                f"{self.path} is damaged: its content has sha256 {got[:12]}, expected {self.card.sha256[:12]}; "
                "import it again"
            )

    def limited(self, limit: int) -> "ImagePack":
        """At most `limit` of the images: the first of every class in equal shares, in the order they have here.

        The card is that of the smaller set, so its digest is another one. A limit above the count changes nothing.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}, expected at least 1")
        if limit >= len(self):
            return self
        picked = balanced_indices(self.labels, limit)
        images, labels = self.images[picked], self.labels[picked]
        source = self.card.source
        card = self.card.model_copy(
            update={
                "count": limit,
                "sha256": content_sha256(images, labels),
                "clusters": self.card.clusters and self.card.clusters.of_changed_images(),
                "source": source.model_copy(update={"options": {**source.options, "limit": limit}}),
            }
        )
        return ImagePack(self.path, images, labels, self.classes, card, is_part=True)


def balanced_indices(labels: torch.Tensor, limit: int) -> torch.Tensor:
    """Indices, int64 [limit], ascending, of the first images of every class, as equal in number as can be."""
    order = torch.argsort(labels, stable=True)
    _, counts = torch.unique_consecutive(labels[order], return_counts=True)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    place_in_class = torch.empty_like(order)
    place_in_class[order] = torch.arange(len(labels)) - starts
    return torch.argsort(place_in_class, stable=True)[:limit].sort().values


def content_sha256(images: torch.Tensor, labels: torch.Tensor) -> str:
    """Hex sha256 over the bytes of the images, then of the labels (int64, little-endian)."""
    digest = hashlib.sha256()
    for part in images.split(4096):
        digest.update(part.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().astype("<i8").data)
    return digest.hexdigest()


def pack_path(path: Path) -> Path:
    """The safetensors file of a pack that is named with or without its suffix."""
    path = Path(path)
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)


def card_path(path: Path) -> Path:
    """The JSON card next to a pack."""
    return pack_path(path).with_suffix(".json")


def is_finished(path: Path) -> bool:
    """Whether both files of a pack are there; the card is written last."""
    return pack_path(path).is_file() and card_path(path).is_file()


def write_pack(
    path: Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    *,
    source: PackSource,
    label: str,
    notes: Sequence[str] = (),
) -> ImagePack:
    """Write a pack and open it.

    Args:
        path: the safetensors file, with or without its suffix; the card goes next to it.
        images: uint8 [N, 3, H, W].
        labels: int64 [N], an index into `classes`, or -1 where unlabelled.
        classes: names, in the order of the labels.
        source, label, notes: as `PackCard` has them.

    Raises:
        ValueError: shapes, dtypes or labels do not fit.
    """
    return import_pack(path, RawImages(images, labels, tuple(classes), tuple(notes)), source=source, label=label)


def import_pack(path: Path, raw: RawImages, *, source: PackSource, label: str, limit: int | None = None) -> ImagePack:
    """Write what a source gives as a pack and open it.

    Args:
        path, source, label: as `write_pack` has them.
        limit: largest number of images, in equal shares of the classes; None keeps all.

    Raises:
        ValueError: shapes, dtypes or labels do not fit.
        StorageError: the disk has no room for them.
        ArtifactError: what the source finds wrong as it is read.
    """
    stream = raw.images if isinstance(raw.images, ImageStream) else _in_blocks(raw.images)
    count, labels = stream.count, raw.labels
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected torch.int64 [{count}]")
    low, high = int(labels.min()), int(labels.max())
    if low < UNLABELLED or high >= len(raw.classes):
        raise ValueError(f"labels are {low} to {high}, expected -1 to {len(raw.classes) - 1}")
    path = pack_path(path)
    side = card_path(path)
    with locked_file(path):
        with (
            atomic_path(path) as temporary,
            PackFile(temporary, count) as file,
            contextlib.closing(stream.blocks) as blocks,
        ):
            for place, images in blocks:
                if not file.shape:
                    size = f"{images.shape[-1]}x{images.shape[-2]}"
                    require_free(path, count * (images[0].nbytes + 8), f"a pack of {count:,} images of {size} px")
                file.put(place, images)
            notes = (*raw.notes, *stream.left_out())
            places = torch.from_numpy(file.places())
            if not len(places):
                raise ValueError(f"a stream of {count} images gave none")
            _, height, width = file.shape
            if limit is not None and limit < len(places):
                places = places[balanced_indices(labels[places], limit)]
            sha256 = file.finish(places.numpy(), labels[places].numpy())
            card = PackCard(
                name=path.stem, count=len(places), classes=raw.classes, height=height, width=width, sha256=sha256,
                source=source, label=label, clusters=raw.clusters, notes=notes,
            )  # fmt: skip
            if side.exists() and _header_sha256(path) != sha256:
                # The old card must not stand next to the new tensors. Equal content keeps its card, so that readers
                # always find a whole pack while the same images are imported again.
                side.unlink()
        card.write(side)
        pack = open_pack(path)
        _VERIFIED.add(pack._state())  # the checksum was computed from the file
        return pack


def require_count(path: Path, count: int) -> None:
    """Refuse more images than a pack is made of, before there is a label for each."""
    if count > MAX_IMAGES:
        raise ArtifactError(f"{path} holds {count:,} images, expected at most {MAX_IMAGES:,}; make several packs of it")


def _in_blocks(images: torch.Tensor) -> ImageStream:
    """The stream of images that are in memory, or mapped.

    Raises:
        ValueError: they are not uint8 [N, 3, H, W].
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected torch.uint8 [N, 3, H, W], N > 0")
    parts = range(0, len(images), IMAGES_AT_A_TIME)
    return ImageStream(len(images), ((first, images[first : first + IMAGES_AT_A_TIME].numpy()) for first in parts))


def open_pack(path: Path) -> ImagePack:
    """Open a pack, named with or without its suffix, without reading its images.

    Raises:
        ArtifactError: a file is absent or unreadable, or the card describes other tensors.
    """
    path, side = pack_path(path), card_path(path)
    if path.is_file() and not side.is_file():
        if read_tensors(path)[1].get("driftkit") != "pack":
            raise ArtifactError(f"{path} is no pack of images: it has no card {side.name}; name images or a pack")
        raise ArtifactError(f"{path} has no card {side.name}: an unfinished import; delete it or import again")
    tensors, header = read_tensors(path)
    card = PackCard.read(side)
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or labels is None:
        raise ArtifactError(f"{path}: got the tensors {sorted(tensors)}, expected images and labels; import it again")
    facts: tuple[tuple[str, Any, Any], ...] = (
        ("dtype of images", str(images.dtype), "torch.uint8"),
        ("shape of images", list(images.shape), [card.count, 3, card.height, card.width]),
        ("dtype of labels", str(labels.dtype), "torch.int64"),
        ("shape of labels", list(labels.shape), [card.count]),
        ("sha256", header.get("sha256", "none"), card.sha256),
    )
    for name, got, expected in facts:
        if got != expected:
            raise ArtifactError(f"{path}: {name} is {got}, expected {expected} as in {side.name}; import it again")
    low, high = int(labels.min()), int(labels.max())
    if low < UNLABELLED or high >= len(card.classes):
        raise ArtifactError(
            f"{path}: labels are {low} to {high}, expected -1 to {len(card.classes) - 1}; import it again"
        )
    return ImagePack(path, images, labels, card.classes, card)


def _header_sha256(path: Path) -> str:
    try:
        return read_tensors(path)[1].get("sha256", "")
    except ArtifactError:  # absent or broken: whatever card there is, it is not that of new tensors
        return ""
