"""The whole config of a training run, and how its layers are merged."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import BaseModel, Field, SerializeAsAny, create_model

from driftkit.config.layers import (
    Layer,
    config_keys,
    did_you_mean,
    load_preset,
    merge,
    parse_assignments,
    read_toml,
    validate,
)
from driftkit.config.settings import OnResume, Option, Settings
from driftkit.errors import UsageError
from driftkit.methods.registry import DEFAULT_METHOD, METHODS, find_method
from driftkit.models.contract import NetworkConfig
from driftkit.training.trainer_config import FILES, TRAINING, TrainerConfig

IMAGES = "Images"


class DataConfig(Settings):
    """Which images to train on."""

    spec: Annotated[str, OnResume.PLACE, Option(IMAGES, ("--data", "-d"))] = Field(
        "cifar10", description="images: shapes, cifar10, a folder, a .zip or .tar, or a pack"
    )
    image_size: Annotated[int | None, OnResume.FROM_DATA, Option(IMAGES, default="as they are")] = Field(
        None, ge=8, le=1024, description="side in pixels to which images are resized"
    )
    limit: int | None = Field(None, ge=1, description="use only this many images; None: all")
    holdout: Annotated[int | None, OnResume.FROM_DATA] = Field(
        None,
        ge=0,
        description="images kept out of training, to measure on; None: 2 %, at most 1000, for encoders, else 0",
    )
    horizontal_flip: bool = Field(True, description="mirror half of the images")


class EvaluationConfig(Settings):
    """The score of the averaged weights while a generator trains, logged with its other signals of health."""

    every: Annotated[int, OnResume.FREE, Option(FILES, ("--eval-every",))] = Field(
        0,
        ge=0,
        description="steps between FID scores of the averaged weights (see evaluation.extractor, .reference, "
        ".num_images); 0: none",
    )
    reference: Annotated[str | None, OnResume.FREE, OnResume.PLACE] = Field(
        None, description="data SPEC or statistics file of the real images; None: the training images"
    )
    extractor: Annotated[str, OnResume.FREE] = Field(
        "inception", description="feature extractor, as in fid: inception, efficientnet-lite2, encoder:RUN, ..."
    )
    extractor_weights: Annotated[str | None, OnResume.FREE] = Field(
        None, description="local weights file of the extractor; None: cache, then download"
    )
    num_images: Annotated[int, OnResume.FREE] = Field(
        2000, ge=10, description="images per score; few, since this is for the curve alone"
    )


class TrainConfig(Settings):
    """Everything that decides a run. A run's own config is of `config_class`, which knows its method and network."""

    seed: Annotated[int, Option(TRAINING)] = Field(0, ge=0, description="seed of all random draws")
    data: DataConfig = DataConfig()
    objective: Annotated[
        Union[tuple(method.config for method in METHODS.values())], Field(discriminator="name")  # type: ignore[valid-type]  # noqa: UP007
    ]
    model: SerializeAsAny[NetworkConfig]
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def config_class(method: str, kind: str) -> type[TrainConfig]:
    """The config of runs of one method and one kind of network.

    Raises:
        UsageError: no such method, or a network that it does not train.
    """
    from driftkit.models.registry import MODELS  # loads torch, which no help text needs

    role = find_method(method).network_role
    kinds = [name for name, model in MODELS.items() if model.role == role]
    if kind not in kinds:
        raise UsageError(f"model.kind {kind}: a {method} run trains {' or '.join(kinds)}{did_you_mean(kind, kinds)}")
    return _config_class(METHODS[method].config, MODELS[kind].config)


@functools.cache
def _config_class(objective: type[BaseModel], model: type[BaseModel]) -> type[TrainConfig]:
    return create_model(
        "TrainConfig",
        __base__=TrainConfig,
        __module__=__name__,
        objective=(objective, Field(default_factory=objective)),
        model=(model, Field(default_factory=model)),
    )


def load_config(document: Mapping[str, Any]) -> TrainConfig:
    """The config in a manifest.

    Raises:
        pydantic.ValidationError: values that do not fit.
        UsageError: no such method or network.
    """
    method, kind = _word(document, "objective", "name"), _word(document, "model", "kind")
    return config_class(method or "", kind or "").model_validate(document)


def resolve_config(
    *,
    objective: str | None = None,
    preset: str | None = None,
    file: Path | None = None,
    environment: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> tuple[TrainConfig, dict[str, str]]:
    """Class defaults < preset < config file < environment < `--set` < named options.

    Args:
        objective: name of a method; None takes that of the file, else the first of `METHODS`.
        preset: name of a preset.
        file: a TOML file with the sections of `TrainConfig`.
        environment, options: nested values from DRIFTKIT_TRAIN_* variables and from named options.
        assignments: `section.key=value` strings.

    Returns:
        The config, and the origin of every value as dotted key -> text.

    Raises:
        UsageError: unknown names or keys, or values that do not fit.
    """
    from_file: Layer = (f"file {file}", read_toml(file)) if file else ("file", {})
    method = find_method(objective or _word(from_file[1], "objective", "name") or DEFAULT_METHOD)
    chosen: list[Layer] = [
        from_file,
        ("environment", environment or {}),
        ("--set", parse_assignments(assignments)),
        ("option", options or {}),
    ]
    presets = load_preset(preset, method.name, method.network_role) if preset else []
    if (_word(merge(chosen)[0], "model", "kind") or method.network) != method.network:
        presets = [(origin, {k: v for k, v in table.items() if k != "model"}) for origin, table in presets]
    default: Layer = ("objective", {"objective": {"name": method.name}, "model": {"kind": method.network}})
    values, origins = merge([default, *presets, *chosen])
    for section in ("objective", "model"):
        if not isinstance(values[section], dict):
            raise UsageError(
                f"{section}: expected a section of settings, got {values[section]!r}; choose the method by `objective`"
            )
    if values["objective"]["name"] != method.name:
        raise UsageError(f"objective.name follows from `objective` {method.name}; got {values['objective']['name']}")
    config = config_class(method.name, str(values["model"]["kind"]))
    return validate(config, values, origins=origins, others=_keys_of_others(config)), origins


def _keys_of_others(config: type[TrainConfig]) -> dict[str, str]:
    """Keys that other methods and networks have -> the name of one of them, for messages."""
    from driftkit.models.registry import MODELS

    own = set(config_keys(config))
    owners = [(f"objective.{key}", name) for name, method in METHODS.items() for key in config_keys(method.config)]
    owners += [(f"model.{key}", kind) for kind, model in MODELS.items() for key in config_keys(model.config)]
    return {key: owner for key, owner in reversed(owners) if key not in own}


def _word(values: Mapping[str, Any], section: str, key: str) -> str | None:
    nested = values.get(section)
    word = nested.get(key) if isinstance(nested, Mapping) else None
    return word if isinstance(word, str) else None


def default_output(config: TrainConfig) -> Path:
    """`outputs/METHOD`, or `outputs/METHOD_ENCODER` where an encoder trains it."""
    encoder = getattr(config.objective, "encoder", None)
    if encoder and Path(encoder).suffix == ".safetensors":
        encoder = str(Path(encoder).parent)  # exported encoders all have the same file name
    name: str = config.objective.name + (f"_{Path(encoder).name.replace(':', '-')}" if encoder else "")
    return Path("outputs") / name
