"""Images between their two forms (float32 in [-1, 1] inside, uint8 at the border), sample sets and PNG grids."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torchvision.utils import make_grid

from driftkit.errors import ArtifactError
from driftkit.runtime.terminal import printable
from driftkit.storage.atomic import atomic_path
from driftkit.storage.checksums import file_record, require_checksum
from driftkit.storage.files import read_tensors
from driftkit.storage.lock import locked_file
from driftkit.storage.records import SampleRecord
from driftkit.storage.sample_forms import FORMS, Advance, SampleForm

MIN_TILE = 64  # pixels to which small images are enlarged in a grid
GRID_COLUMNS, GRID_IMAGES, MAX_CLASS_ROWS = 8, 64, 10
SOFTWARE = "driftkit"  # the text of that name in the PNGs of grids
GRID_GAP = 2
NAME_SIZE, NAME_CHARACTERS = 14, 20  # of a row's name: pixels of the font, and most characters


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float images in [-1, 1] (values outside are clipped) to uint8, any shape, rounding to nearest."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to float32 in [-1, 1], any shape."""
    return images.float() / 127.5 - 1


def save_grid(
    path: Path,
    images: torch.Tensor,
    *,
    columns: int | None = None,
    row_names: Sequence[str] = (),
) -> None:
    """Write uint8 images [N, 3, H, W] as one PNG; small images are enlarged by whole pixels to at least MIN_TILE.

    Names of rows stand on their left.
    """
    scale = max(1, -(-MIN_TILE // images.shape[-1]))
    enlarged = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    grid = make_grid(enlarged, nrow=columns or max(1, round(len(images) ** 0.5)), padding=GRID_GAP, pad_value=255)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    if row_names:
        picture = _with_names(picture, row_names, pitch=enlarged.shape[-2] + GRID_GAP)
    about = PngInfo()
    about.add_text("Software", SOFTWARE)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=about)


def is_own_grid(path: Path) -> bool:
    """Whether `save_grid` wrote the file."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for what is no picture
        return False


def _with_names(grid: Image.Image, names: Sequence[str], *, pitch: int) -> Image.Image:
    """The grid, whose rows are `pitch` pixels apart, to the right of their names."""
    font = ImageFont.load_default(NAME_SIZE)
    whole = [printable(name) for name in names]
    shown = [n if len(n) <= NAME_CHARACTERS else f"{n[: NAME_CHARACTERS - 3]}..." for n in whole]
    margin = 2 * NAME_SIZE + math.ceil(max(font.getlength(name) for name in shown))
    picture = Image.new("RGB", (margin + grid.width, grid.height), "white")
    picture.paste(grid, (margin, 0))
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(shown):
        draw.text((margin - NAME_SIZE, (row + 0.5) * pitch), name, fill="black", font=font, anchor="rm")
    return picture


def read_grid(path: Path, image_size: int) -> torch.Tensor:
    """The images of a grid that `save_grid` wrote, uint8 [N, 3, H, W] at their own size.

    Places that a last row leaves empty come out as images of one colour.

    Raises:
        ArtifactError: the file is absent, no picture, or no grid of images of that size.
    """
    try:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
        raise ArtifactError(f"{path} is no readable picture: {error}") from None
    scale = max(1, -(-MIN_TILE // image_size))
    tile, pitch = image_size * scale, image_size * scale + GRID_GAP
    height, width = pixels.shape[-2:]
    if (height - GRID_GAP) % pitch or (width - GRID_GAP) % pitch or min(height, width) < pitch:
        raise ArtifactError(f"{path}: {width}x{height} pixels are no grid of images of {image_size} pixels")
    tiles = pixels[:, GRID_GAP:, GRID_GAP:].unfold(1, tile, pitch).unfold(2, tile, pitch)  # [3, rows, columns, .., ..]
    return tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)[..., ::scale, ::scale].contiguous()


@dataclass(frozen=True)
class SampleSet:
    """Generated images and how they came about."""

    path: Path
    images: torch.Tensor  # uint8 [N, 3, H, W]
    record: SampleRecord
    labels: torch.Tensor | None = None  # int64 [N], the classes that were asked for; None of an unconditional run


def write_samples(
    path: Path,
    images: torch.Tensor,
    info: Mapping[str, Any],
    labels: torch.Tensor | None = None,
    *,
    form: SampleForm = FORMS["safetensors"],
    advance: Advance = lambda count: None,
) -> SampleSet:
    """Write `path` in a form, its `SampleRecord` next to it and a PNG grid of the first images, uncurated.

    The grid has 64 images, or with labels a row per class; see `class_rows`. The record comes last.
    """
    record_path = form.next_to(path, ".json")
    with locked_file(path):
        record_path.unlink(missing_ok=True)  # an old record must never stand next to new images
        form.write(path, images, labels, advance)
        shown, names = (images[:GRID_IMAGES], ()) if labels is None else class_rows(images, labels, info["classes"])
        save_grid(form.next_to(path, ".png"), shown, columns=GRID_COLUMNS, row_names=names)
        record = SampleRecord(**{**info, "format": form.name, **file_record(path)})
        record.write(record_path)
    return SampleSet(path, images, record, labels)


def class_rows(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The first 8 images of each of the first 10 classes that there are, in rows of 8, and the names of these classes.

    White where there are fewer.
    """
    rows, shown = [], labels.unique()[:MAX_CLASS_ROWS]
    for label in shown:
        row = images[labels == label][:GRID_COLUMNS]
        rows += [row, row.new_full((GRID_COLUMNS - len(row), *row.shape[1:]), 255)]
    return torch.cat(rows), tuple(classes[label] for label in shown)


def read_samples(path: Path) -> SampleSet:
    """Open what `write_samples` wrote as safetensors.

    Raises:
        ArtifactError: no such file, no `images` of uint8 [N, 3, H, W] or other `labels` than int64 [N] in it, damaged,
            or its JSON is of another file.
    """
    tensors, _ = read_tensors(path)
    images = tensors.get("images")
    if images is None or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        got = "no tensor `images`" if images is None else f"{images.dtype} {list(images.shape)}"
        raise ArtifactError(f"{path}: expected `images` as uint8 [N, 3, H, W], got {got}")
    record = SampleRecord.read(path.with_suffix(".json"))
    if record.num_images != len(images):
        raise ArtifactError(f"{path}: holds {len(images)} images, expected {record.num_images} as in its record")
    require_checksum(path, record.sha256, num_bytes=record.bytes)
    labels = tensors.get("labels")
    if labels is not None and (
        labels.dtype != torch.int64
        or labels.shape != images.shape[:1]
        or not bool(((labels >= 0) & (labels < len(record.classes))).all())
    ):
        raise ArtifactError(
            f"{path}: expected `labels` as int64 [{len(images)}] of the {len(record.classes)} classes in its record, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    return SampleSet(path, images, record, labels)
