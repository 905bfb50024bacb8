"""The row of `MODELS` through which the rest of driftkit sees a network. It loads no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from driftkit.config.settings import OnResume

if TYPE_CHECKING:
    from torch import nn

MIN_SIZE = 8  # of images, in pixels


class NetworkConfig(BaseModel):
    """Shape of a network. `kind` names its row of `MODELS`; a subclass narrows it to that word."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str = ""

    def check_image_size(self, image_size: int) -> None:
        """Raise ValueError where the network cannot take images of that side, in pixels."""


class GeneratorNetworkConfig(NetworkConfig):
    """Shape of a generator's network that can be conditioned. What is left to the images is filled in for training."""

    channels: int = Field(3, ge=1, le=256, description="channels of images or latents; filled in from the data")
    num_classes: Annotated[int | None, OnResume.FROM_DATA] = Field(
        None, ge=0, le=100_000, description="classes of the label embedding; filled in, 0 without class_conditional"
    )
    guided: Annotated[bool | None, OnResume.FROM_DATA] = Field(
        None, description="embed the guidance scale; filled in, true where the objective trains with guidance"
    )
    style_tokens: int = Field(0, ge=0, le=1024, description="style codes of an image, drawn like noise; 0: none")
    style_codes: int = Field(64, ge=2, le=65_536, description="values that each style code may take")


def divisible_sizes(image_size: int, factor: int, *, latents: bool = False) -> str:
    """What to use instead of an image size that `factor` does not divide: the nearest that it does, for messages."""
    sizes = [size for size in (image_size // factor * factor, -(-image_size // factor) * factor) if size >= MIN_SIZE]
    nearest = " or ".join(map(str, sorted(sizes, key=lambda size: (abs(size - image_size), -size))))
    return f"use {'images with latents of side' if latents else '`data.image_size`'} {nearest}"


@dataclass(frozen=True)
class Model:
    """One kind of network."""

    kind: str  # its name in configs
    config: type[NetworkConfig]  # class of its config
    # (config, image size in pixels) -> the network, initialised from torch's global generator
    build: "Callable[[Any, int], nn.Module]"
    # "generator": called as `network(x, t, condition)`, see `protocols.Network`; "encoder": maps of images, a
    # reconstruction and a head, as `MAEResNet`
    role: Literal["generator", "encoder"] = "generator"
    # layout of weights and images that it runs fastest in
    memory_format: Literal["channels_last", "contiguous_format"] = "channels_last"


MODELS: dict[str, Model] = {}
"""Networks by kind. `models.registry` imports the files that fill it."""


def register(model: Model) -> Model:
    """Add a network, or replace the one of that kind."""
    MODELS[model.kind] = model
    return model
