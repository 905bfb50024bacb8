"""The whole config of a training run, and how its layers are merged. It loads no torch: help is made from it."""

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializeAsAny,
    create_model,
    model_validator,
)

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
from driftkit.config.places import EXPANDED
from driftkit.config.settings import COMMAS, OnResume, Option, Settings
from driftkit.config.weights_name import EMA, average_name
from driftkit.encoders.encoder_config import ONE_ONLY, joined_name
from driftkit.errors import UsageError
from driftkit.methods.registry import DEFAULT_METHOD, METHODS, find_method
from driftkit.models.contract import NetworkConfig

TRAINING, FILES = "Training", "Files"


def _from_flag(value: Any) -> Any:
    """`--compile`, `--no-compile`, true and false in a file, 1 and 0 in a variable, as the settings they stand for."""
    words = {True: "on", False: "off", "1": "on", "0": "off", "true": "on", "false": "off"}
    return words.get(value, value) if isinstance(value, bool | str) else value


CompileSetting = Annotated[Literal["auto", "on", "off"], BeforeValidator(_from_flag)]
Schedule = Literal["constant", "cosine", "linear"]
EmaDecays = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], ...],
    COMMAS,
    BeforeValidator(lambda value: (value,) if isinstance(value, int | float) else value),
    PlainSerializer(lambda values: values[0] if len(values) == 1 else list(values)),
]
"""One number stands for itself alone, and is written so."""
TrackerName = Literal["none", "tensorboard", "wandb"]


