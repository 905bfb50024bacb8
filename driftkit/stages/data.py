"""Importing images: from a spec to a pack, in the data folder or where the user wants it."""

import contextlib
from pathlib import Path

import torch

from driftkit.datasets.decode import resize_images
from driftkit.datasets.packs import (
    ImagePack,
    PackSource,
    RawImages,
    balanced_indices,
    card_path,
    is_finished,
    open_pack,
    pack_path,
    write_pack,
)
from driftkit.datasets.sources import Source, import_path, open_dataset, resolve, source_record
from driftkit.errors import ArtifactError, UsageError
from driftkit.storage.files import read_tensors
from driftkit.storage.images import save_grid

GRID_COLUMNS = 8


def import_data(
    spec: str,
    output: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    *,
    force: bool = False,
    cifar10_url: str | None = None,
) -> tuple[ImagePack, Path]:
    """Open what a spec names, importing it if need be, and write it as a pack of its own if `output` says so.

    Args:
        spec: as `open_dataset` takes it.
        output: pack to write, with or without its suffix; None leaves the import in the data folder.
        image_size: side in pixels to which the images are brought; a pack is resized only into an `output`.
        limit: at most so many images, in equal shares of the classes.
        force: replace other images at `output`.
        cifar10_url: where to fetch CIFAR-10 from.

    Returns:
        The pack, and the file it lies in.

    Raises:
        UsageError: an option does not fit, or `output` holds other images and `force` is not given.
        ArtifactError: the images are absent or broken.
    """
    if image_size is not None and not 8 <= image_size <= 1024:
        raise UsageError(f"--image-size {image_size}: expected 8 to 1024 pixels")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: expected at least 1 image")
    if output is None:
        pack = open_dataset(spec, image_size=image_size, limit=limit, cifar10_url=cifar10_url)
        return pack, pack.path
    target = pack_path(output)
    named = resolve(spec, image_size=image_size, cifar10_url=cifar10_url)
    record = _record(named, image_size, limit)
    existing = _existing(target, record, force=force)
    if existing is not None:
        return existing, target
    raw, label = _read(named, image_size, limit)
    record = record.model_copy(update={"verified": raw.verified})
    pack = write_pack(target, raw.images, raw.labels, raw.classes, source=record, label=label, notes=raw.notes)
    return pack, target


def write_grid(path: Path, pack: ImagePack) -> None:
    """Write a PNG of a few images, one row a class for up to 20 classes; else the first 64 in equal shares."""
    rows = len(pack.classes) if 2 <= len(pack.classes) <= 20 else GRID_COLUMNS
    picked = balanced_indices(pack.labels, rows * GRID_COLUMNS)
    by_class = picked[torch.argsort(pack.labels[picked], stable=True)]
    save_grid(path, pack.images[by_class], columns=GRID_COLUMNS)


def _record(named: Source | ImagePack, image_size: int | None, limit: int | None) -> PackSource:
    """What the card will say about the origin."""
    if isinstance(named, ImagePack):
        options = {} if image_size is None else {"image_size": image_size}
        record = PackSource(spec=str(named.path), kind="pack", options=options, digest=named.digest)
    else:
        record = source_record(named)
    return record if limit is None else record.model_copy(update={"options": {**record.options, "limit": limit}})


def _existing(target: Path, record: PackSource, *, force: bool) -> ImagePack | None:
    """The pack at `target` if it is the one that would be written; None if there is nothing that must be kept."""
    if force or not (target.exists() or card_path(target).exists()):
        return None
    if _is_unfinished(target):
        return None
    refusal = UsageError(f"--output {target}: holds something else; give another name, or --force to replace it")
    if not is_finished(target):
        raise refusal
    try:
        pack = open_pack(target)
    except ArtifactError:
        raise refusal from None
    there = pack.card.source
    if (there.kind, there.options, there.digest) != (record.kind, record.options, record.digest):
        raise refusal
    return pack


def _is_unfinished(target: Path) -> bool:
    """Whether an import was killed before it wrote the card."""
    if not target.is_file() or card_path(target).exists():
        return False
    with contextlib.suppress(ArtifactError):
        return read_tensors(target)[1].get("driftkit") == "pack"
    return False


def _read(named: Source | ImagePack, image_size: int | None, limit: int | None) -> tuple[RawImages, str]:
    """The images for `output` and their label, from a pack where there is one."""
    if not isinstance(named, ImagePack) and is_finished(import_path(named)):
        named, image_size = open_pack(import_path(named)), None  # imported at that size already
    if isinstance(named, ImagePack):
        named.verify()
        card = named.card
        raw = RawImages(named.images, named.labels, named.classes, card.notes, card.source.verified)
        label = card.label
    else:
        raw, image_size, label = named.read(), None, named.label
    if limit is not None and limit < len(raw.images):
        picked = balanced_indices(raw.labels, limit)
        raw = RawImages(raw.images[picked], raw.labels[picked], raw.classes, raw.notes, raw.verified)
    if image_size is not None:
        raw = RawImages(resize_images(raw.images, image_size), raw.labels, raw.classes, raw.notes, raw.verified)
    return raw, label
