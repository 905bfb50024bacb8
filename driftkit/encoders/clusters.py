"""Classes for images without labels: clusters of what an encoder sees in them."""

import torch
import torch.nn.functional as F

from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.errors import RefusedError
from driftkit.runtime.device import copy_to, ieee_float32
from driftkit.runtime.progress import phase, progress
from driftkit.storage.images import to_float

MAPS = 2  # the last ones of the encoder, whose means describe an image
BATCH = 256
ROUNDS = 40  # of assigning rows and moving centres
DISTANCES_AT_A_TIME = 2**24


def cluster_images(images: torch.Tensor, encoder: FrozenEncoder, num_clusters: int) -> torch.Tensor:
    """The cluster of each image, int64 [N] in [0, num_clusters).

    Args:
        images: uint8 [N, 3, H, W].
        encoder: ready to encode (`FrozenEncoder.prepare`) on the device where its parameters are.
    """
    vectors = image_vectors(images, encoder)
    with phase("clustering"):
        return k_means(vectors.cpu(), num_clusters)  # sums on a GPU would depend on their order


def image_vectors(images: torch.Tensor, encoder: FrozenEncoder) -> torch.Tensor:
    """Means of the last maps of each image, float32 [N, D] on the encoder's device.

    The part of each map has mean 0 and variance 1 over the images, where they differ, and then length 1 in each image.

    Raises:
        RefusedError: a feature is not finite.
    """
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    means: list[list[torch.Tensor]] = []
    with torch.inference_mode(), ieee_float32(device), progress("encoding images for clusters", len(images)) as advance:
        for batch in images.split(BATCH):
            maps = encoder.maps(to_float(copy_to(batch, device)))[-MAPS:]
            means.append([part.values.float().mean(dim=(2, 3)) for part in maps])
            advance(len(batch))
    parts = [torch.cat(part) for part in zip(*means, strict=True)]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise RefusedError(f"{encoder.name} gives features that are not finite for these images; no clusters were made")
    return torch.cat([F.normalize((p - p.mean(0)) / p.std(0).clamp(min=1e-12), dim=1) for p in parts], dim=1)


def k_means(rows: torch.Tensor, num_clusters: int, *, seed: int = 0) -> torch.Tensor:
    """The cluster of each row of [N, D], int64 [N] on the CPU, after at most ROUNDS rounds of Lloyd's algorithm.

    A cluster that loses all rows gets the row that is farthest from its centre, so a cluster stays empty only if there
    are fewer distinct rows than clusters.

    Source: Arthur and Vassilvitskii 2007 (k-means++), whose first centres are rows drawn in proportion to their squared
    distance from the nearest centre so far.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = rows.new_empty(num_clusters, rows.shape[1])
    centres[0] = rows[torch.randint(len(rows), (), generator=generator)]
    distances = torch.full_like(rows[:, 0], torch.inf)
    for number in range(1, num_clusters):
        distances = torch.minimum(distances, _nearest(rows, centres[number - 1 : number])[0])
        centres[number] = rows[_weighted_index(distances.cpu(), generator)]
    rounding = 1e-6 * rows.square().sum(dim=1).max()  # squared distances of equal rows
    labels = torch.full_like(distances, -1, dtype=torch.int64)
    for _ in range(ROUNDS):
        before = labels
        distances, labels = _nearest(rows, centres)
        for empty in (torch.bincount(labels, minlength=num_clusters) == 0).nonzero().flatten().tolist():
            farthest = distances.argmax()
            if distances[farthest] <= rounding:
                break
            labels[farthest], distances[farthest] = empty, 0.0
        if torch.equal(labels, before):
            break
        sizes = torch.bincount(labels, minlength=num_clusters).clamp(min=1)
        centres = torch.zeros_like(centres).index_add_(0, labels, rows) / sizes[:, None]
    return labels.cpu()


def _nearest(rows: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row the squared distance to its nearest centre, and which one that is."""
    parts = rows.split(max(1, DISTANCES_AT_A_TIME // len(centres)))
    nearest = [torch.cdist(part, centres).min(dim=1) for part in parts]
    return torch.cat([part.values for part in nearest]).square(), torch.cat([part.indices for part in nearest])


def _weighted_index(weights: torch.Tensor, generator: torch.Generator) -> int:
    """An index in proportion to weights [N] of any number; the last one where all are 0."""
    total = weights.double().cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * total[-1]
    return min(int(torch.searchsorted(total, point, right=True)), len(weights) - 1)
