"""What a network is to the rest of driftkit: one row of `MODELS`, made in the file of the network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn


class NetworkConfig(BaseModel):
    """Shape of a network. `kind` names its row of `MODELS`; a subclass narrows it to that word."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str

    def check_image_size(self, image_size: int) -> None:
        """Raise ValueError where the network cannot take images of that side, in pixels."""


@dataclass(frozen=True)
class Model:
    """One kind of network.

    Attributes:
        kind: its name in configs.
        config: class of its config.
        build: (config, image size in pixels) -> the network, initialised from torch's global generator.
        role: "generator": called as `network(x, t, condition)`, see `protocols.Network`; "encoder": maps of images, a
            reconstruction and a head, as `MAEResNet`.
        memory_format: layout of weights and images that it runs fastest in.
        conditions: fields of `Condition` that it uses.
    """

    kind: str
    config: type[NetworkConfig]
    build: Callable[[Any, int], nn.Module]
    role: Literal["generator", "encoder"] = "generator"
    memory_format: torch.memory_format = torch.channels_last
    conditions: tuple[str, ...] = ()


MODELS: dict[str, Model] = {}
"""Networks by kind. `models.registry` imports the files that fill it."""


def register(model: Model) -> Model:
    """Add a network, or replace the one of that kind."""
    MODELS[model.kind] = model
    return model
