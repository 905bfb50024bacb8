"""Generated images: ten kinds of coloured shapes on shaded grounds, any size, each a function of (seed, split, index).

A shape is a signed distance (negative inside) in its own coordinates, where it fills about the unit disc with y
pointing down; edges are smoothed over one pixel of that distance, so that 16 px and 256 px show the same picture.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, ValidationError

from driftkit.config.settings import Settings
from driftkit.datasets.packs import RawImages
from driftkit.datasets.spec import Request, SourceKind
from driftkit.errors import UsageError
from driftkit.runtime.random import stream_seed
from driftkit.storage.files import digest_json

Array = npt.NDArray[Any]  # float32 planes
Doubles = npt.NDArray[np.float64]
Distance = Callable[[Array, Array], Array]

RECIPE = 1  # part of the digest: raise it when the same options draw other pixels
COUNTS = {"train": 10_000, "test": 2_000}
PIXELS_AT_A_TIME = 250_000  # keeps the dozen float32 planes of a chunk in the cache
NUM_DRAWS = 12


class ShapesOptions(Settings):
    """What can be asked of the shapes, with the names that a spec's query uses."""

    split: Literal["train", "test"] = Field("train", description="two disjoint draws of the same distribution")
    image_size: int = Field(32, ge=8, le=1024, description="side in pixels")
    count: int = Field(0, ge=0, le=10_000_000, description="number of images; 0: 10000 for train, 2000 for test")
    palette: Literal["full", "primary", "mono"] = Field("full", description="any hue, six fixed colours, or greys")
    background: Literal["shaded", "plain", "black"] = Field("shaded", description="gradient, one colour, or black")
    classes: int = Field(10, ge=1, le=10, description="how many kinds of shapes, the first of the list")
    jitter: float = Field(0.15, ge=0, le=0.5, description="variation of place and size (share) and turn (half turns)")
    seed: int = Field(0, ge=0, description="all draws follow from it")

    @property
    def num_images(self) -> int:
        return self.count or COUNTS[self.split]


@dataclass(frozen=True)
class ShapesSource:
    """The shapes as a source of images."""

    options: ShapesOptions
    spec: str = "shapes"
    kind: str = "shapes"

    @property
    def label(self) -> str:
        return f"shapes {self.options.split}"

    def recorded_options(self) -> dict[str, Any]:
        return {**self.options.model_dump(mode="json"), "count": self.options.num_images}

    def digest(self) -> str:
        return digest_json({"recipe": RECIPE, **self.recorded_options()})

    def read(self) -> RawImages:
        return draw_shapes(self.options)


