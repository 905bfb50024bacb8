"""The settings of an encoder, which training and probing share, and what the table of encoders says of one."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from driftkit.config.settings import COMMAS, OnResume, Option, Settings

MapNorm = Literal["none", "layer", "final"]
Resize = Literal["bicubic", "bilinear"]
ENCODER = "Encoder"
OWN = "the encoder's own"


class EncoderConfig(Settings):
    """Which encoder is used, and how."""

    encoder: Annotated[str, Option(ENCODER, ("--encoder", "-e")), OnResume.PLACE] = Field(
        "dinov2-multires",
        description="a name of driftkit probe-encoder --list, timm:MODEL, or the folder of a MAE or classifier run",
    )
    taps: Annotated[tuple[str, ...] | None, COMMAS, Option(ENCODER, default=OWN)] = Field(
        None, min_length=1, description="layers whose maps are used, for example block6,block12"
    )
    encoder_weights: Annotated[str | None, Option(ENCODER, default="cache, then hub"), OnResume.PLACE] = Field(
        None, description="local file with the encoder's weights"
    )
    random_weights: Annotated[bool, Option(ENCODER)] = Field(
        False, description="leave the encoder untrained: shapes and speed only"
    )
    input_size: Annotated[int | None, Option(ENCODER, default=OWN)] = Field(
        None, ge=8, le=4096, description="side in pixels to which the encoder's input is resized"
    )
    resize: Annotated[Resize, Option(ENCODER)] = Field(
        "bicubic", description="interpolation of that resizing; the authors' release: bilinear"
    )
    map_norm: Annotated[MapNorm | None, Option(ENCODER, default=OWN)] = Field(
        None,
        description="normalization of the maps: none, layer (each position over its channels) or final (the network's "
        "last norm)",
    )
    feature_set: Annotated[str | None, Option(ENCODER, default=OWN)] = Field(
        None, description="vectors that are made of the maps; driftkit probe-encoder --list shows the choices"
    )


class EncoderCard(BaseModel):
    """What is known of an encoder without loading it; None where it does not apply or nobody knows."""

    model_config = ConfigDict(frozen=True)

    name: str
    model: Annotated[str | None, Field(description="name in timm")] = None
    trained_by: Annotated[str, Field(description="method and data")]
    supervised: Annotated[bool | None, Field(description="whether labels or captions were used")] = None
    licence: Annotated[str | None, Field(description="of the weights")] = None
    parameters: Annotated[int, Field(description="of the part that is used")] = 0
    input_size: Annotated[int | None, Field(description="side in pixels; None: that of the images")] = None
    interpolation: Resize = "bicubic"
    normalisation: str | None = None
    maps: tuple[str, ...]
    strides: Annotated[tuple[int, ...], Field(description="side in input pixels of one position of each map")] = ()
    reading: str | None = None
    map_norm: MapNorm | None = None
    feature_set: str
    weights: Annotated[str | None, Field(description="where the published weights lie on this machine")] = None
