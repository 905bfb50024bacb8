"""MAE: the encoder for drifting that one can train oneself, by filling in masked patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from driftkit.methods.accumulate import accumulate_parts
from driftkit.metrics.quality import knn_accuracy, linear_accuracy
from driftkit.models.mae_resnet import MAEResNet
from driftkit.protocols import Batch, Execution, StepLoss
from driftkit.runtime.random import generator_for
from driftkit.runtime.ranks import Ranks
from driftkit.storage.images import to_float

NEVER = -1
NEIGHBOURS = 20
MEASURE_BATCH = 250
ASPECT = 4 / 3  # crops are at most this much wider than high, or higher than wide


class MAEConfig(BaseModel):
    """The MAE objective."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["mae"] = "mae"
    mask_probability: float = Field(0.5, gt=0, lt=1, description="probability that a patch is masked")
    patch_size: int = Field(2, ge=1, description="side of a masked patch in pixels")
    min_crop: float = Field(
        0.2, gt=0, le=1, description="smallest share of the area that a random resized crop keeps; 1: no cropping"
    )
    finetune_from: int = Field(
        NEVER, ge=NEVER, description="step from which a linear classifier is trained along, given labels; -1: never"
    )
    finetune_ramp: int = Field(1000, ge=1, description="steps over which the classifier's weight rises from 0")
    finetune_weight: float = Field(0.1, gt=0, description="weight of the classifier's loss after the ramp")

    def classifier_weight(self, step: int) -> float:
        """Weight of the classification loss at a step."""
        if self.finetune_from == NEVER or step < self.finetune_from:
            return 0.0
        return self.finetune_weight * min(1.0, (step - self.finetune_from + 1) / self.finetune_ramp)


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


class MAE:
    """Mean squared error on the masked pixels, which the network sees as zeros; later also of a linear classifier.

    Source: arXiv 2602.04770, Appendix A.3. Differs: pixels instead of latents; the classifier sees whole images, as
    whoever uses the encoder will show it.
    """

    def __init__(self, config: MAEConfig, *, ranks: Ranks, held_out: HeldOut | None = None):
        self.config = config
        self.ranks = ranks
        self.held_out = held_out

    @property
    def needs_labels(self) -> bool:
        return self.config.finetune_from != NEVER

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """`mask`, bool [N, rows, columns] of patches, and `crop`, where images are cropped."""
        return {
            "mask": self._masked_patches(seed, step, slots, image_shape),
            **crop_draws(seed, step, slots, min_crop=self.config.min_crop),
        }

    def accumulate(self, model: nn.Module, batch: Batch, how: Execution) -> StepLoss:
        batch = batch.drawn(self)
        assert batch.draws is not None
        cropped = crop_batch(
            batch, min_crop=self.config.min_crop
        )  # here, where no autocast rounds the crop's coordinates
        masks = self._of_pixels(batch.draws["mask"], cropped)
        # Every rank divides by the mean counts over ranks, so that the gradients average to that of all images.
        masked = (self.ranks.mean(masks.sum()) * batch.images.shape[1]).clamp(min=1)
        weight = self.config.classifier_weight(batch.step)
        labelled = torch.ones(())
        if weight:
            assert batch.labels is not None
            labelled = self.ranks.mean((batch.labels >= 0).sum().float()).clamp(min=1)

        def loss(part: Batch, which: slice) -> StepLoss:
            images, mask = cropped[which], masks[which]
            total = ((model(images * (1 - mask)).float() - images).square() * mask).sum() / masked
            terms, health = {"masked_mse": total}, {}
            if weight:
                assert part.labels is not None
                logits = model(images, classify=True).float()
                cross_entropy = F.cross_entropy(logits, part.labels, ignore_index=-1, reduction="sum") / labelled
                terms["classifier"] = weight * cross_entropy
                total = total + terms["classifier"]
                health["training_accuracy"] = (logits.argmax(dim=1) == part.labels).sum() / labelled
            return StepLoss(total, terms, health)

        outcome = accumulate_parts(loss, batch, how)
        return StepLoss(outcome.total, outcome.terms, {k: self.ranks.mean(v) for k, v in outcome.health.items()})

    def _masked_patches(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> torch.Tensor:
        """bool [N, rows, columns], True where a patch is masked: for every image a function of (seed, step, slot)."""
        size = [-(-side // self.config.patch_size) for side in image_shape[-2:]]
        draws = torch.stack([torch.rand(size, generator=generator_for(seed, "mask", step, s)) for s in slots])
        return draws < self.config.mask_probability

    def _of_pixels(self, patches: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """[N, 1, H, W] in the type of the images, 1 where masked."""
        mask = patches.to(images)[:, None]
        mask = mask.repeat_interleave(self.config.patch_size, -2).repeat_interleave(self.config.patch_size, -1)
        return mask[..., : images.shape[-2], : images.shape[-1]]

    def _fixed_masks(self, images: torch.Tensor, slots: range) -> torch.Tensor:
        """Those of the first step of seed 0, for what is measured and shown."""
        return self._of_pixels(self._masked_patches(0, 0, slots, images.shape[1:]), images)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """On held-out images: the reconstruction error, and how well classes can be read off the features.

        `knn_accuracy` and `linear_accuracy`, in [0, 1], are those of the last map's mean; absent without labels.
        """
        if self.held_out is None:
            return {}
        device = next(model.parameters()).device
        bank, queries = self.held_out.bank, self.held_out.queries
        result = {"held_out_mse": self._reconstruction(model, queries.images, device)}
        if self.held_out.labelled:
            known, asked = self._features(model, bank.images, device), self._features(model, queries.images, device)
            labels, truth = bank.labels.to(device), queries.labels.to(device)
            result["knn_accuracy"] = knn_accuracy(known, labels, asked, truth, neighbours=NEIGHBOURS)
            result["linear_accuracy"] = linear_accuracy(known, labels, asked, truth)
        return result

    def _features(self, model: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        assert isinstance(model, MAEResNet)
        parts = [
            model.encode(to_float(part.to(device)))[-1].mean(dim=(2, 3)).float() for part in images.split(MEASURE_BATCH)
        ]
        return torch.cat(parts)

    def _reconstruction(self, model: nn.Module, images: torch.Tensor, device: torch.device) -> float:
        error = count = 0.0
        for number, part in enumerate(images.split(MEASURE_BATCH)):
            real = to_float(part.to(device))
            first = number * MEASURE_BATCH
            mask = self._fixed_masks(real, range(first, first + len(real)))
            error += float(((model(real * (1 - mask)).float() - real).square() * mask).sum())
            count += float(mask.sum()) * real.shape[1]
        return error / max(count, 1.0)

    def preview(self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Original, masked and filled in, in turn."""
        images = images[: len(noise) // 3]
        mask = self._fixed_masks(images, range(len(images)))
        filled = images * (1 - mask) + model(images * (1 - mask)).float() * mask
        return torch.stack([images, images * (1 - mask), filled], dim=1).flatten(0, 1)


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
