"""What methods that train encoders share: random crops, images that training does not see, and the head for labels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from driftkit.datasets.packs import ImagePack
from driftkit.errors import UsageError
from driftkit.methods.base import Setting
from driftkit.models.mae_resnet import MAEResNetConfig
from driftkit.protocols import Batch
from driftkit.runtime.random import generator_for, shuffled_indices

MEASURE_BATCH = 250
BANK_IMAGES = 5_000  # in which held-out images look for neighbours


@dataclass(frozen=True)
class LabelledImages:
    """Images to measure on."""

    images: torch.Tensor  # uint8 [N, 3, H, W]
    labels: torch.Tensor  # int64 [N], -1 where unlabelled


@dataclass(frozen=True)
class HeldOut:
    """Images that training does not see, and training images whose neighbours they are to find."""

    bank: LabelledImages
    queries: LabelledImages

    @property
    def labelled(self) -> bool:
        return bool((self.bank.labels >= 0).all() and (self.queries.labels >= 0).all())


def held_out_images(setting: Setting) -> HeldOut | None:
    """Images to measure on; None on ranks that do not measure, and where no images are held out."""
    pack = setting.pack
    if not len(setting.held_out) or not setting.ranks.is_main:
        return None
    bank = setting.training[shuffled_indices(0, 0, len(setting.training))[:BANK_IMAGES]]
    return HeldOut(*(LabelledImages(pack.images[i], pack.labels[i]) for i in (bank, setting.held_out)))


def with_head(network: MAEResNetConfig, pack: ImagePack | None, *, reason: str, fix: str = "") -> MAEResNetConfig:
    """The config with as many classes as the images have, unless it names more; with one while these are not known.

    `reason` is what needs classes and `fix` how to do without, for the UsageError where the images have fewer than 2
    classes, or more than the config.
    """
    if pack is None:
        return network.model_copy(update={"num_classes": network.num_classes or 1})
    if len(pack.classes) < 2:
        raise UsageError(
            f"{reason} needs at least 2 classes (images in a folder per class); {pack.path} has {len(pack.classes)}"
            + (f"; {fix}" if fix else "")
        )
    if network.num_classes is not None and network.num_classes < len(pack.classes):
        raise UsageError(f"`model.num_classes` {network.num_classes}: {pack.path} has {len(pack.classes)} classes")
    return network.model_copy(update={"num_classes": network.num_classes or len(pack.classes)})


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
