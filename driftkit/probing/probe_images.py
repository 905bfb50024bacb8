"""Which images of a pack an encoder is probed with, and how many the batches of a probe take."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

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

    Raises:
        UsageError: too few images to compare disjoint batches.
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
