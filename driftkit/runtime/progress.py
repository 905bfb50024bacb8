"""The progress of long work on stderr: bars in a terminal, lines now and then elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

from driftkit.runtime.terminal import open_console, printable, say

PLAIN_INTERVAL_S = 5.0
SILENCE_S = 8.0  # after which a line comes without a report
MIN_TIMED_S = 1.0  # before that, a rate is none

Report = Callable[[str, int, int], None]
"""(title of the work, images done since the last call, images in all or 0 where that is unknown)"""


@contextlib.contextmanager
def progress_bars() -> Iterator[Report]:
    """Yield a function that takes reports of any number of works, told apart by their titles."""
    console = open_console(stderr=True)
    if not is_live(console):
        with _plain_lines() as report_lines:
            yield report_lines
        return
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(title: str, count: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(escape(printable(title)), total=total or None)
            bars.advance(tasks[title], count)
            if bars.tasks[bars.task_ids.index(tasks[title])].finished:
                del tasks[title]  # work of the same title starts again from nothing

        yield report


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is called with the number of images just done; `total` is 0 where it is unknown."""
    with progress_bars() as report:
        yield lambda count: report(title, count, total)


@contextlib.contextmanager
def silent() -> Iterator[Callable[[int], None]]:
    """The same for ranks that show no progress."""
    yield lambda count: None


def is_live(console: "Console") -> bool:
    """Whether lines can be rewritten there: a terminal that knows more than to print."""
    return console.is_terminal and not console.is_dumb_terminal


@dataclass
class _Work:
    """What has been reported of a work, in images."""

    title: str
    total: int  # 0 where it is unknown
    done: int
    before: int  # of `done`, at the first report, from which on it is timed
    begun: float
    said: float

    def say(self, now: float) -> None:
        """One line: how much is done, how fast, and what time is left."""
        self.said = now
        made, seconds = self.done - self.before, now - self.begun
        line = f"{self.title}: {self.done:,}{f' of {self.total:,}' if self.total else ''} images"
        if made and seconds >= MIN_TIMED_S:
            line += f", {made / seconds:.3g} images/s"
            line += f", {(self.total - self.done) * seconds / made:.0f} s left" if self.total else ""
        elif seconds >= MIN_TIMED_S:
            line += f" after {seconds:.0f} s"
        say(line)


class _PlainLines:
    """A line now and then where reports come, and where the last work has been silent for long."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}
        self._last: _Work | None = None
        self._lock = threading.Lock()

    def report(self, title: str, count: int, total: int) -> None:
        now = time.monotonic()
        with self._lock:
            if (work := self._works.get(title)) is None:
                self._last = work = self._works[title] = _Work(title, total, count, count, now, now)
            else:
                work.done += count
                self._last = work
            if now - work.said >= PLAIN_INTERVAL_S:
                work.say(now)
            if total and work.done >= total:  # work of the same title starts again from nothing
                del self._works[title]
                self._last = None

    def break_silence(self) -> None:
        """Say again how the last work stands, if nothing was said for long."""
        now = time.monotonic()
        with self._lock:
            if self._last and self._last.total and now - self._last.said >= SILENCE_S:
                self._last.say(now)


@contextlib.contextmanager
def _plain_lines() -> Iterator[Report]:
    lines, ended = _PlainLines(), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            lines.break_silence()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield lines.report
    finally:
        ended.set()
        watcher.join()


def warn(message: str) -> None:
    """One line of warning on stderr."""
    say(f"warning: {message}")
