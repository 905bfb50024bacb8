"""The masked autoencoder, as the rest of driftkit knows it."""

from pathlib import Path
from typing import TYPE_CHECKING

from driftkit.errors import UsageError
from driftkit.methods.base import BuiltObjective, Method, Setting, Workload, register
from driftkit.methods.mae.config import NEVER, MAEConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from driftkit.datasets.packs import ImagePack
    from driftkit.models.mae_resnet import MAEResNetConfig
    from driftkit.storage.run_folder import Run


def _build(config: MAEConfig, setting: Setting) -> BuiltObjective:
    from driftkit.methods.held_out import held_out_images
    from driftkit.methods.mae.objective import MAE

    return BuiltObjective(MAE(config, ranks=setting.ranks, held_out=held_out_images(setting)))


def _workload(config: MAEConfig, network: "nn.Module", image_size: int) -> Workload:
    def forward(images: "torch.Tensor") -> "list[torch.Tensor]":
        return [network(images), *([network(images, classify=True)] if config.finetune_from != NEVER else [])]

    return Workload(forward)


def _complete(config: MAEConfig, network: "MAEResNetConfig", pack: "ImagePack") -> "MAEResNetConfig":
    from driftkit.methods.held_out import with_head

    if network.decoder is False:
        raise UsageError("`model.decoder` false: a MAE fills in images, which takes a decoder; leave it out")
    if config.finetune_from == NEVER:
        return network
    return with_head(
        network,
        pack,
        reason="`objective.finetune_from`: fine-tuning",
        fix=f"without it: objective.finetune_from={NEVER}",
    )


def _network_for_budget(config: MAEConfig, network: "MAEResNetConfig") -> "MAEResNetConfig":
    return network.model_copy(update={"num_classes": network.num_classes or 1})


def _finish(run: "Run") -> Path:
    from driftkit.encoders.loading import export_encoder

    return export_encoder(run)


METHOD = register(
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
        network_for_budget=_network_for_budget,
        finish=_finish,
    )
)
