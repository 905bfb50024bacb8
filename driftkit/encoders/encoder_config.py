"""The settings of an encoder, which training and probing share, and what the table of encoders says of one."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MapNorm = Literal["none", "layer", "final"]
Resize = Literal["bicubic", "bilinear"]


class EncoderConfig(BaseModel):
    """Which encoder is used, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    encoder: str = Field(
        "dinov2-multires",
        description="Encoder: a name of `driftkit probe-encoder --list`, timm:MODEL, or the folder of a MAE or "
        "classifier run.",
    )
    taps: tuple[str, ...] | None = Field(
        None, min_length=1, description="Layers whose maps are used, for example block6; None: the encoder's own."
    )
    encoder_weights: str | None = Field(
        None, description="Local file with the encoder's weights; None: from the cache, then the hub."
    )
    random_weights: bool = Field(False, description="Leave the encoder untrained: shapes and speed only.")
    input_size: int | None = Field(
        None, ge=8, le=4096, description="Side in pixels to which the encoder's input is resized; None: its own."
    )
    resize: Resize = Field("bicubic", description="Interpolation of that resizing; the authors' release: bilinear.")
    map_norm: MapNorm | None = Field(
        None,
        description="Normalization of the maps: none, layer (each position over its channels) or final (the network's "
        "last norm); None: the encoder's own.",
    )
    feature_set: str | None = Field(
        None, description="Feature set, see `driftkit probe-encoder --list`; None: the encoder's own."
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