def _open(request: Request) -> ShapesSource:
    spec, image_size = request.spec, request.image_size
    spec.require_keys(*ShapesOptions.model_fields)
    values: dict[str, Any] = dict(spec.query)
    if image_size is not None:
        if spec.query.get("image_size", str(image_size)) != str(image_size):
            raise UsageError(f"{spec.text}: has another image size than `image_size` {image_size}; give one of them")
        values["image_size"] = image_size
    try:
        return ShapesSource(ShapesOptions.model_validate(values), spec=spec.text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{spec.text}: {first['loc'][0]} is {first['input']}: {first['msg']}") from None


SHAPES_KIND = SourceKind(
    "shapes[?split=test&image_size=16&...]", lambda spec: spec.target == "shapes", _open, name="shapes"
)


def draw_shapes(options: ShapesOptions) -> RawImages:
    """The images and labels that the options describe; image i has label i modulo the number of classes."""
    count, size = options.num_images, options.image_size
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    per_chunk = max(1, PIXELS_AT_A_TIME // size**2)
    # A chunk holds one class, since each class has its own distance.
    chunks = [
        np.arange(kind, count, options.classes)[start : start + per_chunk]
        for kind in range(options.classes)
        for start in range(0, len(range(kind, count, options.classes)), per_chunk)
    ]

    def draw(indices: npt.NDArray[np.int64]) -> None:
        images[indices] = _draw(indices, options)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(draw, chunks):
            pass
    labels = torch.arange(count) % options.classes
    return RawImages(torch.from_numpy(images), labels, tuple(SHAPES)[: options.classes])


def _draw(indices: npt.NDArray[np.int64], options: ShapesOptions) -> npt.NDArray[np.uint8]:
    """Images [n, 3, S, S] of one class."""
    size = options.image_size
    draws = _uniform(stream_seed(options.seed, f"shapes {options.split}"), indices)  # [n, NUM_DRAWS]
    radius = 0.33 * (1 + options.jitter * (2 * draws[:, 0] - 1))
    reach = np.minimum(options.jitter, 0.49 - radius).clip(0)  # the shape stays inside the image
    centre = 0.5 + reach[:, None] * (2 * draws[:, 1:3] - 1)
    turn = np.pi * options.jitter * (2 * draws[:, 3] - 1)

    at = ((np.arange(size) + 0.5) / size).astype(np.float32)
    dx = (at[None, None, :] - _plane(centre[:, 0])) / _plane(radius)  # [n, 1, S], in radii
    dy = (at[None, :, None] - _plane(centre[:, 1])) / _plane(radius)  # [n, S, 1]
    cos, sin = _plane(np.cos(turn)), _plane(np.sin(turn))
    distance = list(SHAPES.values())[int(indices[0]) % options.classes](cos * dx + sin * dy, cos * dy - sin * dx)

    ink, paper, paper_end = _colours(draws[:, 4:11], options)
    pixel = _plane(1 / (size * radius))
    inside = np.clip(0.5 - distance / pixel, 0, 1)
    # Light falls from the upper left, and the rim is a little darker: cheap, and it reads as a body.
    light = 1 - 0.13 * np.clip(0.6 * dx + 0.8 * dy, -1.2, 1.2) - 0.22 * np.clip(1 + distance / 0.16, 0, 1)
    ground = np.ones_like(distance)
    slope = np.zeros_like(distance)
    if options.background == "shaded":
        ground -= 0.4 * np.clip(1 - distance / 0.45, 0, 1) ** 2  # the shape's soft shadow
        angle = 2 * np.pi * draws[:, 11]
        across = _plane(np.cos(angle)) * (at - 0.5)[None, None, :] + _plane(np.sin(angle)) * (at - 0.5)[None, :, None]
        slope = np.clip(0.5 + across, 0, 1)
    image = np.empty((len(indices), 3, size, size), dtype=np.uint8)
    for c in range(3):
        behind = (_plane(paper[:, c]) + slope * _plane(paper_end[:, c] - paper[:, c])) * ground
        value = behind + inside * (_plane(ink[:, c]) * light - behind)
        image[:, c] = (np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8)
    return image


def _uniform(seed: int, indices: npt.NDArray[np.int64]) -> Doubles:
    """Numbers in [0, 1), [n, NUM_DRAWS], each a function of (seed, index, column): the splitmix64 finaliser."""
    columns = np.arange(1, NUM_DRAWS + 1, dtype=np.uint64)
    z: npt.NDArray[np.uint64] = np.multiply(indices.astype(np.uint64)[:, None], np.uint64(NUM_DRAWS)) + columns
    z *= np.uint64(0x9E3779B97F4A7C15)  # wraps, as it should
    z += np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    drawn: Doubles = (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return drawn


PRIMARY = np.array(
    [(0.90, 0.16, 0.18), (0.10, 0.66, 0.28), (0.16, 0.38, 0.92),
     (0.98, 0.80, 0.10), (0.78, 0.20, 0.80), (0.06, 0.74, 0.82)]
)  # fmt: skip


def _colours(draws: Doubles, options: ShapesOptions) -> tuple[Doubles, Doubles, Doubles]:
    """Colour of the shape and of both ends of the ground, each [n, 3] in [0, 1]; the ground stands off the shape."""
    if options.palette == "primary":
        ink = PRIMARY[(draws[:, 0] * len(PRIMARY)).astype(np.int64)]
    elif options.palette == "mono":
        ink = np.repeat(0.72 + 0.28 * draws[:, :1], 3, axis=1)
    else:
        ink = _from_hsv(draws[:, 0], 0.62 + 0.33 * draws[:, 1], 0.82 + 0.18 * draws[:, 2])
    if options.background == "black":
        return ink, np.zeros_like(ink), np.zeros_like(ink)
    luminance = ink @ np.array([0.299, 0.587, 0.114])
    dark = luminance > 0.42 + 0.16 * draws[:, 3]  # shapes of middling lightness get either ground
    value = np.where(dark, 0.14 + 0.2 * draws[:, 4], 0.84 + 0.14 * draws[:, 4])
    saturation = np.where(dark, 0.55, 0.22) * draws[:, 5] if options.palette == "full" else np.zeros(len(draws))
    paper = _from_hsv(draws[:, 6], saturation, value)
    end = _from_hsv(draws[:, 6] + 0.08, saturation, np.where(dark, value + 0.16, value - 0.22))
    return ink, paper, end


def _from_hsv(hue: Doubles, saturation: Doubles, value: Doubles) -> Doubles:
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    rgb: Doubles = value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb


def _plane(values: Doubles) -> Array:
    return values.astype(np.float32)[:, None, None]


def _star(x: Array, y: Array) -> Array:
    along, aside = _fold(x, y + 0.02, 5)
    # The edge runs from the tip (1.06, 0) to the inner corner, 36 degrees further at 0.46 of the tip's radius.
    edge = np.array([0.46 * np.cos(np.pi / 5) - 1, 0.46 * np.sin(np.pi / 5)])
    normal = (np.array([edge[1], -edge[0]]) / np.hypot(*edge)).astype(np.float32)
    distance: Array = (along - np.float32(1.06)) * normal[0] + aside * normal[1]
    return distance


def _heart(x: Array, y: Array) -> Array:
    x, y = np.abs(x), y - 0.08
    half = 0.76  # a square on its corner, and a disc on each of its upper edges
    corner = (x + np.abs(y) - half) * np.float32(0.5**0.5)
    lobe = np.sqrt((x - half / 2) ** 2 + (y + half / 2) ** 2) - half * 0.5**0.5
    distance: Array = np.minimum(corner, lobe)
    return distance


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    distance: Array = np.minimum(np.maximum(x - 0.92, y - 0.31), np.maximum(x - 0.31, y - 0.92))
    return distance


def _crescent(x: Array, y: Array) -> Array:
    x = x + 0.12
    distance: Array = np.maximum(np.sqrt(x * x + y * y) - 0.92, 0.72 - np.sqrt((x - 0.46) ** 2 + y * y))
    return distance


def _fold(x: Array, y: Array, corners: int, *, half_turn: bool = False) -> tuple[Array, Array]:
    """Coordinates along and across the nearest corner's direction (the first points up), or the nearest edge's."""
    sector = 2 * np.pi / corners
    angle = np.arctan2(x, -y) / np.float32(sector) + np.float32(0.5 if half_turn else 0.0)
    angle = np.abs(angle - np.round(angle)) * np.float32(sector)
    radius = np.sqrt(x * x + y * y)
    return radius * np.cos(angle), radius * np.sin(angle)


SHAPES: dict[str, Distance] = {
    "circle": lambda x, y: np.sqrt(x * x + y * y) - 0.88,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.76,
    "triangle": lambda x, y: _fold(x, y + 0.2, 3, half_turn=True)[0] - 0.56,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": lambda x, y: np.abs(np.sqrt(x * x + y * y) - 0.7) - 0.22,
    "diamond": lambda x, y: (np.abs(x) / 0.58 + np.abs(y) - 1.02) * np.float32(1 / (1 + 0.58**-2) ** 0.5),
    "crescent": _crescent,
    "pentagon": lambda x, y: _fold(x, y, 5, half_turn=True)[0] - 0.74,
}
"""The kinds of shapes in the order of their labels."""
