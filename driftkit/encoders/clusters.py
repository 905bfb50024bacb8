"""Classes for images without labels: clusters of what an encoder sees in them."""

import torch
import torch.nn.functional as F

from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.runtime.device import copy_to, ieee_float32
from driftkit.runtime.progress import progress
from driftkit.storage.images import to_float

MAPS = 2  # the last ones of the encoder, whose means describe an image
BATCH = 256
ROUNDS = 40  # of assigning rows and moving centres
ROWS_AT_A_TIME = 2**16


def cluster_images(images: torch.Tensor, encoder: FrozenEncoder, count: int, *, seed: int = 0) -> torch.Tensor:
    """The cluster of each image, int64 [N] in [0, count).

    Args:
        images: uint8 [N, 3, H, W].
        encoder: ready to encode (`FrozenEncoder.prepare`) on the device where its parameters are.
    """
    return k_means(image_vectors(images, encoder), count, seed=seed)


def image_vectors(images: torch.Tensor, encoder: FrozenEncoder) -> torch.Tensor:
    """Means of the last maps of each image, float32 [N, D] on the encoder's device.

    The part of each map has mean 0 and variance 1 over the images, where they differ, and then length 1 in each image.
    """
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    means: list[list[torch.Tensor]] = []
    with torch.inference_mode(), ieee_float32(device), progress("encoding images for clusters", len(images)) as advance:
        for batch in images.split(BATCH):
            maps = encoder.maps(to_float(copy_to(batch, device)))[-MAPS:]
            means.append([part.values.float().mean(dim=(2, 3)) for part in maps])
            advance(len(batch))
    parts = [torch.cat(part) for part in zip(*means, strict=True)]
    return torch.cat([F.normalize((p - p.mean(0)) / p.std(0).clamp(min=1e-12), dim=1) for p in parts], dim=1)


def k_means(rows: torch.Tensor, count: int, *, seed: int = 0) -> torch.Tensor:
    """The cluster of each row of [N, D], int64 [N] on the CPU, after at most ROUNDS rounds of Lloyd's algorithm.

    A cluster that loses all rows gets the row that is farthest from its centre, so that none is empty where count rows
    differ.

    Source: Arthur and Vassilvitskii 2007 (k-means++), whose first centres are rows drawn in proportion to their squared
    distance from the nearest centre so far.
    """
    draw = torch.Generator().manual_seed(seed)
    centres = rows[torch.randint(len(rows), (1,), generator=draw)]
    nearest = torch.full_like(rows[:, 0], torch.inf)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, _nearest(rows, centres[-1:])[0])
        centres = torch.cat([centres, rows[_draw(nearest.cpu(), draw)][None]])
    labels = torch.full_like(nearest, -1, dtype=torch.int64)
    for _ in range(ROUNDS):
        before = labels
        distances, labels = _nearest(rows, centres)
        sizes = torch.bincount(labels, minlength=count)
        for empty in (sizes == 0).nonzero().flatten().tolist():
            farthest = distances.argmax()
            labels[farthest], distances[farthest] = empty, 0.0
        if torch.equal(labels, before):
            break
        sizes = torch.bincount(labels, minlength=count).clamp(min=1)
        centres = torch.zeros_like(centres).index_add_(0, labels, rows) / sizes[:, None]
    return labels.cpu()


def _nearest(rows: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row the squared distance to its nearest centre, and which one that is."""
    found = [torch.cdist(part, centres).min(dim=1) for part in rows.split(ROWS_AT_A_TIME)]
    return torch.cat([each.values for each in found]).square(), torch.cat([each.indices for each in found])


def _draw(weights: torch.Tensor, draw: torch.Generator) -> int:
    """An index in proportion to weights [N] of any number; any index where all are 0."""
    total = weights.double().cumsum(0)
    point = torch.rand((), generator=draw, dtype=torch.float64) * total[-1]
    return min(int(torch.searchsorted(total, point, right=True)), len(weights) - 1)
