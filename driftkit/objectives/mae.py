"""MAE: the encoder for drifting that one can train oneself, by filling in masked patches."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from driftkit.protocols import Batch, StepLoss
from driftkit.runtime.distributed import Ranks
from driftkit.runtime.random import generator_for


class MAEConfig(BaseModel):
    """The MAE objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["mae"] = "mae"
    mask_probability: float = Field(0.5, gt=0, lt=1, description="probability that a patch is masked")
    patch_size: int = Field(2, ge=1, description="side of a masked patch in pixels")


class MAE:
    """Mean squared error on the masked pixels, which the network sees as zeros.

    Source: arXiv 2602.04770, Appendix A.3. Differs: pixels instead of latents.
    """

    def __init__(self, config: MAEConfig, *, ranks: Ranks):
        self.config = config
        self.ranks = ranks

    def loss(self, model: nn.Module, batch: Batch) -> StepLoss:
        mask = self._masks(batch.images, batch.slots, seed=batch.seed, step=batch.step)
        error = (model(batch.images * (1 - mask)).float() - batch.images).square() * mask
        # Every rank divides by the mean count of masked pixels, so that the gradients average to that of all images.
        loss = error.sum() / (self.ranks.mean(mask.sum()) * batch.images.shape[1]).clamp(min=1)
        return StepLoss(loss, {"masked_mse": loss.detach()})

    def _masks(self, images: torch.Tensor, slots: range, *, seed: int, step: int) -> torch.Tensor:
        """[N, 1, H, W], 1 where masked; every image's mask is a function of (seed, step, slot)."""
        patch = self.config.patch_size
        height, width = -(-images.shape[-2] // patch), -(-images.shape[-1] // patch)
        draws = torch.stack([torch.rand(height, width, generator=generator_for(seed, "mask", step, s)) for s in slots])
        mask = (draws < self.config.mask_probability).float()[:, None]
        mask = mask.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
        return mask[..., : images.shape[-2], : images.shape[-1]].to(images)

    def preview(self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Original, masked and filled in, in turn."""
        images = images[: len(noise) // 3]
        mask = self._masks(images, range(len(images)), seed=0, step=0)
        filled = images * (1 - mask) + model(images * (1 - mask)).float() * mask
        return torch.stack([images, images * (1 - mask), filled], dim=1).flatten(0, 1)
