"""The whole config of a training run, and how it is put together from its layers."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from driftkit.config.layers import Layer, load_preset, merge, parse_assignments, read_toml, validate
from driftkit.errors import UsageError
from driftkit.methods.classifier.objective import ClassifierConfig
from driftkit.methods.ddpm.objective import DDPMConfig
from driftkit.methods.drifting.objective import DriftingConfig
from driftkit.methods.mae.objective import MAEConfig
from driftkit.methods.registry import OBJECTIVES
from driftkit.models.mae_resnet import MAEResNetConfig
from driftkit.models.unet import UNetConfig
from driftkit.training.trainer import TrainerConfig

# What may differ when a run resumes: how long it goes on and what it writes on the way.
FREE_ON_RESUME = {
    "trainer.steps", "trainer.log_every", "trainer.sample_every", "trainer.checkpoint_every", "trainer.keep_every",
    "trainer.tracker", "trainer.measure_every", "trainer.micro_batch", "trainer.rank_timeout", "trainer.compile",
    "trainer.collapse_spread", "trainer.collapse_patience", "trainer.fail_on_collapse",
    "evaluation.every", "evaluation.reference", "evaluation.extractor", "evaluation.extractor_weights",
    "evaluation.num_images",
}  # fmt: skip


class DataConfig(BaseModel):
    """Which images to train on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str = Field("cifar10", description="shapes, cifar10, a folder, an archive or a pack")
    image_size: int | None = Field(None, ge=8, le=1024, description="side in pixels; None: that of the images")
    limit: int | None = Field(None, ge=1, description="use only this many images; None: all")
    holdout: int | None = Field(
        None,
        ge=0,
        description="images kept out of training, to measure on; None: 2 %, at most 1000, for encoders, else 0",
    )
    horizontal_flip: bool = Field(True, description="mirror half of the images")


class EvaluationConfig(BaseModel):
    """The score of the averaged weights while a generator trains, logged with its other signals of health."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(0, ge=0, description="steps between scores; 0: none")
    reference: str | None = Field(
        None, description="data SPEC or statistics file of the real images; None: the training images"
    )
    extractor: str = Field(
        "inception", description="feature extractor, as in fid: inception, efficientnet-lite2, encoder:RUN, ..."
    )
    extractor_weights: str | None = Field(
        None, description="local weights file of the extractor; None: cache, then download"
    )
    num_images: int = Field(2000, ge=10, description="images per score; few, since this is for the curve alone")


class TrainConfig(BaseModel):
    """Everything that decides a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="all random draws follow from it")
    data: DataConfig = DataConfig()
    objective: Annotated[DriftingConfig | DDPMConfig | MAEConfig | ClassifierConfig, Field(discriminator="name")] = (
        DriftingConfig()
    )
    model: Annotated[UNetConfig | MAEResNetConfig, Field(discriminator="kind")] = UNetConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


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
        objective: drift, ddpm, mae or classifier; None takes that of the file, else drift.
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
    chosen = objective or _objective_name(from_file[1]) or "drift"
    if chosen not in OBJECTIVES:
        close = difflib.get_close_matches(chosen, OBJECTIVES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"--objective {chosen}: expected {', '.join(OBJECTIVES)}{hint}")
    layers: list[Layer] = [
        ("objective", {"objective": {"name": chosen}, "model": {"kind": OBJECTIVES[chosen].model_kind}}),
        *(load_preset(preset, chosen) if preset else []),
        from_file,
        ("environment", environment or {}),
        ("--set", parse_assignments(assignments)),
        ("option", options or {}),
    ]
    values, origins = merge(layers)
    for section in ("objective", "model"):
        if not isinstance(values[section], dict):
            raise UsageError(
                f"{section}: expected a section of settings, got {values[section]!r}; choose the method by --objective"
            )
    if values["objective"]["name"] != chosen or values["model"]["kind"] != OBJECTIVES[chosen].model_kind:
        raise UsageError(
            f"objective.name and model.kind follow from --objective {chosen}; got "
            f"{values['objective']['name']} and {values['model']['kind']}"
        )
    return validate(TrainConfig, values, origins=origins), origins


def _objective_name(values: Mapping[str, Any]) -> str | None:
    section = values.get("objective")
    name = section.get("name") if isinstance(section, Mapping) else None
    return name if isinstance(name, str) else None


def default_output(config: TrainConfig) -> Path:
    """`outputs/drift_mocov2`, `outputs/ddpm`, `outputs/mae`, `outputs/classifier`."""
    encoder = getattr(config.objective, "encoder", None)
    if encoder and Path(encoder).suffix == ".safetensors":
        encoder = str(Path(encoder).parent)  # every MAE run calls its exported encoder alike
    name = config.objective.name + (f"_{Path(encoder).name.replace(':', '-')}" if encoder else "")
    return Path("outputs") / name
