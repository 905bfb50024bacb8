"""Settings of the masked autoencoder."""

from typing import Literal

from pydantic import Field

from driftkit.methods.base import MethodConfig

NEVER = -1


class MAEConfig(MethodConfig):
    """The MAE objective."""

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
