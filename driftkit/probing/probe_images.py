"""The images an encoder is probed with: which of a pack, and the corruptions it should tell from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from driftkit.datasets.packs import ImagePack, balanced_indices
from driftkit.errors import UsageError
from driftkit.runtime.random import generator_for

DEFAULT_BATCH, SMALLEST_BATCH = 128, 8
CLASS_REPEATS = 2
NUM_CLASSES = 3  # that are tried as "one class"
ANCHOR_SHARE = 8  # one in so many of a batch stays when the others change


@dataclass(frozen=True)
class ProbeImages:
    """The images to measure on, uint8 [*, 3, H, W], in random order."""

    real: torch.Tensor  # all real images, at least 4 batches
    labels: torch.Tensor | None  # int64 of `real`; None where unlabelled
    # images of a single class each, `one_class_count` or more; empty where there are none
    one_class: Sequence[torch.Tensor] = ()


def num_anchors(batch_size: int) -> int:
    """Images that every batch has in common."""
    return max(1, batch_size // ANCHOR_SHARE)


def pool_size(batch_size: int, repeats: int) -> int:
    """Images that `repeats` batches take together."""
    anchors = num_anchors(batch_size)
    return anchors + repeats * (batch_size - anchors)


def one_class_count(batch_size: int) -> int:
    """Images of one class that `ProbeImages.one_class` needs of each class."""
    return pool_size(batch_size, CLASS_REPEATS)


def probe_batch_size(pack: ImagePack, spec: str, *, num_images: int, batch_size: int | None) -> int:
    """The batch size asked for, or what the images allow.

    Raises UsageError where they are too few to compare disjoint batches.
    """
    count = min(num_images, len(pack))
    if batch_size is not None and count < 4 * batch_size:
        raise UsageError(
            f"`batch_size` {batch_size}: got {count} images ({len(pack)} in {spec}), expected at least "
            f"{4 * batch_size} to compare disjoint batches; raise `num_images` or lower `batch_size`"
        )
    if count < 4 * SMALLEST_BATCH:
        raise UsageError(f"{spec}: got {count} images to probe with, expected at least {4 * SMALLEST_BATCH}")
    return batch_size or min(DEFAULT_BATCH, count // 4)


def choose_images(pack: ImagePack, *, num_images: int, batch_size: int, seed: int) -> tuple[ProbeImages, list[str]]:
    """Images in equal shares of the classes, in a random order, and single classes; and what cannot be measured."""
    order = torch.randperm(len(pack), generator=generator_for(seed, "probe-images"))
    balanced = balanced_indices(pack.labels[order], min(num_images, len(pack)))  # ascending places in `order`
    picked = order[balanced]
    labels = pack.labels[picked]
    # Unlabelled images, or a single class, leave nothing to tell apart.
    if int(labels.min()) < 0 or len(torch.unique(labels)) < 2:
        skipped = ["no labels of two or more classes: class purity and one class against all"]
        return ProbeImages(pack.images[picked], None), skipped
    needed = one_class_count(batch_size)
    of_class = {c: order[pack.labels[order] == c] for c in torch.unique(labels).tolist()}
    large = [c for c, members in of_class.items() if len(members) >= needed]
    drawn = torch.randperm(len(large), generator=generator_for(seed, "probe-classes")).tolist()
    # From the end: those that are not among the real images come first.
    pools = [pack.images[of_class[large[i]][-needed:]] for i in drawn[:NUM_CLASSES]]
    skipped = (
        [] if pools else [f"one class against all: no class has {needed} images; a smaller batch size needs fewer"]
    )
    return ProbeImages(pack.images[picked], labels, pools), skipped


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
