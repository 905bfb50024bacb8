"""Random resized crops of a batch, drawn per image."""

import torch
import torch.nn.functional as F

from driftkit.protocols import Batch
from driftkit.runtime.random import generator_for

ASPECT = 4 / 3  # crops are at most this much wider than high, or higher than wide


def crop_draws(seed: int, step: int, slots: range, *, min_crop: float) -> dict[str, torch.Tensor]:
    """`crop`, float32 [N, 4], for `crop_batch`; nothing where images stay whole."""
    if min_crop == 1:
        return {}
    return {"crop": torch.stack([torch.rand(4, generator=generator_for(seed, "crop", step, s)) for s in slots])}


def crop_batch(batch: Batch, *, min_crop: float) -> torch.Tensor:
    """`random_resized_crop` of the images of a batch by its `crop_draws`."""
    if min_crop == 1:
        return batch.images
    assert batch.draws is not None
    return random_resized_crop(batch.images, batch.draws["crop"], min_crop=min_crop)


def random_resized_crop(images: torch.Tensor, draws: torch.Tensor, *, min_crop: float) -> torch.Tensor:
    """A part of every image, brought back to the image's size.

    The crop's share of the area is uniform in [min_crop, 1] and the logarithm of its aspect uniform between 3/4 and
    4/3, as in torchvision's RandomResizedCrop; a side that would exceed the image is cut to it.

    Args:
        images: float [N, C, H, W].
        draws: uniform numbers in [0, 1), [N, 4]: area, aspect, horizontal and vertical place.
        min_crop: smallest share of the area, in (0, 1].

    Returns:
        [N, C, H, W], bilinear.
    """
    area = min_crop + (1 - min_crop) * draws[:, 0]
    aspect = ASPECT ** (2 * draws[:, 1] - 1)
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = (1 - width) * (2 * draws[:, 2] - 1), (1 - height) * (2 * draws[:, 3] - 1)  # of centres, in [-1, 1]
    zero = torch.zeros_like(width)
    theta = torch.stack([torch.stack([width, zero, left], 1), torch.stack([zero, height, top], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return cropped.contiguous(memory_format=torch.channels_last)
