"""Settings of `driftkit compare`. Help texts read them, so nothing here loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from driftkit.config.places import EXPANDED
from driftkit.config.settings import COMMAS, DEVICE_HELP, DISTINCT, ONE_OR_MORE, Device, Option, Settings
from driftkit.config.weights_name import WeightsName

SCORES, SPEED, PICTURES, FILES = "Missing scores", "Speed", "Pictures", "Output"


class CompareConfig(Settings):
    """Settings of `driftkit compare`."""

    evaluate: Annotated[bool, Option(SCORES)] = Field(
        False, description="first score the runs that have no score yet, into their folders; needs a reference"
    )
    reference: Annotated[str | None, EXPANDED, Option(SCORES, ("--reference", "-r"), default="none")] = Field(
        None, description="real images to score against, or a file of statistics, as in fid"
    )
    extractor: Annotated[tuple[str, ...], EXPANDED, ONE_OR_MORE, DISTINCT, Option(SCORES)] = Field(
        ("inception",), min_length=1, description="feature extractor of the scores, as in fid; repeatable"
    )
    extractor_weights: Annotated[Path | None, EXPANDED, Option(SCORES, default="as in fid")] = Field(
        None, description="local weights file of the extractor"
    )
    num_images: Annotated[int | None, Option(SCORES, ("--num-images", "-n"), default="50000")] = Field(
        None, ge=10, description="images per score"
    )
    nfe: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        COMMAS,
        Option(SCORES, default="the sampler's own, mostly 1,2,5,10,20,50,100"),
    ] = Field(None, description="network evaluations per image (NFE) at which samplers of many steps are scored")
    weights: Annotated[WeightsName, Option(SCORES)] = Field(
        "ema", description="weights of each run that are scored and shown, as in fid"
    )
    all_checkpoints: Annotated[bool, Option(SCORES)] = Field(
        False, description="score every kept checkpoint, not only the last"
    )
    allow_collapsed: Annotated[bool, Option(SCORES)] = Field(
        False, description="score images that are all alike (an untrained network) instead of refusing"
    )
    neighbours: Annotated[bool, Option(PICTURES)] = Field(True, description="show the real images nearest to samples")
    neighbours_in: Annotated[str | None, EXPANDED, Option(PICTURES, default="each run's training images")] = Field(
        None, description="images among which neighbours are searched"
    )
    neighbours_by: Annotated[Literal["pixels", "features"], Option(PICTURES)] = Field(
        "pixels", description="distance between images; features: those of the first extractor"
    )
    speed: Annotated[bool, Option(SPEED)] = Field(
        True,
        description="time every sampler setup that was scored, and each method at its usual NFEs",
    )
    speed_batch: Annotated[int | None, Option(SPEED, default="16, or 256 on CUDA")] = Field(
        None, ge=1, description="images at a time, for all runs"
    )
    speed_seconds: Annotated[float, Option(SPEED)] = Field(
        20.0, gt=0, description="seconds in which one run is timed; longer sampling is timed in part and scaled up"
    )
    speed_compile: Annotated[bool, Option(SPEED)] = Field(
        False, description="compile all networks before they are timed"
    )
    device: Annotated[Device, Option(SPEED)] = Field("auto", description=DEVICE_HELP)
    output: Annotated[Path, EXPANDED, Option(FILES, ("--output", "-o"))] = Field(
        Path("outputs/comparison"), description="folder of report.html, its data and its figures"
    )
