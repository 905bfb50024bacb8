"""The few types the layers share."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from driftkit.runtime.timing import StepClock


class Condition(NamedTuple):
    """What a network gets next to image and time. All None: unconditional."""

    labels: torch.Tensor | None = None  # int64 [N], -1: no class
    guidance: torch.Tensor | None = None  # float32 [N], the guidance scale alpha that the network is trained with
    style: torch.Tensor | None = None  # int64 [N, tokens], style codes, which are noise like the prior noise

    def part(self, chunk: slice) -> "Condition":
        """The condition of some of the images."""
        return Condition(*(None if values is None else values[chunk] for values in self))


UNCONDITIONAL = Condition()

Network = Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]
"""(images or noise [N, C, H, W], time [N] from 0 to 1000, condition) -> prediction [N, C, H, W]."""


@dataclass(frozen=True)
class Batch:
    """One rank's real images of one step."""

    images: torch.Tensor  # float32 [B, 3, H, W] in [-1, 1]: one per slot, or those that the objective has chosen
    labels: torch.Tensor | None  # int64 [B], -1 where unlabelled; None where the objective does not need them
    slots: range  # positions of this rank in the global batch, whose number is the batch size
    seed: int
    step: int
    indices: torch.Tensor | None = None  # int64 [B] on the CPU: which images of the pack they are
    flips: torch.Tensor | None = None  # bool [B] on the CPU: which of them are mirrored
    # [len(slots), *] each, what `Objective.draws` gave; None: not drawn yet
    draws: Mapping[str, torch.Tensor] | None = None
    condition: Condition = UNCONDITIONAL  # of these images

    def part(self, chunk: slice) -> "Batch":
        """Some of the slots, with their images: where there is one for each."""
        return replace(
            self,
            images=self.images[chunk],
            labels=None if self.labels is None else self.labels[chunk],
            slots=self.slots[chunk],
            indices=None if self.indices is None else self.indices[chunk],
            flips=None if self.flips is None else self.flips[chunk],
            draws=None if self.draws is None else {name: values[chunk] for name, values in self.draws.items()},
            condition=self.condition.part(chunk),
        )

    def drawn(self, objective: "Objective") -> "Batch":
        """The batch with its draws on the device of its images; draws that it came with are kept."""
        if self.draws is not None:
            return self
        draws = objective.draws(self.seed, self.step, self.slots, self.images.shape[1:])
        return replace(self, draws={name: values.to(self.images.device) for name, values in draws.items()})


@dataclass
class StepLoss:
    """The loss of one training step and its signals of health, without gradient."""

    total: torch.Tensor  # scalar
    terms: dict[str, torch.Tensor] = field(default_factory=dict)  # named parts of the total
    # Signals that are not minimised, equal on all ranks. `spread`, where it is among them, is that of the features of
    # generated images over that of real ones, about 1 when all is well: collapse is detected by it.
    health: dict[str, torch.Tensor] = field(default_factory=dict)
    # Scalars that are not finite where what they are named after is not: they explain a loss that is not finite.
    sources: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Execution:
    """The execution of a step, whatever it minimises."""

    micro_batch: int | None = None  # images that networks see at a time; None: all of the batch
    # makes the context in which networks run forwards
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    # makes the context of the last backward pass of a step, during which the exchange of complete gradients among
    # ranks begins. By default the exchange begins afterwards.
    last_backward: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    clock: StepClock = field(default_factory=StepClock)  # measures the parts of a step

    def chunks(self, count: int) -> list[slice]:
        """`count` images in chunks of `micro_batch`; the last may be smaller."""
        size = min(self.micro_batch or count, count)
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]

    def backward_of(self, chunk: slice, count: int) -> AbstractContextManager[object]:
        """The context of the backward pass of one of the `chunks` of `count` images, where each has one."""
        return self.last_backward() if chunk.stop == count else contextlib.nullcontext()

    def accumulate(self, loss: Callable[[Batch, slice], StepLoss], batch: Batch) -> StepLoss:
        """Add up the gradients of a loss that is a sum over images, chunk by chunk.

        Args:
            loss: (part, its slice of the batch) -> its summand of the loss of the whole batch; `total` with gradient.

        Returns:
            The sums over the parts, detached.
        """
        sums: list[dict[str, torch.Tensor]] = [{}, {}, {}]
        for chunk in self.chunks(len(batch.slots)):
            with self.autocast():
                part = loss(batch.part(chunk), chunk)
            with self.backward_of(chunk, len(batch.slots)):
                part.total.backward()
            for known, values in zip(sums, ({"total": part.total}, part.terms, part.health), strict=True):
                for name, value in values.items():
                    known[name] = known[name] + value.detach() if name in known else value.detach()
        self.clock.mark("network")
        return StepLoss(sums[0]["total"], sums[1], sums[2])


class ChosenImages(NamedTuple):
    """Real images of one step and rank."""

    indices: torch.Tensor  # int64 [B], which images of the pack
    numbers: Sequence[int]  # B numbers, distinct among those of all ranks in this step, by which they are mirrored


class Objective(Protocol):
    """What a training run minimises. The trainer knows nothing else about the method."""

    @property
    def needs_labels(self) -> bool:
        """Whether `accumulate` reads the labels of its batches."""
        ...

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """All random numbers of a step but dropout's, by name: [len(slots), *] each, on the CPU.

        Row i is a function of (seed, step, slots[i]) alone. A thread of its own calls this a step ahead, so it must
        neither read what `accumulate` changes nor touch torch's global generators.

        Args:
            slots: positions of the images in the global batch.
            image_shape: [3, H, W].
        """
        ...

    def choose(self, seed: int, step: int, slots: range) -> ChosenImages | None:
        """The real images of a step for a rank's slots; None: one per slot, of shuffled epochs one after another.

        A function of its arguments, which a thread of its own may call a step ahead, as `draws`.
        """
        ...

    def accumulate(self, model: nn.Module, batch: Batch, execution: Execution) -> StepLoss:
        """Add the gradient of one step's loss to the model's parameters, and return the loss.

        Every random draw is one of `batch.drawn(self)`. Dropout's come from the global generators, which the trainer
        has seeded and the objective may seed again. The gradient is that of the whole batch for every
        `execution.micro_batch`, but for dropout, whose masks are drawn per chunk.
        """
        ...

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Named measurements of the averaged network on held-out images; empty where there are none."""
        ...

    def preview(
        self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        """Images for the grid, float [-1, 1], from fixed noise [N, 3, H, W], as many real images and conditions.

        Objectives of generators show no real images: noise and result may be latents, real images are none.
        """
        ...


@dataclass(frozen=True)
class SampleRequest:
    """What a sampler takes besides network and noise."""

    nfe: int | None  # network evaluations per image; None: the sampler's own default
    # sampler step -> fresh noise like the prior noise, for stochastic samplers
    step_noise: Callable[[int], torch.Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the sampler, by name
    condition: Condition = UNCONDITIONAL  # of the images


class Sampler(Protocol):
    """Turns prior noise into images with a trained network."""

    def __call__(self, network: Network, noise: torch.Tensor, request: SampleRequest) -> tuple[torch.Tensor, int]:
        """Images [N, 3, H, W], float in [-1, 1], and the number of network evaluations per image."""
        ...


@dataclass(frozen=True)
class FeatureMap:
    """One layer's output for a batch of images."""

    name: str
    values: torch.Tensor  # [N, C, H, W]
