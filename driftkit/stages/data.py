"""Importing images: from a spec to a pack, in the data folder or at a path of the user's."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, field_validator, model_validator

from driftkit.config.places import EXPANDED
from driftkit.config.settings import Option, Settings
from driftkit.encoders.encoder_config import EncoderConfig, read_encoder
from driftkit.errors import ArtifactError, UsageError
from driftkit.runtime.progress import phase

if TYPE_CHECKING:  # torch is loaded when images are imported, not for --help
    from driftkit.datasets.packs import ImagePack, PackSource, RawImages
    from driftkit.datasets.spec import Source

IMAGES, CLASSES, FILES = "Which images", "Classes made of clusters", "Where they go"
GRID_COLUMNS = 8


class ImportConfig(Settings):
    """Settings of `driftkit data`."""

    image_size: Annotated[int | None, Option(IMAGES, default="as they are")] = Field(
        None, ge=8, le=1024, description="crop images to their centred square and resize it to this side in pixels"
    )
    class_level: Annotated[int | None, Option(IMAGES, default="by label files, else by the first folders")] = Field(
        None,
        ge=0,
        le=999,
        description="level of the folders that are the classes: 1 is the first below SPEC, 0 makes no classes",
    )
    skip_broken: Annotated[bool, Option(IMAGES)] = Field(False, description="skip broken images; the card counts them")
    limit: Annotated[int | None, Option(IMAGES, default="all")] = Field(
        None, ge=1, description="number of images to import at most, in equal shares of the classes"
    )
    cifar10_url: Annotated[
        str | None, Option(IMAGES, ("--cifar10-url",), default="DRIFTKIT_CIFAR10_URL, then cs.toronto.edu")
    ] = Field(None, description="address of cifar-10-python.tar.gz")
    clusters: Annotated[int | None, Option(CLASSES, default="the labels of the images")] = Field(
        None,
        ge=2,
        le=10_000,
        description="number of clusters that become the classes, instead of the images' labels",
    )
    cluster_encoder: Annotated[str, EXPANDED, Option(CLASSES)] = Field(
        "efficientnet-lite0",
        description="encoder whose features are clustered, named as in train --encoder: NAME?KEY=VALUE&...",
    )
    output: Annotated[Path | None, EXPANDED, Option(FILES, ("--output", "-o"), default="in DRIFTKIT_DATA_DIR")] = Field(
        None, description="pack (.safetensors) to write"
    )
    grid: Annotated[Path | None, EXPANDED, Option(FILES, default="none")] = Field(
        None, description="PNG of a few images to write, a row per class"
    )
    force: Annotated[bool, Option(FILES)] = Field(False, description="replace another pack at the output")

    @field_validator("grid")
    @classmethod
    def _is_png(cls, grid: Path | None) -> Path | None:
        if grid is not None and grid.suffix.lower() != ".png":
            raise ValueError("expected a name that ends in .png")
        return grid

    @field_validator("cluster_encoder")
    @classmethod
    def _is_one_encoder(cls, text: str) -> str:
        try:
            read_encoder(text)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return text

    @model_validator(mode="after")
    def _clusters_have_a_file(self) -> Self:
        if self.clusters is not None and self.output is None:
            raise ValueError("`clusters`: give `output`, the pack to write")
        if self.clusters is None and "cluster_encoder" in self.model_fields_set:
            raise ValueError("`cluster_encoder`: there are no clusters; give `clusters`")
        return self

    def asked_of(self, spec: str) -> str:
        """The spec with `class_level` and `skip_broken` in its query, where they are set here."""
        keys = {"class_level": self.class_level, "skip_broken": 1 if self.skip_broken else None}
        query = "&".join(f"{key}={value}" for key, value in keys.items() if value is not None)
        has_query = "?" in spec and not Path(spec).exists()  # a file's name may have a question mark
        return f"{spec}{'&' if has_query else '?'}{query}" if query and spec.strip() else spec


def import_data(spec: str, config: ImportConfig) -> "tuple[ImagePack, Path]":
    """The pack of a spec and its file, imported if need be; with `output` it is written there, resized if asked.

    Raises:
        UsageError: a setting does not fit, or `output` holds other images and `force` is not set.
        ArtifactError: the images are absent or broken.
    """
    from driftkit.datasets.packs import pack_path
    from driftkit.datasets.sources import open_dataset
    from driftkit.storage.images import is_own_grid
    from driftkit.storage.writable import require_writable

    spec = config.asked_of(spec)
    if config.output is not None:
        require_writable(pack_path(config.output), "`output`")
    if config.grid is not None:
        require_writable(config.grid, "`grid`")
        there = config.grid.is_symlink() or config.grid.exists()
        if there and not (config.grid.is_file() and is_own_grid(config.grid)):
            raise UsageError(f"`grid` {config.grid}: expected a new name or an earlier grid, got another file")
    if config.output is None:
        pack = open_dataset(spec, image_size=config.image_size, limit=config.limit, url=config.cifar10_url)
    else:
        pack = _write(spec, config, pack_path(config.output))
    if config.grid is not None:
        _write_grid(config.grid, pack)
    return pack, pack.path


def _write(spec: str, config: ImportConfig, target: Path) -> "ImagePack":
    from driftkit.datasets.packs import ImagePack, import_pack
    from driftkit.datasets.sources import open_dataset, resolve
    from driftkit.encoders.registry import encoder_kind

    source = resolve(spec, image_size=config.image_size, url=config.cifar10_url)
    record = _record(source, config)
    existing = None if config.force else _existing(target, record)
    if existing is not None:
        return existing
    if config.clusters is not None:
        try:  # before images are read
            encoder_kind(EncoderConfig(encoder=config.cluster_encoder).encoder)
        except UsageError as error:
            raise UsageError(str(error).replace("`encoder`", "`cluster_encoder`", 1)) from None
        if not isinstance(source, ImagePack):  # images are read twice
            source = open_dataset(spec, image_size=config.image_size, url=config.cifar10_url)
    with phase(f"reading images {spec}"):
        raw, label = _read(source, config)
        if isinstance(source, ImagePack) and config.clusters is not None:
            raw = _clustered(raw, config, images_of=source if raw.images is source.images else None)
        record = record.model_copy(update={"verified": raw.verified})
        return import_pack(target, raw, source=record, label=label, limit=config.limit)


def _write_grid(path: Path, pack: "ImagePack") -> None:
    """Write a PNG of a few images, one row per class for up to 20 classes; else the first 64 in equal shares."""
    import torch

    from driftkit.datasets.packs import balanced_indices
    from driftkit.storage.images import save_grid

    rows = len(pack.classes) if 2 <= len(pack.classes) <= 20 else GRID_COLUMNS
    # Clusters hold images of all places: the first of each would be of the first class of the source alone.
    draw = torch.Generator().manual_seed(0)
    order = torch.arange(len(pack)) if pack.card.clusters is None else torch.randperm(len(pack), generator=draw)
    picked = order[balanced_indices(pack.labels[order], rows * GRID_COLUMNS)]
    by_class = picked[torch.argsort(pack.labels[picked], stable=True)]
    save_grid(path, pack.images[by_class], columns=GRID_COLUMNS)


def _record(source: "Source | ImagePack", config: ImportConfig) -> "PackSource":
    """The origin, as the card names it."""
    from driftkit.datasets.packs import ImagePack, PackSource
    from driftkit.datasets.sources import source_record

    if isinstance(source, ImagePack):
        options = {} if config.image_size is None else {"image_size": config.image_size}
        record = PackSource(spec=str(source.path), kind="pack", options=options, digest=source.digest)
    else:
        record = source_record(source)
    asked = dict(record.options)
    if config.limit is not None:
        asked["limit"] = config.limit
    if config.clusters is not None:
        asked["clusters"] = config.clusters
        asked["cluster_encoder"] = config.cluster_encoder
    return record.model_copy(update={"options": asked})


def _existing(target: Path, record: "PackSource") -> "ImagePack | None":
    """The pack at `target` if it is the one that would be written; None if there is nothing that must be kept."""
    from driftkit.datasets.packs import card_path, is_finished, open_pack

    if not (target.exists() or card_path(target).exists()) or _is_unfinished(target):
        return None
    refusal = UsageError(f"`output` {target}: holds something else; give another name, or `force` to replace it")
    if not is_finished(target):
        raise refusal
    try:
        pack = open_pack(target)
    except ArtifactError:
        raise refusal from None
    origin = pack.card.source
    if (origin.kind, origin.options, origin.digest) != (record.kind, record.options, record.digest):
        raise refusal
    return pack


def _is_unfinished(target: Path) -> bool:
    """Whether an import was killed before it wrote the card."""
    from driftkit.datasets.packs import card_path
    from driftkit.storage.files import read_tensors

    if not target.is_file() or card_path(target).exists():
        return False
    with contextlib.suppress(ArtifactError):
        return read_tensors(target)[1].get("driftkit") == "pack"
    return False


def _read(source: "Source | ImagePack", config: ImportConfig) -> "tuple[RawImages, str]":
    """The images for `output` and their label, from a pack where there is one."""
    from driftkit.datasets.decode import resize_images
    from driftkit.datasets.packs import ImagePack, RawImages, balanced_indices, is_finished, open_pack
    from driftkit.datasets.sources import import_path

    image_size = config.image_size
    if not isinstance(source, ImagePack):
        path = import_path(source)
        source, image_size = open_pack(path) if is_finished(path) else source, None  # imported at that size
    if not isinstance(source, ImagePack):
        return source.read(), source.label
    source.verify()
    images, labels, card = source.images, source.labels, source.card
    clusters = card.clusters
    if config.limit is not None and config.limit < len(images):
        picked = balanced_indices(labels, config.limit)
        images, labels = images[picked], labels[picked]
    if image_size is not None:
        images = resize_images(images, image_size)
    if clusters is not None and images is not source.images:
        clusters = clusters.of_changed_images()
    return RawImages(images, labels, source.classes, card.notes, card.source.verified, clusters), card.label


def _clustered(raw: "RawImages", config: ImportConfig, *, images_of: "ImagePack | None") -> "RawImages":
    """The images, which are in memory or mapped, with clusters as classes; `images_of` has them with other labels."""
    from dataclasses import replace

    import torch

    from driftkit.encoders.clusters import cluster_images
    from driftkit.encoders.registry import load_encoder
    from driftkit.runtime.device import choose_threads, resolve_device
    from driftkit.storage.files import digest_json
    from driftkit.storage.records import Clustering

    images, count = raw.images, config.clusters
    assert isinstance(images, torch.Tensor)
    assert count is not None
    if count > len(images):
        raise UsageError(f"`clusters` {count:,}: there are {len(images):,} images; give fewer")
    device = resolve_device("auto")
    choose_threads(device)
    encoder = load_encoder(EncoderConfig(encoder=config.cluster_encoder), image_size=images.shape[-1], device=device)
    encoder.prepare(device, torch.float32)
    labels = cluster_images(images, encoder, count)
    found = len(labels.unique())
    if found < count:
        raise UsageError(f"`clusters` {count:,}: the encoder finds {found:,} different images; give no more")
    clusters = Clustering(
        encoder=config.cluster_encoder,
        lineage=encoder.lineage.describe(),
        images=None if images_of is None else images_of.image_digest,
    )
    mark = digest_json([clusters.model_dump(mode="json"), labels.tolist()])[:4]  # other clusters are other classes
    width = len(str(count - 1))
    names = tuple(f"cluster-{mark}-{number:0{width}}" for number in range(count))
    return replace(raw, labels=labels, classes=names, clusters=clusters)
