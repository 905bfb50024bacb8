"""How a run is sampled: fields that `sample`, `fid` and `compare` share."""

from typing import Annotated, Literal

from pydantic import Field

from driftkit.config.settings import Option, Settings
from driftkit.config.weights_name import WEIGHTS_HELP, WeightsName

SAMPLING = "How to sample"


class SamplingConfig(Settings):
    """A sampler and what it depends on."""

    sampler: Annotated[str | None, Option(SAMPLING, default="the method's own")] = Field(
        None, description="sampler of the run's method"
    )
    nfe: Annotated[int | None, Option(SAMPLING, default="the sampler's own")] = Field(
        None, ge=1, description="network evaluations per image"
    )
    seed: Annotated[int, Option(SAMPLING)] = Field(0, description="image i is a function of (seed, i)")
    weights: Annotated[WeightsName, Option(SAMPLING)] = Field("ema", description=WEIGHTS_HELP)
    step: Annotated[int | None, Option(SAMPLING, default="the last one")] = Field(
        None, description="step of the checkpoint"
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"] | None, Option(SAMPLING, default="as in training")] = (
        Field(None, description="number format of the network; auto: bfloat16 where the device gains")
    )