class TrainerConfig(Settings):
    """How a network is trained, whatever is minimised."""

    steps: Annotated[int, OnResume.FREE, Option(TRAINING)] = Field(
        50_000, ge=0, description="optimizer steps of the whole run; 0 saves the untrained network"
    )
    batch_size: Annotated[int, Option(TRAINING, ("--batch-size", "-b"))] = Field(
        128, ge=1, le=2**20, description="images per rank and step"
    )
    learning_rate: Annotated[float, Option(TRAINING)] = Field(2e-4, gt=0, description="AdamW learning rate")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises linearly from 0")
    schedule: Annotated[Schedule, Option(TRAINING)] = Field(
        "constant",
        description="learning rate after warm-up; cosine and linear fall to the last step (see trainer.decay_steps, "
        ".final_rate)",
    )
    decay_steps: int | None = Field(
        None, ge=1, description="last steps, over which a cosine or linear schedule falls; None: all after warm-up"
    )
    final_rate: float = Field(
        0.0, ge=0, le=1, description="share of the learning rate to which a cosine or linear schedule falls"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW moment decays")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    gradient_clip: float = Field(2.0, gt=0, description="largest gradient norm")
    ema_decay: EmaDecays = Field(
        (0.9999,),
        min_length=1,
        max_length=8,
        description="decay of the averaged weights per step, after warm-up; of several, all are kept and the first is "
        "sampled and scored",
    )
    ema_warmup: float = Field(
        9.0, ge=0, description="EMA warm-up W: the decay of step n is at most (n - 1) / (n - 1 + W); 0: none"
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Option(TRAINING)] = Field(
        "auto", description="number format of the networks; auto: bfloat16 where the GPU or CPU computes in it"
    )
    compile: Annotated[
        CompileSetting, OnResume.FREE, Option(TRAINING, default="on a GPU with 2,000 steps left", switch=True)
    ] = Field("auto", description="compile the trained network and the frozen encoder")
    micro_batch: Annotated[int | None, OnResume.FREE, Option(TRAINING, default="the whole batch")] = Field(
        None,
        ge=1,
        description="images per forward pass: less memory, and still the gradient of the whole batch (dropout "
        "draws other masks)",
    )
    log_every: Annotated[int, OnResume.FREE] = Field(
        10, ge=1, description="steps between metric records; doubles after 100,000 records"
    )
    sample_every: Annotated[int, OnResume.FREE, Option(FILES)] = Field(
        500, ge=0, description="steps between sample grids; doubles after 1,000 grids; 0: none"
    )
    checkpoint_every: Annotated[int, OnResume.FREE, Option(FILES)] = Field(
        1000, ge=0, description="steps between checkpoints; 0: only the last"
    )
    measure_every: Annotated[int, OnResume.FREE] = Field(
        0, ge=0, description="steps between measurements on held-out images; 0: with the sample grids"
    )
    tracker: Annotated[TrackerName, OnResume.FREE] = Field(
        "none", description="copy metrics and grids to: none, tensorboard or wandb"
    )
    keep_every: Annotated[int, OnResume.FREE] = Field(
        0, ge=0, description="keep the checkpoints of every so many steps; 0: only the last"
    )
    rank_timeout: Annotated[float, OnResume.FREE] = Field(120, gt=0, description="minutes a rank waits for the others")
    collapse_spread: Annotated[float, OnResume.FREE] = Field(
        0.1,
        ge=0,
        lt=1,
        description="relative spread of generated features below which they are collapsed; 0: never",
    )
    collapse_patience: Annotated[int, OnResume.FREE] = Field(
        500, ge=0, description="steps below collapse_spread before collapse is reported"
    )
    fail_on_collapse: Annotated[bool, OnResume.FREE, Option(TRAINING)] = Field(
        False,
        description="save and end with exit code 5 on collapse (see trainer.collapse_spread, .collapse_patience); "
        "else it is a warning",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas}")
        if len(set(self.ema_decay)) < len(self.ema_decay):
            raise ValueError(f"ema_decay: expected different numbers, got {list(self.ema_decay)}")
        if self.schedule == "constant" and (self.decay_steps is not None or self.final_rate):
            raise ValueError("decay_steps and final_rate belong to a cosine or linear `trainer.schedule`")
        if self.decay_steps is not None and self.decay_steps > self.steps:
            raise ValueError(f"decay_steps {self.decay_steps}: expected at most `trainer.steps` {self.steps}")
        return self

    @property
    def averages(self) -> dict[str, float]:
        """Name of each average of the weights -> its decay, the one that is sampled by default first."""
        first, *others = self.ema_decay
        return {EMA: first, **{average_name(decay): decay for decay in others}}


IMAGES = "Images"


class DataConfig(Settings):
    """Which images to train on."""

    spec: Annotated[str, EXPANDED, OnResume.PLACE, Option(IMAGES, ("--data", "-d"))] = Field(
        "cifar10", description="images: shapes, cifar10, or what else driftkit data --help lists"
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
    autoencoder: Annotated[str | None, EXPANDED, OnResume.PLACE, Option(IMAGES, default="none, train on pixels")] = (
        Field(
            None,
            min_length=1,
            description="train in the latent space of this diffusers AutoencoderKL: a folder or a hub id OWNER/NAME",
        )
    )
    latent_shape: Annotated[tuple[int, int, int] | None, OnResume.FROM_DATA] = Field(
        None, description="channels, height and width of latents; filled in from autoencoder and image_size"
    )

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of what a generator generates, in a complete config: latents, or images."""
        if self.latent_shape is not None:
            return self.latent_shape
        assert self.image_size is not None, "a saved config names the image size"
        return 3, self.image_size, self.image_size


class EvaluationConfig(Settings):
    """The score of the averaged weights while a generator trains, logged with its other signals of health."""

    every: Annotated[int, OnResume.FREE, Option(FILES, ("--eval-every",))] = Field(
        0,
        ge=0,
        description="steps between FID scores of the averaged weights (see evaluation.extractor, .reference, "
        ".num_images); 0: none",
    )
    reference: Annotated[str | None, EXPANDED, OnResume.FREE, OnResume.PLACE] = Field(
        None, description="data SPEC or statistics file of the real images; None: all of data.spec"
    )
    extractor: Annotated[str, EXPANDED, OnResume.FREE] = Field(
        "inception", description="feature extractor, as in fid: inception, efficientnet-lite2, encoder:RUN, ..."
    )
    extractor_weights: Annotated[str | None, EXPANDED, OnResume.FREE] = Field(
        None, description="local weights file of the extractor; None: cache, then download"
    )
    num_images: Annotated[int, OnResume.FREE] = Field(
        2000, ge=10, description="images per score; few, since this is for the curve alone"
    )


class TrainConfig(Settings):
    """Everything that decides a run. A run's own config is of `config_class`, which knows its method and network."""

    seed: Annotated[int, Option(TRAINING)] = Field(0, ge=0, description="seed of all random draws")
    init_from: Annotated[str | None, EXPANDED, OnResume.PLACE, Option(TRAINING, default="random weights")] = Field(
        None,
        min_length=1,
        description="initial weights: RUN, RUN@raw or the like, or an exported safetensors file; what the network is "
        "conditioned on may differ",
    )
    data: DataConfig = DataConfig()
    objective: Annotated[
        Union[tuple(method.config for method in METHODS.values())], Field(discriminator="name")  # type: ignore[valid-type]  # noqa: UP007
    ]
    model: SerializeAsAny[NetworkConfig]
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def config_class(method: str, kind: str) -> type[TrainConfig]:
    """The config of runs of one method and one kind of network. Raises UsageError: they do not exist or go together."""
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
    """The config in a manifest; raises pydantic.ValidationError or UsageError."""
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
        file: a TOML file with the sections of `TrainConfig`.
        environment, options: nested values from DRIFTKIT_TRAIN_* variables and from named options.
        assignments: `section.key=value` strings.

    Returns:
        The config, and the origin of every value as dotted key -> text.

    Raises UsageError for unknown names or keys, and values that do not fit.
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
    kind = _word(merge(chosen)[0], "model", "kind")
    if kind not in (None, _word(merge(presets)[0], "model", "kind") or method.network):
        presets = [(origin, {k: v for k, v in table.items() if k != "model"}) for origin, table in presets]
    encoders = _setting(merge(chosen)[0], "objective", "encoder")
    if isinstance(encoders, list | tuple) and len(encoders) > 1:  # the preset's settings of its one encoder are theirs
        presets = [(origin, _without(table, "objective", ONE_ONLY)) for origin, table in presets]
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
    return validate(config, values, origins=origins, others=_keys_of_others(config), typed=True), origins


def _keys_of_others(config: type[TrainConfig]) -> dict[str, str]:
    """Keys that other methods and networks have -> the name of one of them, for messages."""
    from driftkit.models.registry import MODELS

    own = set(config_keys(config))
    owners = [(f"objective.{key}", name) for name, method in METHODS.items() for key in config_keys(method.config)]
    owners += [(f"model.{key}", kind) for kind, model in MODELS.items() for key in config_keys(model.config)]
    return {key: owner for key, owner in reversed(owners) if key not in own}


def _setting(values: Mapping[str, Any], section: str, key: str) -> Any:
    nested = values.get(section)
    return nested.get(key) if isinstance(nested, Mapping) else None


def _word(values: Mapping[str, Any], section: str, key: str) -> str | None:
    word = _setting(values, section, key)
    return word if isinstance(word, str) else None


def _without(values: Mapping[str, Any], section: str, keys: Collection[str]) -> dict[str, Any]:
    """The same without these keys of a section."""
    return {**values, section: {key: value for key, value in values.get(section, {}).items() if key not in keys}}


def default_output(config: TrainConfig) -> Path:
    """`outputs/METHOD`, or `outputs/METHOD_ENCODER` where an encoder trains it."""
    encoder = getattr(config.objective, "encoder", None)
    name: str = config.objective.name + (f"_{joined_name(encoder)}" if encoder else "")
    return Path("outputs") / name
