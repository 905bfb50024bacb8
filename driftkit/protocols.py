"""The few types the layers share."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from driftkit.runtime.timing import StepClock

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(noisy images [N, C, H, W], integer t [N]) -> predicted noise [N, C, H, W]."""


@dataclass(frozen=True)
class Batch:
    """One rank's real images of one step."""

    images: torch.Tensor  # float32 [B, 3, H, W] in [-1, 1]
    labels: torch.Tensor | None  # int64 [B], -1 where unlabelled; None where the objective does not need them
    slots: range  # positions of these images in the global batch
    seed: int
    step: int
    indices: torch.Tensor | None = None  # int64 [B] on the CPU: which images of the pack they are
    flips: torch.Tensor | None = None  # bool [B] on the CPU: which of them are mirrored
    draws: Mapping[str, torch.Tensor] | None = None  # [B, *] each, what `Objective.draws` gave; None: not drawn yet

    def part(self, which: slice) -> "Batch":
        """Some of the images, with their slots."""
        return replace(
            self,
            images=self.images[which],
            labels=None if self.labels is None else self.labels[which],
            slots=self.slots[which],
            indices=None if self.indices is None else self.indices[which],
            flips=None if self.flips is None else self.flips[which],
            draws=None if self.draws is None else {name: values[which] for name, values in self.draws.items()},
        )

    def drawn(self, objective: "Objective") -> "Batch":
        """The batch with its draws on the device of its images; those that it came with stay."""
        if self.draws is not None:
            return self
        draws = objective.draws(self.seed, self.step, self.slots, self.images.shape[1:])
        return replace(self, draws={name: values.to(self.images.device) for name, values in draws.items()})


@dataclass(frozen=True)
class Execution:
    """How a step is carried out, whatever it minimises.

    Attributes:
        micro_batch: images that networks see at a time; None: all of the batch.
        autocast: makes the context in which networks run forwards.
        last_backward: makes the context around the last backward pass of a step, in which gradients that are complete
            begin to travel among ranks. Without it they travel afterwards.
        clock: told where the time goes.
        wait: whether the host may wait for the device to look at values, as for `aggregated_drift`.
    """

    micro_batch: int | None = None
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    last_backward: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    clock: StepClock = field(default_factory=StepClock)
    wait: bool | None = None

    def chunks(self, count: int) -> list[slice]:
        """`count` images in chunks of `micro_batch`; the last may be smaller."""
        size = min(self.micro_batch or count, count)
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]

    def backward_of(self, chunk: slice, count: int) -> AbstractContextManager[object]:
        """The context of the backward pass of one of the `chunks` of `count` images, where each has one."""
        return self.last_backward() if chunk.stop == count else contextlib.nullcontext()


@dataclass
class StepLoss:
    """What one training step minimised, and what it tells about its health. Nothing here has a gradient."""

    total: torch.Tensor  # scalar
    terms: dict[str, torch.Tensor] = field(default_factory=dict)  # named parts of the total
    # Signals that are not minimised, equal on all ranks. `spread`, where it is among them, is that of the features of
    # generated images over that of real ones, about 1 when all is well: collapse is judged by it.
    health: dict[str, torch.Tensor] = field(default_factory=dict)
    # Scalars that are not finite where what they are named after is not: they explain a loss that is not finite.
    sources: dict[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What a training run minimises. The loop knows nothing else about the method."""

    @property
    def needs_labels(self) -> bool:
        """Whether `accumulate` reads the labels of its batches."""
        ...

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """All random numbers of a step but dropout's, by name: [len(slots), *] each, on the CPU.

        Row i is a function of (seed, step, slots[i]) alone. It is called on a thread of its own, a step ahead, so that
        it must neither read what `accumulate` changes nor touch torch's global generators.

        Args:
            slots: positions of the images in the global batch.
            image_shape: [3, H, W].
        """
        ...

    def accumulate(self, model: nn.Module, batch: Batch, how: Execution) -> StepLoss:
        """Add the gradient of one step's loss to the model's parameters, and tell what the loss was.

        Every random draw is one of `batch.drawn(self)`; dropout's come from the global generators, which the loop has
        seeded and the objective may seed again. The gradient is that of the whole batch whatever `how.micro_batch` is,
        but for dropout, whose masks are drawn per chunk.
        """
        ...

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Named measurements of the averaged network on images it was not trained on; empty where there are none."""
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
