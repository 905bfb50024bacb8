"""Pictures made of images: sample grids, nearest real neighbours, and how fixed noise turns into images in training."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torchvision.utils import make_grid

from driftkit.runtime.drawing import Figure

GRID_TILE = 64
GAP = 3
FRAME_ROWS, FRAME_COLUMNS = 4, 8
FRAME_TILE = 48
FRAME_MS, LAST_FRAME_MS = 700, 2000
WEBP_QUALITY = 82


@dataclass(frozen=True)
class Frame:
    """What one fixed set of noises gave at one step, as the page shows it."""

    step: int
    image: bytes  # WebP


@dataclass(frozen=True)
class Evolution:
    """The frames of one run, oldest first, and the same as one moving picture for other uses."""

    run: str
    name: str
    frames: list[Frame]
    animation: bytes  # WebP, looping
    width: int
    height: int


def grid_figure(images: torch.Tensor, *, name: str, alt: str, caption: str, count: int = 64) -> Figure:
    """The first `count` of uint8 images [N, 3, H, W] in rows of 8; small ones are enlarged by whole pixels."""
    return _tiled(_fit(images[:count], GRID_TILE), columns=8, name=name, alt=alt, caption=caption)


def neighbour_figure(generated: torch.Tensor, neighbours: torch.Tensor, *, name: str, alt: str, caption: str) -> Figure:
    """Generated images in the upper row, under each its nearest real ones, the nearest first.

    Args:
        generated: uint8 [N, 3, H, W].
        neighbours: uint8 [N, K, 3, H, W].
    """
    rows = [generated, *neighbours.unbind(1)]
    tiles = _fit(torch.cat(rows), GRID_TILE)
    return _tiled(tiles, columns=len(generated), name=name, alt=alt, caption=caption, rule_after=1)


def _tiled(
    tiles: torch.Tensor, *, columns: int, name: str, alt: str, caption: str, rule_after: int | None = None
) -> Figure:
    """Tiles on a transparent ground, with more room after row `rule_after`."""
    opaque = torch.cat([tiles, torch.full_like(tiles[:, :1], 255)], dim=1)
    grid = make_grid(opaque, nrow=columns, padding=GAP, pad_value=0)
    if rule_after is not None:
        at = rule_after * (tiles.shape[-2] + GAP) + GAP
        grid = torch.cat([grid[:, :at], torch.zeros_like(grid[:, : 3 * GAP]), grid[:, at:]], dim=1)
    picture = Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())
    memory = io.BytesIO()
    picture.save(memory, format="PNG", optimize=True)
    width, height = picture.size
    return Figure(name, alt, caption, memory.getvalue(), on_white(memory.getvalue()), width=width, height=height)


def _fit(images: torch.Tensor, tile: int) -> torch.Tensor:
    """uint8 [N, 3, H, W] enlarged by whole pixels to at least `tile`, or shrunk to it from twice as large on."""
    side = images.shape[-1]
    if side >= 2 * tile:
        return F.interpolate(images.float(), size=(tile, tile), mode="area").round().to(torch.uint8)
    factor = max(1, -(-tile // side))
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def evolution(run: str, grids: Sequence[tuple[int, torch.Tensor]], *, name: str) -> Evolution | None:
    """The first images of every grid as frames; None for fewer than two grids.

    Args:
        run: label of the run.
        grids: (step, uint8 [N, 3, H, W]) with the same noises in the same order, oldest first.
        name: file name of the moving picture, without suffix.
    """
    if len(grids) < 2:
        return None
    pictures = []
    for _, images in grids:
        tiles = _fit(images[: FRAME_ROWS * FRAME_COLUMNS], FRAME_TILE)
        grid = make_grid(tiles, nrow=FRAME_COLUMNS, padding=2, pad_value=255)
        pictures.append(Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy()))
    frames = [Frame(step, _webp(picture)) for (step, _), picture in zip(grids, pictures, strict=True)]
    labelled = [_labelled(p, f"step {step:,}") for (step, _), p in zip(grids, pictures, strict=True)]
    memory = io.BytesIO()
    labelled[0].save(
        memory, format="WEBP", save_all=True, append_images=labelled[1:], loop=0, quality=WEBP_QUALITY,
        duration=[*[FRAME_MS] * (len(labelled) - 1), LAST_FRAME_MS],
    )  # fmt: skip
    width, height = pictures[0].size
    return Evolution(run, name, frames, memory.getvalue(), width, height)


def _webp(picture: Image.Image) -> bytes:
    memory = io.BytesIO()
    picture.save(memory, format="WEBP", quality=WEBP_QUALITY, method=6)
    return memory.getvalue()


def _labelled(picture: Image.Image, label: str) -> Image.Image:
    """The picture with a line of text below it."""
    taller = Image.new("RGB", (picture.width, picture.height + 18), "white")
    taller.paste(picture)
    ImageDraw.Draw(taller).text((4, picture.height + 2), label, fill="black", font_size=12)
    return taller


def on_white(png: bytes) -> bytes:
    """A picture with its transparent ground made white, as one wants it in a file of its own."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    memory = io.BytesIO()
    Image.alpha_composite(ground, picture).convert("RGB").save(memory, format="PNG", optimize=True)
    return memory.getvalue()
