"""The few types the layers share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(noisy images [N, C, H, W], integer t [N]) -> predicted noise [N, C, H, W]."""


@dataclass(frozen=True)
class Batch:
    """One rank's real images of one step."""

    images: torch.Tensor  # float32 [B, 3, H, W] in [-1, 1]
    labels: torch.Tensor  # int64 [B], -1 where unlabelled
    slots: range  # positions of these images in the global batch
    seed: int
    step: int


@dataclass
class StepLoss:
    """What one training step minimises, and what it tells about its health."""

    total: torch.Tensor  # scalar with gradient
    terms: dict[str, torch.Tensor] = field(default_factory=dict)  # named parts of the total, detached
    health: dict[str, torch.Tensor] = field(default_factory=dict)  # signals that are not minimised, detached


class Objective(Protocol):
    """What a training run minimises. The loop knows nothing else about the method."""

    def loss(self, model: nn.Module, batch: Batch) -> StepLoss:
        """The loss of one step; every random draw comes from (seed, step, slot)."""
        ...

    def preview(self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Images for the grid, float [-1, 1], from fixed noise [N, 3, H, W] and as many real images."""
        ...


@dataclass(frozen=True)
class SampleRequest:
    """What a sampler is asked for beside the noise."""

    nfe: int | None  # None: the sampler's own default
    step_noise: Callable[
        [int], torch.Tensor
    ]  # sampler step -> fresh noise like the prior noise, for stochastic samplers
    options: Mapping[str, Any] = field(default_factory=dict)


class Sampler(Protocol):
    """Turns prior noise into images with a trained network."""

    def __call__(self, network: nn.Module, noise: torch.Tensor, request: SampleRequest) -> tuple[torch.Tensor, int]:
        """Images [N, 3, H, W], float in [-1, 1], and the number of network evaluations that each image took."""
        ...


@dataclass(frozen=True)
class FeatureMap:
    """One layer's output for a batch of images."""

    name: str
    values: torch.Tensor  # [N, C, H, W]


class Encoder(Protocol):
    """A frozen network that turns images into feature maps."""

    name: str
    input_size: int
    num_parameters: int
    weights_digest: str  # "random" when the weights were never trained
    random_weights: bool

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        """Feature maps of float images [N, 3, H, W] in [-1, 1]; gradient flows through to the images."""
        ...
