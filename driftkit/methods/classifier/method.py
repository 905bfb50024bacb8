"""The classifier, as the rest of driftkit knows it."""

from pathlib import Path
from typing import TYPE_CHECKING

from driftkit.methods.base import BuiltObjective, Method, Setting, Workload, register
from driftkit.methods.classifier.config import ClassifierConfig

if TYPE_CHECKING:
    from torch import nn

    from driftkit.datasets.packs import ImagePack
    from driftkit.models.mae_resnet import MAEResNetConfig
    from driftkit.storage.run_folder import Run


def _build(config: ClassifierConfig, setting: Setting) -> BuiltObjective:
    from driftkit.methods.classifier.objective import Classifier
    from driftkit.methods.held_out import held_out_images

    return BuiltObjective(Classifier(config, ranks=setting.ranks, held_out=held_out_images(setting)))


def _workload(config: ClassifierConfig, network: "nn.Module", image_size: int) -> Workload:
    return Workload(lambda images: [network(images, classify=True)])


def _complete(config: ClassifierConfig, network: "MAEResNetConfig", pack: "ImagePack") -> "MAEResNetConfig":
    from driftkit.methods.held_out import with_head

    return with_head(network.model_copy(update={"decoder": False}), pack, reason="a classifier")


def _network_for_budget(config: ClassifierConfig, network: "MAEResNetConfig") -> "MAEResNetConfig":
    return network.model_copy(update={"num_classes": network.num_classes or 1, "decoder": False})


def _finish(run: "Run") -> Path:
    from driftkit.encoders.loading import export_encoder

    return export_encoder(run)


METHOD = register(
    Method(
        name="classifier",
        label="Classifier",
        config=ClassifierConfig,
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
