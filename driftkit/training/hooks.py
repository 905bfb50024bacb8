"""What happens between training steps: the protocol of hooks, when they are due, and the small ones.

Each of the larger hooks has a file: `metrics_log`, `checkpoints`, `monitors`. A trainer calls its hooks in order.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from driftkit.protocols import StepLoss
from driftkit.runtime.device import synchronize
from driftkit.runtime.progress import duration, phase, progress
from driftkit.runtime.random import image_noise
from driftkit.runtime.terminal import say
from driftkit.storage.images import GRID_COLUMNS, GRID_IMAGES, save_grid, to_float, to_uint8
from driftkit.storage.run_folder import Run
from driftkit.training.conditions import SampleConditions
from driftkit.training.sampling import CountedNetwork

if TYPE_CHECKING:
    from driftkit.training.metrics_log import Tracker
    from driftkit.training.trainer import Trainer

MAX_RECORDS = 100_000  # of metrics.jsonl, 1 to 5 KB each, before they become half as frequent
MAX_GRIDS = 1_000  # pictures in samples/
PILOT_EVALUATIONS = 2
GRID_SHARE, GRID_SECONDS = 0.1, 10.0  # of the time trained, and at least, that grids may take together


def is_due(step: int, every: int, *, maximum: int | None = None) -> bool:
    """Whether something done every `every` steps (0: never) is due after `step` steps.

    The interval doubles whenever it was due `maximum` times, so that a run of n * maximum * every steps has it
    maximum * (1 + log2(n) / 2) times. The answer follows from the step alone, so a resumed run does what an
    uninterrupted one does.
    """
    if every <= 0:
        return False
    interval = every
    while maximum is not None and step > interval * maximum:
        interval *= 2
    return step % interval == 0


@dataclass
class FinishedStep:
    """A training step, for hooks."""

    number: int  # steps done so far, this one included
    is_last: bool  # whether it ends the training
    loss: StepLoss  # of this rank's images; hooks add what they measure to its `health`
    log: bool = False  # whether a metric record is written; hooks that measure set it, on all ranks

    def is_due(self, every: int, *, maximum: int | None = None) -> bool:
        """As the function of that name; everything is due at the last step."""
        return self.is_last or is_due(self.number, every, maximum=maximum)


class Hook:
    """Something that happens between steps. All ranks call all hooks, in the same order."""

    def before_training(self, trainer: "Trainer", closing: contextlib.ExitStack) -> None:
        """Prepare; what must be closed after the training, however it ends, goes onto the stack."""

    def after_step(self, trainer: "Trainer", step: FinishedStep) -> None:
        """A step is done, on a GPU perhaps only queued: look at its results within `trainer.aside()`."""

    def at_end(self, trainer: "Trainer") -> None:
        """The last step is done, or the trainer stops earlier because something asked for it."""


@dataclass(frozen=True)
class Scoring:
    """Scores of the averaged network while it trains."""

    every: int  # steps
    score: Callable[[nn.Module], Mapping[str, float]]  # named numbers of a network in evaluation mode
    # how near the evaluator is to the training encoder, for the manifest
    kinship: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, trainer: "Trainer") -> Mapping[str, float]:
        return self.score(trainer.averaged_network)


class Measurement(Hook):
    """Adds what rank 0 measures of the averaged network to the record of every so many steps."""

    def __init__(self, measure: "Callable[[Trainer], Mapping[str, float]]", *, every: int, maximum: int | None = None):
        self.measure, self.every, self.maximum = measure, every, maximum

    def after_step(self, trainer: "Trainer", step: FinishedStep) -> None:
        if not step.is_due(self.every, maximum=self.maximum):
            return
        step.log = True
        with trainer.aside():
            if trainer.ranks.is_main:
                step.loss.health |= {name: torch.tensor(value) for name, value in self.measure(trainer).items()}


def measure_held_out(trainer: "Trainer") -> Mapping[str, float]:
    """Measurements of the averaged network on held-out images."""
    with trainer.inference(), phase("measuring on held-out images"):
        return trainer.objective.measure(trainer.averaged_network)


class SampleGrids(Hook):
    """Saves what the averaged network generates from the same noise every so many steps; trackers get copies.

    All grids together take at most a tenth of the time that this process has trained, or 10 seconds where that is
    more, next to one image each. What an image costs is measured before each grid, on a row of 8. Where the time left
    for all is too short, whole rows are drawn from the first on, or where even one row takes longer as many images as
    fit, at least one. The places of the others stay white. So the number of images depends on the machine, and never
    the images themselves.

    `noise_shape` is [C, H, W], that of the images by default. `conditions` are those of the images; by them
    class-conditional networks have a row per class.
    """

    def __init__(
        self,
        run: Run,
        *,
        every: int,
        trackers: "list[Tracker]",
        noise_shape: Sequence[int] | None = None,
        conditions: SampleConditions | None = None,
        num_images: int = GRID_IMAGES,
    ):
        self.run, self.every, self.trackers, self.num_images = run, every, trackers, num_images
        self.noise_shape, self.conditions = noise_shape, conditions or SampleConditions()
        self.trained_before = self.seconds = 0.0  # of training before this process, and of its grids

    def before_training(self, trainer: "Trainer", closing: contextlib.ExitStack) -> None:
        self.trained_before = trainer.stopwatch.seconds

    def after_step(self, trainer: "Trainer", step: FinishedStep) -> None:
        if not step.is_due(self.every, maximum=MAX_GRIDS):
            return
        with trainer.aside():
            if trainer.ranks.is_main:
                began = time.monotonic()
                self._save(trainer)
                self.seconds += time.monotonic() - began

    def _save(self, trainer: "Trainer") -> None:
        feed, count = trainer.feed, self.num_images
        noise = image_noise(feed.seed, "grid", range(count), self.noise_shape or feed.images.shape[1:])
        noise = noise.to(trainer.device)
        spread = torch.arange(count) * len(feed.images) // count  # packs are often ordered by class
        real = to_float(feed.images[spread].to(trainer.device))
        condition = self.conditions.of(range(count), seed=feed.seed, stream="grid", device=trainer.device)
        network = trainer.averaged_network

        def preview(model: nn.Module, number: int) -> torch.Tensor:
            with trainer.inference():
                return trainer.objective.preview(model, noise[:number], real[:number], condition.part(slice(number)))

        trained = trainer.stopwatch.seconds - self.trained_before
        allowed = max(0.0, max(GRID_SECONDS, GRID_SHARE * trained) - self.seconds)
        cost = measure_preview(preview, network, trainer.device)
        if cost.seconds * count > allowed:  # the first evaluations may have been slow for reasons of their own
            again = measure_preview(preview, network, trainer.device)
            cost = min(cost, again, key=lambda each: each.seconds)
        drawn = affordable_images(count, cost.seconds, allowed)
        if drawn < count:
            say(
                f"grid of step {trainer.step}: {drawn} of {count} images, since all would take "
                f"{duration(cost.seconds * count)} and grids may take {duration(allowed)} now"
            )
        each = f", {cost.evaluations} evaluations each" if cost.evaluations > 1 else ""
        with progress(f"drawing {drawn} images{each}", drawn) as advance:
            images = preview(CountedNetwork(network, drawn, cost.evaluations, advance), drawn)
        pixels = to_uint8(images).cpu()
        path = self.run.path / "samples" / f"step-{trainer.step:08d}.png"
        if cost.shows_all:
            missing = pixels.new_full((count - drawn, *pixels.shape[1:]), 255)
            save_grid(path, torch.cat([pixels, missing]), columns=GRID_COLUMNS)
        else:  # of triplets 9, so that those of one image never break across rows
            save_grid(path, pixels, columns=GRID_COLUMNS + 1)
        for tracker in self.trackers:
            tracker.grid(pixels, trainer.step)


def affordable_images(count: int, seconds_each: float, seconds: float) -> int:
    """How many of `count` images fit: all, whole rows, or less than a row, at least one."""
    fitting = int(seconds / seconds_each) if seconds_each * count > seconds else count
    return min(count, fitting // GRID_COLUMNS * GRID_COLUMNS or max(1, fitting))


@dataclass(frozen=True)
class PreviewCost:
    """What an image of a preview costs."""

    seconds: float
    evaluations: int  # of the network
    shows_all: bool  # as many images as are asked for; else triplets of fewer


def measure_preview(
    preview: Callable[[nn.Module, int], torch.Tensor], network: nn.Module, device: torch.device
) -> PreviewCost:
    """The cost of an image of a preview, from two evaluations of a row of 8.

    Args:
        preview: draws that many images with a network.
    """
    began = time.monotonic()
    pilot = _Pilot(network, device)
    shown = preview(pilot, GRID_COLUMNS)
    synchronize(device)
    repeated = max(0, pilot.calls - PILOT_EVALUATIONS) * pilot.seconds
    return PreviewCost((time.monotonic() - began + repeated) / GRID_COLUMNS, pilot.calls, len(shown) == GRID_COLUMNS)


class _Pilot(nn.Module):
    """Stands in for a network: evaluates it twice, and then repeats the last prediction, which costs nothing."""

    def __init__(self, network: nn.Module, device: torch.device):
        super().__init__()
        self.network, self.device = network, device
        self.calls, self.seconds = 0, 0.0  # of the second evaluation

    def forward(self, *inputs: Any, **options: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls <= PILOT_EVALUATIONS:
            synchronize(self.device)
            began = time.monotonic()
            self.prediction: torch.Tensor = self.network(*inputs, **options)
            synchronize(self.device)
            self.seconds = time.monotonic() - began
        return self.prediction
