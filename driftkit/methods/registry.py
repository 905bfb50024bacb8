"""The objectives by name: their configs, their networks and the samplers that fit them. A new method is a new row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from driftkit.config.layers import did_you_mean
from driftkit.datasets.packs import ImagePack
from driftkit.encoders.cache import FeatureCache, FeatureSource, open_cache
from driftkit.encoders.features import FEATURES_VERSION, WITH_PIXELS, feature_set
from driftkit.encoders.lineage import PIXEL_TERM, Lineage
from driftkit.encoders.loading import export_encoder, fetch_published, load_encoder
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import UsageError
from driftkit.methods.classifier.objective import Classifier, ClassifierConfig
from driftkit.methods.ddpm.objective import DDPM, DDPMConfig
from driftkit.methods.ddpm.samplers import ddpm_variance, sample_ddim, sample_ddpm, sample_dpm_solver
from driftkit.methods.drifting.objective import Drifting, DriftingConfig
from driftkit.methods.drifting.one_step import sample_one_step
from driftkit.methods.mae.objective import MAE, NEVER, HeldOut, LabelledImages, MAEConfig
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.models.unet import UNet, UNetConfig
from driftkit.protocols import Execution, Objective, Sampler
from driftkit.runtime.device import autocast
from driftkit.runtime.folders import cache_folder
from driftkit.runtime.random import shuffled_indices
from driftkit.runtime.ranks import Ranks
from driftkit.storage.files import state_digest
from driftkit.storage.run_folder import Run

ObjectiveConfig = DriftingConfig | DDPMConfig | MAEConfig | ClassifierConfig
ModelConfig = UNetConfig | MAEResNetConfig


@dataclass(frozen=True)
class BuiltObjective:
    """An objective, and what its manifest should say about frozen networks it uses."""

    objective: Objective
    encoder: dict[str, Any] | None = None


@dataclass(frozen=True)
class Setting:
    """What an objective may need to know of the run beside its own config.

    Attributes:
        pack: all images.
        training: indices of those that are trained on.
        held_out: indices of those that are not.
        flips: whether mirrored images are trained on too.
        dtype: number format that networks run in.
        compile: whether networks are compiled.
    """

    pack: ImagePack
    training: torch.Tensor
    held_out: torch.Tensor
    flips: bool
    dtype: torch.dtype
    compile: bool
    device: torch.device
    ranks: Ranks


@dataclass(frozen=True)
class Curve:
    """A signal of training that reports draw over the steps.

    Attributes:
        key: "loss", or a key of `health` in metrics.jsonl.
        label: name in tables and on the axis.
        caption: what its values mean.
        from_zero: draw a linear axis from 0, which shows that a signal is flat.
    """

    key: str
    label: str
    caption: str
    from_zero: bool = False


@dataclass(frozen=True)
class ObjectiveKind:
    """One method.

    Attributes:
        label: in reports.
        model_kind: `kind` of the network config it trains.
        build: makes the objective.
        samplers: sampler name -> function of the objective's config that makes the sampler; the first is the default.
            Empty where the method generates no images.
        sampler_options: (config, sampler, NFE, options asked for) -> those to record: with what follows from the NFE.
        min_batch: images that the global batch must have.
        tells_spread: whether its steps generate images, so that their collapse shows while it trains.
        holdout: share of the images kept out of training to measure on, unless data.holdout says how many.
        complete: fills in what the network's config leaves to the images.
        export: writes what the finished run is used for elsewhere.
        curves: signals of training that reports draw, the one that shows progress first.
        curves_note: what a reader of the curves should know.
    """

    name: str
    label: str
    model_kind: str
    build: Callable[[Any, Setting], BuiltObjective]
    samplers: Mapping[str, Callable[[Any], Sampler]] = field(default_factory=dict)
    sampler_options: Callable[[Any, str, int | None, Mapping[str, Any]], dict[str, Any]] = (
        lambda config, sampler, nfe, options: dict(options)
    )
    min_batch: int = 1
    tells_spread: bool = False
    holdout: float = 0.0
    complete: Callable[[Any, Any, ImagePack], Any] = lambda objective, model, pack: model
    export: Callable[[Run], Path] | None = None
    curves: tuple[Curve, ...] = (Curve("loss", "loss", "Loss."),)
    curves_note: str = ""


def _build_drifting(config: DriftingConfig, setting: Setting) -> BuiltObjective:
    if setting.ranks.world_size > 1 and config.encoder_weights is None and not config.random_weights:
        with setting.ranks.first_alone():  # one download per cache, which the other ranks then read
            fetch_published(config.encoder)
    encoder = load_encoder(
        config.encoder,
        image_size=setting.pack.image_size,
        input_size=config.input_size,
        resize=config.resize,
        weights=Path(config.encoder_weights) if config.encoder_weights else None,
        random_weights=config.random_weights,
        taps=config.taps,
        map_norm=config.map_norm,
        feature_set=config.feature_set,
        device=setting.device,
    ).to(memory_format=torch.channels_last)
    features = config.feature_set or encoder.feature_set
    cache = _open_cache(encoder, features, setting) if config.cache_features else None
    about = {
        "name": encoder.name,
        "parameters": encoder.num_parameters,
        **encoder.describe(),
        "feature_set": features,
        "random_weights": encoder.random_weights,
        "weights_digest": encoder.weights_digest,
        "lineage": [lineage.describe() for lineage in taught_by(encoder, features)],
    }
    encoder.store_weights_for(setting.dtype)  # their digests have been taken
    objective = Drifting(config, encoder, ranks=setting.ranks, cache=cache, compiled=setting.compile)
    return BuiltObjective(objective, about)


def taught_by(encoder: FrozenEncoder, features: str) -> list[Lineage]:
    """Where all that the drifting loss sees comes from: the encoder, and the pixels where the feature set has them."""
    return [encoder.lineage, *([PIXEL_TERM] if features in WITH_PIXELS else [])]


def _open_cache(encoder: FrozenEncoder, features: str, setting: Setting) -> FeatureCache:
    # The seed of random weights says nothing of how this version of timm draws them: only their content does.
    digest = state_digest(encoder.state_dict()) if encoder.random_weights else encoder.weights_digest
    key = {
        "data": setting.pack.digest,
        "image_size": setting.pack.image_size,
        "encoder": encoder.describe(),
        "weights": digest,
        "feature_set": features,
        "computed_in": f"{str(setting.dtype).removeprefix('torch.')} on {setting.device.type}",
        "versions": {"features": FEATURES_VERSION, "timm": version("timm"), "torch": version("torch")},
    }
    how = Execution(autocast=partial(autocast, setting.device, setting.dtype))
    source = FeatureSource(encoder, feature_set(features), key, setting.device, how)
    return open_cache(
        cache_folder() / "features", setting.pack.images, source, flips=setting.flips, ranks=setting.ranks
    )


def _ddpm_sampler_options(
    config: DDPMConfig, sampler: str, nfe: int | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    chosen = {"variance": ddpm_variance(nfe, config.schedule())} if sampler == "ddpm" else {}
    return {**chosen, **options}


def _build_mae(config: MAEConfig, setting: Setting) -> BuiltObjective:
    return BuiltObjective(MAE(config, ranks=setting.ranks, held_out=_held_out(setting)))


def _build_classifier(config: ClassifierConfig, setting: Setting) -> BuiltObjective:
    return BuiltObjective(Classifier(config, ranks=setting.ranks, held_out=_held_out(setting)))


def _held_out(setting: Setting) -> HeldOut | None:
    """What to measure on, where this is the rank that measures and images are held out."""
    pack = setting.pack
    if not len(setting.held_out) or not setting.ranks.is_main:
        return None
    bank = setting.training[shuffled_indices(0, 0, len(setting.training))[:BANK_IMAGES]]
    return HeldOut(*(LabelledImages(pack.images[i], pack.labels[i]) for i in (bank, setting.held_out)))


def _complete_mae(config: MAEConfig, model: MAEResNetConfig, pack: ImagePack) -> MAEResNetConfig:
    if model.decoder is False:
        raise UsageError("model.decoder false: a MAE fills in images, which takes a decoder; leave it out")
    if config.finetune_from == NEVER:
        return model
    return _with_head(
        model, pack, f"objective.finetune_from: fine-tuning; without it: --set objective.finetune_from={NEVER}"
    )


def _complete_classifier(config: ClassifierConfig, model: MAEResNetConfig, pack: ImagePack) -> MAEResNetConfig:
    return _with_head(model.model_copy(update={"decoder": False}), pack, "--objective classifier")


def _with_head(model: MAEResNetConfig, pack: ImagePack, wanted: str) -> MAEResNetConfig:
    what, _, otherwise = wanted.partition(";")
    if len(pack.classes) < 2:
        raise UsageError(
            f"{what} needs at least 2 classes (images in a folder per class); {pack.path} has {len(pack.classes)}"
            + (f";{otherwise}" if otherwise else "")
        )
    if model.num_classes is not None and model.num_classes < len(pack.classes):
        raise UsageError(f"model.num_classes {model.num_classes}: {pack.path} has {len(pack.classes)} classes")
    return model.model_copy(update={"num_classes": model.num_classes or len(pack.classes)})


DRIFTING_CURVES = (
    Curve("drift_norm", "drift norm", "Drift norm: how far real and generated features still pull apart."),
    Curve(
        "spread",
        "spread",
        "Spread of generated features over that of real ones: 1 is as varied as real images, near 0 is collapse.",
        from_zero=True,
    ),
    Curve(
        "loss",
        "normalised drifting loss",
        "Normalised drifting loss: flat by construction, shown so that nobody waits for it.",
        from_zero=True,
    ),
)
DRIFTING_NOTE = (
    "The drifting loss divides the field by its own size, so it is flat by construction and says nothing about "
    "progress. The signal to watch is the drift norm: the length of the field before that division. It starts low "
    "while generated images are all alike, rises as they spread, and falls as generated and real features agree."
)

BANK_IMAGES = 5_000  # in which held-out images look for neighbours

OBJECTIVES = {
    kind.name: kind
    for kind in (
        ObjectiveKind(
            "drift",
            "Drifting",
            "unet",
            _build_drifting,
            {"one-step": lambda config: sample_one_step},
            min_batch=2,  # generated images push one another
            tells_spread=True,
            curves=DRIFTING_CURVES,
            curves_note=DRIFTING_NOTE,
        ),
        ObjectiveKind(
            "ddpm",
            "DDPM",
            "unet",
            lambda config, setting: BuiltObjective(DDPM(config)),
            {
                "ddim": lambda config: partial(sample_ddim, schedule=config.schedule()),
                "ddpm": lambda config: partial(sample_ddpm, schedule=config.schedule()),
                "dpm-solver": lambda config: partial(sample_dpm_solver, schedule=config.schedule()),
            },
            sampler_options=_ddpm_sampler_options,
            curves=(Curve("loss", "loss", "Loss of DDPM: squared error of the predicted noise."),),
        ),
        ObjectiveKind(
            "mae", "MAE", "mae_resnet", _build_mae, holdout=0.02, complete=_complete_mae, export=export_encoder
        ),
        ObjectiveKind(
            "classifier",
            "Classifier",
            "mae_resnet",
            _build_classifier,
            holdout=0.02,
            complete=_complete_classifier,
            export=export_encoder,
        ),
    )
}


def build_network(config: ModelConfig, *, image_size: int) -> nn.Module:
    """The network of a model section, freshly initialised from torch's global generator.

    Raises:
        UsageError: its levels cannot halve the image size.
    """
    try:
        config.check_image_size(image_size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return UNet(config, image_size=image_size) if isinstance(config, UNetConfig) else MAEResNet(config)


def build_sampler(config: ObjectiveConfig, name: str | None) -> tuple[str, Sampler]:
    """The sampler of that name, or the method's default, for networks trained with `config`.

    Raises:
        UsageError: the method has no such sampler.
    """
    name = require_sampler(config.name, name)
    return name, OBJECTIVES[config.name].samplers[name](config)


def require_sampler(objective: str, name: str | None) -> str:
    """The name of a sampler that networks of that objective have; None takes the method's default.

    Raises:
        UsageError: the method is unknown, generates nothing, or has no such sampler.
    """
    samplers = OBJECTIVES[objective].samplers if objective in OBJECTIVES else {}
    if not samplers:
        raise UsageError(f"a {objective} run generates no images; sample a drift or ddpm run")
    name = name or next(iter(samplers))
    if name not in samplers:
        raise UsageError(
            f"--sampler {name}: a {objective} run samples with {', '.join(samplers)}{did_you_mean(name, samplers)}"
        )
    return name
