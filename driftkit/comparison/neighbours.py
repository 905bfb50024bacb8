"""The real images nearest to generated ones, in pixels or in the features of an evaluator."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from driftkit.scoring.extractors import Extractor

CHUNK = 4096


@dataclass(frozen=True)
class Neighbours:
    """The nearest real images of N generated ones.

    Attributes:
        indices: int64 [N, K] into the real images, nearest first.
        distances: float32 [N, K]; of pixels the root of the mean square over all values, in units where black is 0
            and white is 1; of features the Euclidean distance.
        space: "pixels" or the evaluator's name.
    """

    indices: torch.Tensor
    distances: torch.Tensor
    space: str


def nearest(
    generated: torch.Tensor,
    real: torch.Tensor,
    *,
    count: int = 3,
    extractor: Extractor | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Neighbours:
    """The `count` nearest real images of every generated one.

    Real images are read in chunks, so that a mapped pack need not fit into memory as floats.

    Args:
        generated: uint8 [N, 3, H, W].
        real: uint8 [M, 3, H, W], M >= count.
        extractor: measures in its features; None in pixels.
        advance: called with the number of real images just done.

    Raises:
        ValueError: fewer real images than `count`, or images of another size.
    """
    if len(real) < count:
        raise ValueError(f"expected at least {count} real images, got {len(real)}")
    if extractor is None and real.shape[1:] != generated.shape[1:]:
        raise ValueError(f"expected real images of {list(generated.shape[1:])}, got {list(real.shape[1:])}")
    queries = _vectors(generated, extractor)
    distances = torch.empty(len(generated), 0, dtype=torch.float64)
    indices = torch.empty(len(generated), 0, dtype=torch.int64)
    for first in range(0, len(real), CHUNK):
        chunk = real[first : first + CHUNK]
        found = torch.cdist(queries, _vectors(chunk, extractor))
        distances = torch.cat([distances, found], dim=1)
        places = torch.arange(first, first + len(chunk)).expand(len(generated), -1)
        indices = torch.cat([indices, places], dim=1)
        distances, order = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, order)
        advance(len(chunk))
    scale = queries.shape[1] ** -0.5 if extractor is None else 1.0
    return Neighbours(indices, (distances * scale).float(), "pixels" if extractor is None else extractor.name)


def _vectors(images: torch.Tensor, extractor: Extractor | None) -> torch.Tensor:
    """float64 [N, D], in which distances of equal images come out near 0: pixels in [0, 1], or features."""
    return images.flatten(1).double() / 255 if extractor is None else extractor.features(images)[0].double()
