"""Corruptions of real images: a generator cannot learn to avoid what its encoder does not detect."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

REFERENCE_SIDE = 32  # widths below are in pixels at this image side and grow with it
NOISE = 0.1
CHECKERBOARD = 0.1
SHUFFLE_GRID = 4

Corruption = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""(images [N, 3, H, W] in [-1, 1], where randomness comes from) -> images of the same shape and range."""


@dataclass(frozen=True)
class CorruptionSpec:
    """One corruption."""

    name: str  # as in tables and JSON
    error: str  # what a generator would do wrong
    apply: Corruption  # the function
    is_control: bool = False  # real images stay real, so that a good encoder may ignore it
    per_image: bool = True  # image i stays a version of image i, so that its change can be measured
    # the step back to the original is the step that training should take: a shuffled image may become another real
    # image than the one it was made from
    is_reversible: bool = True


def noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise of standard deviation 0.1 (13 of 255 levels)."""
    return (images + NOISE * torch.randn(images.shape, generator=generator).to(images)).clamp(-1, 1)


def blur(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian blur with a standard deviation of 1 pixel at 32 px."""
    sigma = max(images.shape[-1] / REFERENCE_SIDE, 0.5)
    radius = min(round(3 * sigma), images.shape[-1] - 1)
    at = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(images)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    channels = images.shape[1]
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def checkerboard(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A checkerboard of single pixels, plus or minus 0.1: the artefact of upsampling layers."""
    height, width = images.shape[-2:]
    sign = 1 - 2 * ((torch.arange(height)[:, None] + torch.arange(width)) % 2)
    return (images + CHECKERBOARD * sign.to(images)).clamp(-1, 1)


def grey(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Luma without colour."""
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images).contiguous()


def shuffle(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The cells of a 4x4 grid in another order, drawn per image; what 4 does not divide stays at the edge."""
    count, channels, height, width = images.shape
    grid = min(SHUFFLE_GRID, height, width)
    h, w = height // grid, width // grid
    cells = images[..., : h * grid, : w * grid].reshape(count, channels, grid, h, grid, w)
    cells = cells.permute(0, 2, 4, 1, 3, 5).reshape(count, grid * grid, channels, h, w)
    order = torch.rand(count, grid * grid, generator=generator).argsort(dim=1).to(images.device)
    cells = torch.gather(cells, 1, order[:, :, None, None, None].expand_as(cells))
    cells = cells.reshape(count, grid, grid, channels, h, w).permute(0, 3, 1, 4, 2, 5)
    out = images.clone()
    out[..., : h * grid, : w * grid] = cells.reshape(count, channels, h * grid, w * grid)
    return out


def collage(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each quadrant from another image: every part looks right by itself, and the whole does not."""
    out = images.clone()
    count = len(images)
    top, left = images.shape[-2] // 2, images.shape[-1] // 2
    rolls = [0, *(torch.randperm(max(count - 1, 1), generator=generator)[:3] + 1).tolist()]
    rolls += [0] * (4 - len(rolls))  # fewer than four images
    quadrants = ((slice(top), slice(left)), (slice(top), slice(left, None)), (slice(top, None), slice(left)),
                 (slice(top, None), slice(left, None)))  # fmt: skip
    for roll, (rows, columns) in zip(rolls, quadrants, strict=True):
        out[..., rows, columns] = images.roll(roll, 0)[..., rows, columns]
    return out


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One pixel (at 32 px) to the right, the edge repeated."""
    by = max(1, round(images.shape[-1] / REFERENCE_SIDE))
    return F.pad(images, (by, 0, 0, 0), mode="replicate")[..., : images.shape[-1]]


CORRUPTIONS = (
    CorruptionSpec("noise", "grainy images", noise),
    CorruptionSpec("blur", "images without fine detail", blur),
    CorruptionSpec("checker", "upsampling artefacts", checkerboard),
    CorruptionSpec("grey", "wrong colours", grey),
    CorruptionSpec("shuffle", "right parts in wrong places", shuffle, is_reversible=False),
    CorruptionSpec("collage", "parts that do not belong together", collage, per_image=False, is_reversible=False),
    CorruptionSpec("shift", "nothing wrong: one pixel to the side", shift, is_control=True, is_reversible=False),
)
ONE_CLASS = "one class"
"""Real images of a single class play the generated ones: no image is corrupted, but most content is missing."""
