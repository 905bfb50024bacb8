"""Metric records: what one holds, where it is written, and the progress that a terminal shows of it.

Trackers (TensorBoard, Weights & Biases) get copies of records and grids; `metrics.jsonl` stays the original.
"""

import contextlib
import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from driftkit.config.layers import flatten
from driftkit.config.weights_name import EMA
from driftkit.errors import UsageError
from driftkit.runtime.progress import Bars, Display, Work, is_live, showing, time_left, warn
from driftkit.storage.files import digest_json
from driftkit.storage.run_folder import Run
from driftkit.training.hooks import FinishedStep, Hook
from driftkit.training.train_config import TrackerName

if TYPE_CHECKING:
    from driftkit.training.trainer import Trainer


class TensorBoardTracker:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path):
        module = _require("torch.utils.tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(log_dir=str(run / "tensorboard"))

    def record(self, record: Mapping[str, Any]) -> None:
        for name, value in flatten(record).items():
            if name != "step":
                self.writer.add_scalar(name.replace(".", "/"), value, record["step"])
        self.writer.flush()  # else up to two minutes pass until it can be seen

    def grid(self, images: torch.Tensor, step: int) -> None:
        self.writer.add_images("samples", images, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandbTracker:
    """A Weights & Biases run named after the folder; the same folder continues the same run."""

    def __init__(self, run: Path, config: Mapping[str, Any]):
        self.wandb = _require("wandb", "wandb")
        self.session = self.wandb.init(
            project="driftkit",
            name=run.name,
            id=digest_json(str(run.resolve()))[:16],  # two folders of one name are two runs
            resume="allow",
            dir=str(run),
            config=dict(config),
        )

    def record(self, record: Mapping[str, Any]) -> None:
        values = {name.replace(".", "/"): value for name, value in flatten(record).items()}
        self.session.log(values, step=record["step"])

    def grid(self, images: torch.Tensor, step: int) -> None:
        pictures = [self.wandb.Image(image.permute(1, 2, 0).numpy()) for image in images]
        self.session.log({"samples": pictures}, step=step)

    def close(self) -> None:
        self.session.finish()


Tracker = TensorBoardTracker | WandbTracker


def open_trackers(name: TrackerName, run: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The tracker of that name for a run folder; empty for "none". Raises UsageError: its package is not installed."""
    if name == "none":
        return []
    return [TensorBoardTracker(run) if name == "tensorboard" else WandbTracker(run, config)]


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"`trainer.tracker` {package}: the package {package} is not installed; uv sync --extra {package}"
        ) from None


PLAIN_INTERVAL_S = 15.0
WIDE_COLUMNS = 100  # of a terminal that has room for everything
COLUMNS_WITH_TIME = 60  # in which the time left fits next to count, loss and speed
ACCURACIES = {"knn_accuracy": "kNN", "linear_accuracy": "linear", "held_out_accuracy": "accuracy on held-out images"}


class MetricsLog(Hook):
    """Writes the records of steps that are marked with `log` to metrics.jsonl, trackers and the terminal."""

    def __init__(self, run: Run, progress: "TrainingProgress", *, trackers: list[Tracker]):
        self.run, self.progress, self.trackers = run, progress, trackers

    def before_training(self, trainer: "Trainer", closing: contextlib.ExitStack) -> None:
        for tracker in self.trackers:
            closing.callback(tracker.close)
        closing.enter_context(self.progress)
        self.progress.begin(trainer.step)
        self._images_before = trainer.images_seen
        self._begin_window(trainer)

    def _begin_window(self, trainer: "Trainer") -> None:
        """Measure speed from here to the next record."""
        self._window = (time.monotonic(), trainer.stopwatch.seconds, trainer.images_seen, trainer.step)

    def after_step(self, trainer: "Trainer", step: FinishedStep) -> None:
        if step.log:
            with trainer.aside():
                record = self._record(trainer, step)
                self._begin_window(trainer)
                if trainer.ranks.is_main:
                    self.run.append_metrics(record)
                    for tracker in self.trackers:
                        tracker.record(record)
                    self.progress.record(record)
        self.progress.step(step.number, images=trainer.images_seen - self._images_before)

    def _record(self, trainer: "Trainer", step: FinishedStep) -> dict[str, Any]:
        loss, (began, seconds, images, number) = step.loss, self._window
        means = torch.stack([loss.total.float(), *(term.float() for term in loss.terms.values())])
        total, *terms = trainer.ranks.mean(means).tolist()
        images = trainer.images_seen - images
        split = trainer.clock.seconds()
        return {
            "step": step.number,
            "images": trainer.images_seen,
            "seconds": round(trainer.stopwatch.seconds, 3),
            "images_per_second": images / max(time.monotonic() - began, 1e-9),
            "images_per_second_of_steps": images / max(trainer.stopwatch.seconds - seconds, 1e-9),
            "seconds_per_step": {name: spent / max(1, step.number - number) for name, spent in split.items()},
            "learning_rate": trainer.optimizer.param_groups[0]["lr"],
            "ema_decay": trainer.averages[EMA].get_decay(step.number),
            "loss": total,
            "terms": dict(zip(loss.terms, terms, strict=True)),
            "health": {name: float(value) for name, value in loss.health.items()},
        }


@dataclass
class _Steps(Work):
    """The steps of a training, with what the last metric record says of them."""

    images: int = 0  # seen since the clock was started
    described: str = ""

    def status(self) -> str:
        return self.described or f"{self.images / max(self.seconds(), 1e-9):.3g} images/s"

    def is_due(self, since: float | None = None) -> bool:
        return self.done < self.total and super().is_due(since)

    def line(self, *, over: bool = False) -> str:
        left = None if over else self.seconds_left()
        took = self.took(over=over) if left is None else time_left(left)
        return f"step {self.done}/{self.total}  {self.status()}  {took}"


class TrainingProgress:
    """Shows step, speed, time left, loss and health of the last record: a bar in a terminal, plain lines elsewhere.

    `total` is the step at which the run ends; `shown` is False on all ranks but the first.
    """

    def __init__(self, *, total: int, shown: bool):
        console = Console(stderr=True)
        self.is_live = is_live(console)
        self.narrow = self.is_live and console.width < WIDE_COLUMNS
        self.work = _Steps("" if self.narrow else "train", total, "steps", interval=PLAIN_INTERVAL_S, is_command=True)
        self.display: Display | None = None
        if shown:
            columns = _columns(total, width=console.width)
            self.display = Bars(console, columns, transient=False) if self.is_live else Display()
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self.display:
            self._opened.enter_context(showing(self.display))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def begin(self, step: int) -> None:
        """This process starts after so many steps."""
        self.work.done = step
        self.work.start()
        if self.display:
            self.display.begin(self.work)

    def step(self, step: int, *, images: int = 0) -> None:
        """So many steps are done, and so many images were seen in this process."""
        self.work.done, self.work.images = step, images
        if self.display:
            self.display.refresh(self.work)

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a metric record."""
        is_first = not self.work.described
        self.work.done = record["step"]
        self.work.described = describe(record, brief=self.narrow)
        is_last = record["step"] >= self.work.total
        if self.display and (is_first or is_last):
            self.display.say(self.work, over=is_last)

    def warn(self, message: str) -> None:
        """One line that stays, above the bar where there is one."""
        if isinstance(self.display, Bars):
            self.display.bars.console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            warn(message)


def _columns(total: int, *, width: int) -> list[ProgressColumn]:
    """Parts of the line; where it is short, the last part gives way, never the count of steps."""
    room = Column(no_wrap=True, min_width=len(f"{total}/{total}"))
    counter = TextColumn("{task.fields[count]}", style="progress.download", justify="right", table_column=room)
    last = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    if width < WIDE_COLUMNS:
        left = [TimeRemainingColumn()] if width >= COLUMNS_WITH_TIME else []
        return [counter, TextColumn("{task.fields[status]} {task.description}", table_column=last), *left]
    status = TextColumn("{task.fields[status]}", table_column=last)
    title = TextColumn("[bold]{task.description}")
    return [title, BarColumn(), counter, TimeElapsedColumn(), TimeRemainingColumn(), status]


def describe(record: Mapping[str, Any], *, brief: bool = False) -> str:
    """One line on a metric record: speed, loss, and health signals; `brief` for a narrow terminal."""
    health = record.get("health", {})
    if brief:
        collapsed = "COLLAPSED " if health.get("collapsed") else ""
        return f"{collapsed}loss {record['loss']:.4g}  {record['images_per_second']:.3g} img/s"
    parts = [f"{record['images_per_second']:.3g} images/s", f"loss {record['loss']:.4g}"]
    parts += [
        f"{key.replace('_', ' ')} {health[key]:.3g}" for key in ("drift_norm", "drift_ratio", "spread") if key in health
    ]
    parts += ["COLLAPSED"] if health.get("collapsed") else []
    parts += [f"{label} {health[key]:.1%}" for key, label in ACCURACIES.items() if key in health]
    parts += [f"{key} {value:.4g}" for key, value in health.items() if key.startswith("fid@")]
    split = record.get("seconds_per_step", {})
    total = sum(split.values())
    if total > 0:
        shares = [f"{name} {seconds / total:.0%}" for name, seconds in split.items() if seconds >= 0.05 * total]
        parts.append(f"({', '.join(shares)})")
    return "  ".join(parts)
