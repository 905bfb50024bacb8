"""Settings of drifting."""

from typing import Annotated, Literal

from pydantic import Field

from driftkit.encoders.specs import MapNorm
from driftkit.methods.base import MethodConfig


class DriftingConfig(MethodConfig):
    """The drifting objective."""

    name: Literal["drift"] = "drift"
    encoder: str = Field(
        "dinov2-multires", description="row of the encoder table, timm:MODEL, or the folder of a MAE or classifier run"
    )
    taps: tuple[str, ...] | None = Field(
        None, min_length=1, description="layers whose maps are used, for example block6; None: those of the table"
    )
    encoder_weights: str | None = Field(None, description="local file of encoder weights; None: cache, then hub")
    random_weights: bool = Field(False, description="leave the encoder untrained (shapes, speed and tests only)")
    input_size: int | None = Field(None, ge=8, le=4096, description="side in pixels the encoder sees; None: its own")
    resize: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="how images are brought to that size; the authors' release: bilinear"
    )
    map_norm: MapNorm | None = Field(
        None,
        description="normalisation of the maps: none, layer (each position over its channels) or final (the network's "
        "last norm); None: the encoder's own",
    )
    feature_set: str | None = Field(
        None, description="multires, paper, paper-full, last, global or locations; None: the encoder's own"
    )
    cache_features: bool = Field(
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
