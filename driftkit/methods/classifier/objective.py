"""A classifier of the images and their labels: an independent evaluator of generators."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from driftkit.methods.classifier.method import ClassifierConfig
from driftkit.methods.encoder_training import MEASURE_BATCH, HeldOut, crop_batch, crop_draws
from driftkit.protocols import UNCONDITIONAL, Batch, ChosenImages, Condition, Execution, StepLoss
from driftkit.runtime.ranks import Ranks
from driftkit.storage.images import to_float


class Classifier:
    """Cross-entropy of the linear head on the mean of the last map; images without a label are skipped."""

    needs_labels = True

    def __init__(self, config: ClassifierConfig, *, ranks: Ranks, held_out: HeldOut | None = None):
        self.config = config
        self.ranks = ranks
        self.held_out = held_out

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """`crop`, where images are cropped."""
        return crop_draws(seed, step, slots, min_crop=self.config.min_crop)

    def choose(self, seed: int, step: int, slots: range) -> ChosenImages | None:
        return None

    def accumulate(self, model: nn.Module, batch: Batch, execution: Execution) -> StepLoss:
        batch = batch.drawn(self)
        assert batch.labels is not None
        cropped = crop_batch(batch, min_crop=self.config.min_crop)
        # Every rank divides by the mean count over ranks, so that the gradients average to that of all images.
        labelled = self.ranks.mean((batch.labels >= 0).sum().float()).clamp(min=1)

        def loss(part: Batch, chunk: slice) -> StepLoss:
            assert part.labels is not None
            logits = model(cropped[chunk], classify=True).float()
            total = F.cross_entropy(
                logits, part.labels, ignore_index=-1, reduction="sum", label_smoothing=self.config.label_smoothing
            )
            correct = (logits.argmax(dim=1) == part.labels).sum()
            total = total / labelled
            return StepLoss(total, {"cross_entropy": total}, {"training_accuracy": correct / labelled})

        outcome = execution.accumulate(loss, batch)
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

    def preview(
        self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        """The images in the order of their predicted classes."""
        images = images[: len(noise)]
        return images[model(images, classify=True).argmax(dim=1).argsort(stable=True)]
