"""What a training run shows while it runs: a bar in a terminal, plain lines elsewhere. On stderr."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from driftkit.runtime.progress import is_live, warn

PLAIN_INTERVAL_S = 15.0
WIDE_COLUMNS = 100  # of a terminal that has room for all that is told
ACCURACIES = {"knn_accuracy": "kNN", "linear_accuracy": "linear"}


class TrainingProgress:
    """Shows step, speed, time left, loss and health of the last logged record.

    Args:
        total: step at which the run ends.
        start: step at which this process starts.
        shown: False on all ranks but the first.
    """

    def __init__(self, *, total: int, start: int, shown: bool):
        self.total, self.start = total, start
        console = Console(stderr=True)
        self.bar: Progress | None = None
        self.plain = shown and not is_live(console)
        self.narrow = console.width < WIDE_COLUMNS
        self.task: Any = None
        self._last_plain = 0.0
        self._begun = time.monotonic()
        if shown and not self.plain:
            self.bar = Progress(*_columns(total, narrow=self.narrow), console=console)
            self.task = self.bar.add_task("train", total=total, completed=start, status="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int) -> None:
        """A step is done."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def record(self, record: Mapping[str, Any]) -> None:
        """A metric record was written."""
        status = describe(record, brief=self.bar is not None and self.narrow)
        if self.bar:
            self.bar.update(self.task, status=status)
        elif self.plain and (time.monotonic() - self._last_plain > PLAIN_INTERVAL_S or record["step"] >= self.total):
            self._last_plain = time.monotonic()
            done = max(1, record["step"] - self.start)
            left = (self._last_plain - self._begun) / done * (self.total - record["step"])
            sys.stderr.write(f"step {record['step']}/{self.total}  {status}  {left:.0f} s left\n")
            sys.stderr.flush()

    def warn(self, message: str) -> None:
        """One line that stays, above the bar where there is one."""
        if self.bar:
            self.bar.console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            warn(message)


def _columns(total: int, *, narrow: bool) -> list[ProgressColumn]:
    """What one line shows; where it is short, the last part gives way, never the count of steps."""
    counter = TextColumn(
        "{task.completed}/{task.total}", table_column=Column(no_wrap=True, min_width=len(f"{total}/{total}"))
    )
    status = TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    if narrow:
        return [counter, status]
    return [TextColumn("[bold]train"), BarColumn(), counter, TimeElapsedColumn(), TimeRemainingColumn(), status]


def describe(record: Mapping[str, Any], *, brief: bool = False) -> str:
    """One line on a metric record: speed, loss, and the health signals that tell of progress.

    Args:
        brief: leave out what a narrow terminal has no room for.
    """
    if brief:
        collapsed = "COLLAPSED " if record.get("health", {}).get("collapsed") else ""
        return f"{collapsed}loss {record['loss']:.4g}  {record['images_per_second']:.3g} img/s"
    parts = [f"{record['images_per_second']:.3g} images/s", f"loss {record['loss']:.4g}"]
    health = record.get("health", {})
    parts += [f"{key.replace('_', ' ')} {health[key]:.3g}" for key in ("drift_norm", "spread") if key in health]
    parts += ["COLLAPSED"] if health.get("collapsed") else []
    parts += [f"{label} {health[key]:.1%}" for key, label in ACCURACIES.items() if key in health]
    parts += [f"{key} {value:.4g}" for key, value in health.items() if key.startswith("fid@")]
    split = record.get("seconds_per_step", {})
    total = sum(split.values())
    if total > 0:
        shares = [f"{name} {seconds / total:.0%}" for name, seconds in split.items() if seconds >= 0.05 * total]
        parts.append(f"({', '.join(shares)})")
    return "  ".join(parts)
