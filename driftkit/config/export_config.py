"""Settings of `driftkit export`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from driftkit.config.places import EXPANDED
from driftkit.config.settings import Option, Settings
from driftkit.config.weights_name import WEIGHTS_HELP, WeightsName

MODEL, FILES = "Model", "Output"


class ExportConfig(Settings):
    """What is exported, and where to."""

    format: Annotated[Literal["safetensors", "run", "onnx", "torchscript"], Option(MODEL)] = Field(
        "safetensors",
        description="what is written; run: a small run folder, which sample, fid and compare take; onnx needs the "
        "extra onnx",
    )
    dtype: Annotated[Literal["float32", "bfloat16"], Option(MODEL)] = Field(
        "float32", description="number format of the weights in safetensors and run; bfloat16 halves the file"
    )
    weights: Annotated[WeightsName, Option(MODEL)] = Field("ema", description=WEIGHTS_HELP)
    step: Annotated[int | None, Option(MODEL, default="the last one")] = Field(
        None, description="step of the checkpoint"
    )
    output: Annotated[Path | None, EXPANDED, Option(FILES, ("--output", "-o"), default="RUN/exports/FORMAT")] = Field(
        None, description="folder of the model, README.md and model.json"
    )
    force: Annotated[bool, Option(FILES)] = Field(False, description="replace an earlier export in that folder")
