"""Settings of drifting."""

from typing import Annotated, Literal

from pydantic import Field

from driftkit.config.settings import Option
from driftkit.encoders.encoder_config import ENCODER, EncodersConfig
from driftkit.methods.base import GenerativeConfig


class DriftingConfig(EncodersConfig, GenerativeConfig):
    """The drifting objective."""

    name: Literal["drift"] = "drift"
    cache_features: Annotated[bool, Option(ENCODER)] = Field(
        False, description="compute the features of real images once and map them from disk, in bfloat16"
    )
    taus: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.02, 0.05, 0.2), min_length=1, description="temperatures over the mean distance"
    )
    scale_over: Literal["map", "location"] = Field("location", description="who shares feature and drift scales")
    affinity_floor: float = Field(
        0.0, ge=0, lt=1, description="lower bound of the affinities; the authors' release: 1e-3"
    )
    kernel: Literal["laplace", "gaussian"] = Field("laplace", description="kernel of the affinities")
    normalisation: str = Field(
        "both",
        pattern=r"^(both|rows|none|sinkhorn\([1-9][0-9]{0,3}\))$",
        description="how affinities are normalised: both, rows, none or sinkhorn(N)",
    )
    field_chunk_mib: int | None = Field(
        None, ge=1, description="size in MiB of the workspace of the field; None: 16 on a CPU, 2048 on a GPU"
    )
