"""The settings of an encoder, which training and probing share, and what the table of encoders says of one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from driftkit.config.layers import did_you_mean, validate
from driftkit.config.places import EXPANDED
from driftkit.config.settings import COMMAS, OnResume, Option, Settings
from driftkit.errors import UsageError

MapNorm = Literal["none", "layer", "final"]
Resize = Literal["bicubic", "bilinear"]
ENCODER = "Encoder"
OWN = "the encoder's own"

WORDS = {
    "taps": "taps", "weights": "encoder_weights", "random": "random_weights", "input_size": "input_size",
    "resize": "resize", "map_norm": "map_norm", "feature_set": "feature_set",
}  # fmt: skip
"""Words of an encoder's own settings, as in `NAME?random=true` -> fields."""

ONE_ONLY = ("taps", "encoder_weights", "input_size", "map_norm")
"""Fields that depend on the network, so that no value of them is for several."""


def read_encoder(text: str) -> tuple[str, dict[str, Any]]:
    """Name and own settings (fields -> values) of an encoder's text. Raises UsageError where they do not fit."""
    name, mark, query = text.partition("?")
    if not mark or os.path.exists(text):  # a folder's name may have a question mark
        return text, {}
    settings = split_settings(query)
    if not all(equals for _, equals, _ in settings):
        raise UsageError(f"expected {name}?key=value&key=value, got {text}")
    for word, _, _ in settings:
        if word not in WORDS:
            raise UsageError(
                f"{text} has an unknown key {word!r}{did_you_mean(word, WORDS)}; known: {', '.join(WORDS)}"
            )
    given = {WORDS[word]: value for word, _, value in settings}
    if len(given) < len(settings):
        raise UsageError(f"{text} has a key twice; give it once")
    try:
        checked = validate(EncoderConfig, {"encoder": name, **given}, origins={})
    except UsageError as error:
        raise UsageError(f"{text}: {error}") from None
    return name, {key: getattr(checked, key) for key in given}


def split_settings(query: str) -> list[tuple[str, str, str]]:
    """The parts of `key=value&key=value` as key, equals sign and value, as they are written: values may be paths."""
    return [part.partition("=") for part in query.split("&")]


def short_encoder_names(names: Sequence[str]) -> tuple[str, ...]:
    """Unique short names of encoders: without the folders of a run's path; equal ones are numbered."""
    short: list[str] = []
    for name in names:
        path = Path(name)
        if path.suffix == ".safetensors":
            path = path.parent  # exported encoders all have the same file name
        word = path.name.replace(":", "-") or name
        number, unique = 1, word
        while unique in short:
            number += 1
            unique = f"{word}-{number}"
        short.append(unique)
    return tuple(short)


def joined_name(encoder: str | Sequence[str]) -> str:
    """One name of the encoders of a config, for folders and tables."""
    texts = (encoder,) if isinstance(encoder, str) else encoder
    return "+".join(short_encoder_names([read_encoder(text)[0] for text in texts]))


def _one_text(value: Any) -> Any:
    """A list of one text is that text."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _checked(encoder: tuple[str, ...] | str) -> tuple[str, ...] | str:
    texts = (encoder,) if isinstance(encoder, str) else encoder
    if not texts:
        raise UsageError("expected at least one encoder")
    read = []
    for text in texts:
        name, settings = read_encoder(text)
        known = (os.path.normpath(name), sorted(settings.items()))
        if known in read:
            raise UsageError(f"{text} is given twice with the same settings; give it once")
        read.append(known)
    return encoder


EncoderTexts = Annotated[tuple[str, ...] | str, BeforeValidator(_one_text), AfterValidator(_checked), EXPANDED]
"""One encoder or several, each with settings of its own or without."""


class EncodersConfig(Settings):
    """Which encoders are used, and how: one, or several whose features are joined.

    An encoder's text may carry settings of its own, which go before the fields: `mocov2?input_size=64&taps=stage3`.
    Those of a single encoder become the fields. Where there are several, the fields of ONE_ONLY must be left out; the
    others are for all of them.
    """

    encoder: Annotated[EncoderTexts, Option(ENCODER, ("--encoder", "-e")), OnResume.PLACE] = Field(
        "dinov2-multires",
        description="a name of driftkit probe-encoder --list, timm:MODEL, or the folder of a MAE or classifier run; "
        "repeat it for several, each as NAME?KEY=VALUE&... with the settings that are its own",
    )
    taps: Annotated[tuple[str, ...] | None, COMMAS, Option(ENCODER, default=OWN)] = Field(
        None, min_length=1, description="layers whose feature maps are used, for example block6,block12"
    )
    encoder_weights: Annotated[str | None, EXPANDED, Option(ENCODER, default="cache, then hub"), OnResume.PLACE] = (
        Field(None, description="local file with the encoder's weights")
    )
    random_weights: Annotated[bool, Option(ENCODER)] = Field(
        False, description="do not load weights: for shapes and speed only"
    )
    input_size: Annotated[int | None, Option(ENCODER, default=OWN)] = Field(
        None, ge=8, le=4096, description="side in pixels to which the encoder's input is resized"
    )
    resize: Annotated[Resize, Option(ENCODER)] = Field(
        "bicubic", description="interpolation of that resizing; the paper's authors used bilinear"
    )
    map_norm: Annotated[MapNorm | None, Option(ENCODER, default=OWN)] = Field(
        None,
        description="normalization of the maps: none, layer (each position over its channels) or final (the network's "
        "last norm)",
    )
    feature_set: Annotated[str | None, Option(ENCODER, default=OWN)] = Field(
        None, description="which vectors are made of the maps; driftkit probe-encoder --list shows the choices"
    )

    @model_validator(mode="before")
    @classmethod
    def _settings_of_one(cls, values: Any) -> Any:
        text = _one_text(values.get("encoder")) if isinstance(values, dict) else None
        if not isinstance(text, str) or "?" not in text:
            return values
        try:
            name, settings = read_encoder(text)
        except UsageError:
            return values  # the field raises it
        return {**values, "encoder": name, **settings}

    @model_validator(mode="after")
    def _check_settings_of_one(self) -> Self:
        if isinstance(self.encoder, str):
            return self
        for word, key in WORDS.items():
            if key in ONE_ONLY and getattr(self, key) is not None:
                first = self.encoder[0].partition("?")[0]
                raise ValueError(
                    f"`{key}` is for one encoder, and {len(self.encoder)} are given; add it to the encoder that it is "
                    f"for: {first}?{word}=..."
                )
        return self

    def each(self) -> tuple["EncoderConfig", ...]:
        """The settings of every encoder, in the order they were given."""
        shared = {key: getattr(self, key) for key in EncodersConfig.model_fields}
        if isinstance(self.encoder, str):
            return (EncoderConfig(**shared),)
        read = map(read_encoder, self.encoder)
        return tuple(EncoderConfig(**{**shared, "encoder": name, **settings}) for name, settings in read)


class EncoderConfig(EncodersConfig):
    """Settings of exactly one encoder, which the functions that load it take."""

    encoder: str = "dinov2-multires"


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
