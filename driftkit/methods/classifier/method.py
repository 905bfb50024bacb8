"""The classifier, as the rest of driftkit knows it."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

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
    from torch import nn

    from driftkit.datasets.packs import ImagePack
    from driftkit.models.mae_resnet import MAEResNetConfig


class ClassifierConfig(MethodConfig):
    """The classifier objective."""

    name: Literal["classifier"] = "classifier"
    min_crop: float = Field(
        0.5, gt=0, le=1, description="smallest share of the area that a random resized crop keeps; 1: no cropping"
    )
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="share of the target spread over all classes")


def _build(config: ClassifierConfig, setting: Setting) -> BuiltObjective:
    from driftkit.methods.classifier.objective import Classifier
    from driftkit.methods.encoder_training import held_out_images

    return BuiltObjective(Classifier(config, ranks=setting.ranks, held_out=held_out_images(setting)))


def _workload(config: ClassifierConfig, network: "nn.Module", image_size: int) -> Workload:
    return Workload(lambda images: [network(images, classify=True)])


def _complete(config: ClassifierConfig, network: "MAEResNetConfig", pack: "ImagePack | None") -> "MAEResNetConfig":
    from driftkit.methods.encoder_training import with_head

    return with_head(network.model_copy(update={"decoder": False}), pack, reason="a classifier")


register(
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
        finish=export_trained_encoder,
    )
)
