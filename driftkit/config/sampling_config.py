"""How a run is sampled: fields that `sample`, `fid` and `compare` share."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from driftkit.config.settings import COMMAS, Option, Settings
from driftkit.config.weights_name import WEIGHTS_HELP, WeightsName

SAMPLING = "How to sample"


def _as_words(value: Any) -> Any:
    """Numbers as words, which they are on the command line."""
    if isinstance(value, list | tuple):
        return [_as_words(word) for word in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class SamplingConfig(Settings):
    """A sampler and what it depends on."""

    sampler: Annotated[str | None, Option(SAMPLING, default="the method's own")] = Field(
        None, description="sampler of the run's method"
    )
    nfe: Annotated[int | None, Option(SAMPLING, default="the sampler's own")] = Field(
        None, ge=1, description="network evaluations per image (NFE)"
    )
    classes: Annotated[
        tuple[str, ...] | None,
        COMMAS,
        BeforeValidator(_as_words),
        Option(SAMPLING, ("--class",), default="in the proportions of the training images"),
    ] = Field(None, min_length=1, description="classes of the images in turn, by name or number, or all; repeatable")
    guidance: Annotated[float | None, Option(SAMPLING, default="1, none")] = Field(
        None,
        ge=0,
        description="guidance scale; a network that was not trained with it is evaluated twice per step",
    )
    seed: Annotated[int, Option(SAMPLING)] = Field(
        0, description="seed of the noise; image i depends on it and on i alone"
    )
    weights: Annotated[WeightsName, Option(SAMPLING)] = Field("ema", description=WEIGHTS_HELP)
    step: Annotated[int | None, Option(SAMPLING, default="the last one")] = Field(
        None, description="step of the checkpoint"
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"] | None, Option(SAMPLING, default="the run's")] = Field(
        None, description="number format of the network; auto: bfloat16 on GPUs that compute in it, float32 on a CPU"
    )
