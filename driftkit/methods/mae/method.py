"""The masked autoencoder, as the rest of driftkit knows it."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from driftkit.errors import UsageError
from driftkit.methods.base import (
    BuiltObjective,
    Method,
    MethodConfig,
    Setting,
    Workload,
    export_trained_encoder,
    register,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from driftkit.datasets.packs import ImagePack
    from driftkit.models.mae_resnet import MAEResNetConfig


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


def _build(config: MAEConfig, setting: Setting) -> BuiltObjective:
    from driftkit.methods.encoder_training import held_out_images
    from driftkit.methods.mae.objective import MAE

    return BuiltObjective(MAE(config, ranks=setting.ranks, held_out=held_out_images(setting)))


def _workload(config: MAEConfig, network: "nn.Module", image_size: int) -> Workload:
    def forward(images: "torch.Tensor") -> "list[torch.Tensor]":
        return [network(images), *([network(images, classify=True)] if config.finetune_from != NEVER else [])]

    return Workload(forward)


def _complete(config: MAEConfig, network: "MAEResNetConfig", pack: "ImagePack | None") -> "MAEResNetConfig":
    from driftkit.methods.encoder_training import with_head

    if network.decoder is False:
        raise UsageError("`model.decoder` false: a MAE fills in images, which takes a decoder; leave it out")
    if config.finetune_from == NEVER:
        return network
    fix = f"without it: objective.finetune_from={NEVER}"
    return with_head(network, pack, reason="`objective.finetune_from`: fine-tuning", fix=fix)


register(
    Method(
        name="mae",
        label="MAE",
        config=MAEConfig,
        network="mae_resnet",
        network_role="encoder",
        build=_build,
        workload=_workload,
        holdout=0.02,
        complete=_complete,
        finish=export_trained_encoder,
    )
)
