"""MAE: the encoder for drifting that one can train oneself, by filling in masked patches."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from driftkit.methods.encoder_training import MEASURE_BATCH, HeldOut, crop_batch, crop_draws
from driftkit.methods.mae.method import NEVER, MAEConfig
from driftkit.metrics.quality import knn_accuracy, linear_accuracy
from driftkit.models.mae_resnet import MAEResNet
from driftkit.protocols import UNCONDITIONAL, Batch, ChosenImages, Condition, Execution, StepLoss
from driftkit.runtime.random import generator_for
from driftkit.runtime.ranks import Ranks
from driftkit.storage.images import to_float

NEIGHBOURS = 20


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

    def choose(self, seed: int, step: int, slots: range) -> ChosenImages | None:
        return None

    def accumulate(self, model: nn.Module, batch: Batch, execution: Execution) -> StepLoss:
        batch = batch.drawn(self)
        assert batch.draws is not None
        cropped = crop_batch(batch, min_crop=self.config.min_crop)  # outside autocast, which would round coordinates
        masks = self._of_pixels(batch.draws["mask"], cropped)
        # Every rank divides by the mean counts over ranks, so that the gradients average to that of all images.
        masked = (self.ranks.mean(masks.sum()) * batch.images.shape[1]).clamp(min=1)
        weight = self.config.classifier_weight(batch.step)
        labelled = torch.ones(())
        if weight:
            assert batch.labels is not None
            labelled = self.ranks.mean((batch.labels >= 0).sum().float()).clamp(min=1)

        def loss(part: Batch, chunk: slice) -> StepLoss:
            images, mask = cropped[chunk], masks[chunk]
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

        outcome = execution.accumulate(loss, batch)
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
            train, test = self._features(model, bank.images, device), self._features(model, queries.images, device)
            labels, test_labels = bank.labels.to(device), queries.labels.to(device)
            result["knn_accuracy"] = knn_accuracy(train, labels, test, test_labels, neighbours=NEIGHBOURS)
            result["linear_accuracy"] = linear_accuracy(train, labels, test, test_labels)
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

    def preview(
        self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        """Original, masked and filled in, in turn."""
        images = images[: max(1, len(noise) // 3)]
        mask = self._fixed_masks(images, range(len(images)))
        filled = images * (1 - mask) + model(images * (1 - mask)).float() * mask
        return torch.stack([images, images * (1 - mask), filled], dim=1).flatten(0, 1)
