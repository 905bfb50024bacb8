"""A classifier of the images and their labels: the evaluator of generators that it taught nothing."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from driftkit.methods.accumulate import accumulate_parts
from driftkit.methods.mae.objective import MEASURE_BATCH, HeldOut, crop_batch, crop_draws
from driftkit.protocols import Batch, Execution, StepLoss
from driftkit.runtime.ranks import Ranks
from driftkit.storage.images import to_float


class ClassifierConfig(BaseModel):
    """The classifier objective."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["classifier"] = "classifier"
    min_crop: float = Field(
        0.5, gt=0, le=1, description="smallest share of the area that a random resized crop keeps; 1: no cropping"
    )
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="share of the target spread over all classes")


class Classifier:
    """Cross-entropy of the linear head on the mean of the last map; images without a label are passed over."""

    needs_labels = True

    def __init__(self, config: ClassifierConfig, *, ranks: Ranks, held_out: HeldOut | None = None):
        self.config = config
        self.ranks = ranks
        self.held_out = held_out

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """`crop`, where images are cropped."""
        return crop_draws(seed, step, slots, min_crop=self.config.min_crop)

    def accumulate(self, model: nn.Module, batch: Batch, how: Execution) -> StepLoss:
        batch = batch.drawn(self)
        assert batch.labels is not None
        cropped = crop_batch(batch, min_crop=self.config.min_crop)
        # Every rank divides by the mean count over ranks, so that the gradients average to that of all images.
        labelled = self.ranks.mean((batch.labels >= 0).sum().float()).clamp(min=1)

        def loss(part: Batch, which: slice) -> StepLoss:
            assert part.labels is not None
            logits = model(cropped[which], classify=True).float()
            total = F.cross_entropy(
                logits, part.labels, ignore_index=-1, reduction="sum", label_smoothing=self.config.label_smoothing
            )
            right = (logits.argmax(dim=1) == part.labels).sum()
            total = total / labelled
            return StepLoss(total, {"cross_entropy": total}, {"training_accuracy": right / labelled})

        outcome = accumulate_parts(loss, batch, how)
        return StepLoss(outcome.total, outcome.terms, {k: self.ranks.mean(v) for k, v in outcome.health.items()})

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """`held_out_accuracy`, in [0, 1], on labelled images that training does not see; empty without them."""
        if self.held_out is None or not self.held_out.labelled:
            return {}
        device = next(model.parameters()).device
        images, labels = self.held_out.queries.images, self.held_out.queries.labels
        predicted = torch.cat([self._classes(model, part.to(device)).cpu() for part in images.split(MEASURE_BATCH)])
        return {"held_out_accuracy": float((predicted == labels).double().mean())}

    def _classes(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = model(to_float(images), classify=True).argmax(dim=1)
        return predicted

    def preview(self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The images in the order of the classes that they are put into."""
        images = images[: len(noise)]
        return images[model(images, classify=True).argmax(dim=1).argsort(stable=True)]
