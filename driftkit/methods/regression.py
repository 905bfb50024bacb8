"""What methods share whose network predicts a target from a noised image: the loss, its draws, and the graph."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from driftkit.errors import UsageError
from driftkit.methods.base import Forward, Setting
from driftkit.models.contract import GeneratorNetworkConfig
from driftkit.protocols import UNCONDITIONAL, Batch, ChosenImages, Condition, Execution, StepLoss
from driftkit.runtime.random import image_noise, stream_seed


class NoiseRegression(ABC):
    """Mean squared error of a prediction from images noised at random times.

    Source, of training without class: Ho and Salimans 2022 (arXiv 2207.12598), Algorithm 1. Differs: nothing.
    """

    term: str  # name of the loss in records
    label_dropout: float | None = None  # share of images trained without their class; None: labels are not read

    @property
    def needs_labels(self) -> bool:
        return self.label_dropout is not None

    @abstractmethod
    def time(self, number: int) -> float:
        """A time from a uniform 63-bit number."""

    @abstractmethod
    def noised(
        self, images: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The network's input [N, 3, H, W], its time [N], and the target of its prediction [N, 3, H, W]."""

    @abstractmethod
    def preview(
        self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        """Images for the grid from fixed noise."""

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """`noise`, standard normal, and `time`; with labels also `without_class`, whether an image hides its class."""
        times = [self.time(stream_seed(seed, "time", step, slot)) for slot in slots]
        draws = {"noise": image_noise(seed, "noise", slots, image_shape, step=step), "time": torch.tensor(times)}
        if self.label_dropout is not None:
            hidden = [stream_seed(seed, "label dropout", step, slot) / 2**63 < self.label_dropout for slot in slots]
            draws["without_class"] = torch.tensor(hidden)
        return draws

    def choose(self, seed: int, step: int, slots: range) -> ChosenImages | None:
        return None

    def accumulate(self, model: nn.Module, batch: Batch, execution: Execution) -> StepLoss:
        def loss(part: Batch, chunk: slice) -> StepLoss:
            assert part.draws is not None
            x, t, target = self.noised(part.images, part.draws["noise"].to(part.images), part.draws["time"])
            prediction = model(x, t, self._condition(part)).float()
            error = F.mse_loss(prediction, target, reduction="sum") / batch.images.numel()
            return StepLoss(error, {self.term: error})

        return execution.accumulate(loss, batch.drawn(self))

    def _condition(self, part: Batch) -> Condition:
        if self.label_dropout is None:
            return part.condition
        assert part.draws is not None
        assert part.labels is not None
        return part.condition._replace(labels=torch.where(part.draws["without_class"], -1, part.labels))

    def measure(self, model: nn.Module) -> dict[str, float]:
        return {}


def require_no_style(setting: Setting) -> None:
    """Refuse style codes, which are noise of a generator of one step and would teach these networks nothing."""
    network = setting.network
    if isinstance(network, GeneratorNetworkConfig) and network.style_tokens:
        raise UsageError(
            f"`model.style_tokens` {network.style_tokens}: a network that predicts from noised images takes no style "
            "codes; leave it out"
        )


def one_forward(network: nn.Module) -> Forward:
    """One evaluation of a generator's network per image and step, for `Workload`."""

    def forward(images: torch.Tensor) -> list[torch.Tensor]:
        return [network(images, torch.zeros(len(images), dtype=torch.long, device=images.device), UNCONDITIONAL)]

    return forward


class TimedGraph(nn.Module):
    """(x_t [N, 3, H, W], t [N], labels [N]) -> the network's prediction [N, 3, H, W], to be exported.

    Labels are an input of class-conditional networks alone; -1 is no class, where it was trained so. `time_scale` is
    the network's time over t.
    """

    def __init__(self, network: nn.Module, time_scale: float = 1.0):
        super().__init__()
        self.network = network
        self.time_scale = time_scale

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        time = t if self.time_scale == 1.0 else t * self.time_scale
        prediction: torch.Tensor = self.network(x_t, time, Condition(labels=labels))
        return prediction
