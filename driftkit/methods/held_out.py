"""Images that training does not see, and the labels that a network's head needs, for methods that train encoders."""

from dataclasses import dataclass

import torch

from driftkit.datasets.packs import ImagePack
from driftkit.errors import UsageError
from driftkit.methods.base import Setting
from driftkit.models.mae_resnet import MAEResNetConfig
from driftkit.runtime.random import shuffled_indices

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


def with_head(network: MAEResNetConfig, pack: ImagePack, *, reason: str, fix: str = "") -> MAEResNetConfig:
    """The config with as many classes as the images have, unless it names more.

    Args:
        reason: what needs classes, for the error.
        fix: how to do without.

    Raises:
        UsageError: the images have fewer than 2 classes, or more than the config.
    """
    if len(pack.classes) < 2:
        raise UsageError(
            f"{reason} needs at least 2 classes (images in a folder per class); {pack.path} has {len(pack.classes)}"
            + (f"; {fix}" if fix else "")
        )
    if network.num_classes is not None and network.num_classes < len(pack.classes):
        raise UsageError(f"`model.num_classes` {network.num_classes}: {pack.path} has {len(pack.classes)} classes")
    return network.model_copy(update={"num_classes": network.num_classes or len(pack.classes)})
