"""The objectives by name: their configs, their networks and the samplers that fit them. A new method is a new row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from driftkit.diffusion.samplers import sample_ddim, sample_ddpm, sample_dpm_solver
from driftkit.drift.sampler import sample_one_step
from driftkit.encoders.loading import load_encoder
from driftkit.errors import UsageError
from driftkit.nn.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.nn.unet import UNet, UNetConfig
from driftkit.objectives.ddpm import DDPM, DDPMConfig
from driftkit.objectives.drifting import Drifting, DriftingConfig
from driftkit.objectives.mae import MAE, MAEConfig
from driftkit.protocols import Objective, Sampler
from driftkit.runtime.distributed import Ranks

ObjectiveConfig = DriftingConfig | DDPMConfig | MAEConfig
ModelConfig = UNetConfig | MAEResNetConfig


@dataclass(frozen=True)
class BuiltObjective:
    """An objective, and what its manifest should say about frozen networks it uses."""

    objective: Objective
    encoder: dict[str, Any] | None = None


@dataclass(frozen=True)
class ObjectiveKind:
    """One method.

    Attributes:
        model_kind: `kind` of the network config it trains.
        build: makes the objective for an image size on a device.
        samplers: sampler name -> function of the objective's config that makes the sampler; the first is the default.
            Empty where the method generates no images.
    """

    name: str
    model_kind: str
    build: Callable[[Any, int, torch.device, Ranks], BuiltObjective]
    samplers: Mapping[str, Callable[[Any], Sampler]] = field(default_factory=dict)


def _build_drifting(config: DriftingConfig, image_size: int, device: torch.device, ranks: Ranks) -> BuiltObjective:
    encoder = load_encoder(
        config.encoder,
        image_size=image_size,
        input_size=config.input_size,
        weights=Path(config.encoder_weights) if config.encoder_weights else None,
        random_weights=config.random_weights,
        device=device,
    ).to(memory_format=torch.channels_last)
    about = {
        "name": encoder.name,
        "parameters": encoder.num_parameters,
        "input_size": encoder.input_size,
        "feature_set": config.feature_set or encoder.feature_set,
        "random_weights": encoder.random_weights,
        "weights_digest": encoder.weights_digest,
    }
    return BuiltObjective(Drifting(config, encoder, ranks=ranks), about)


OBJECTIVES = {
    kind.name: kind
    for kind in (
        ObjectiveKind("drift", "unet", _build_drifting, {"one-step": lambda config: sample_one_step}),
        ObjectiveKind(
            "ddpm",
            "unet",
            lambda config, image_size, device, ranks: BuiltObjective(DDPM(config)),
            {
                "ddim": lambda config: partial(sample_ddim, schedule=config.schedule()),
                "ddpm": lambda config: partial(sample_ddpm, schedule=config.schedule()),
                "dpm-solver": lambda config: partial(sample_dpm_solver, schedule=config.schedule()),
            },
        ),
        ObjectiveKind(
            "mae", "mae_resnet", lambda config, image_size, device, ranks: BuiltObjective(MAE(config, ranks=ranks))
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
    samplers = OBJECTIVES[config.name].samplers
    if not samplers:
        raise UsageError(f"a {config.name} run generates no images; sample a drift or ddpm run")
    name = name or next(iter(samplers))
    if name not in samplers:
        raise UsageError(f"--sampler {name}: a {config.name} run samples with {', '.join(samplers)}")
    return name, samplers[name](config)
