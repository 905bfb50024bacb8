"""The progress of long work on stderr: bars in a terminal, lines now and then elsewhere.

A process shows all its work in one place. Work that begins while other work is shown joins it, so that any function
may say what it does by `progress` or `phase`. Elsewhere than in a terminal a line comes at least every
`PLAIN_INTERVAL_S` seconds, whether the work reports something or not: it is that of the work that began last.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import ProgressColumn, TaskID

from driftkit.errors import UsageError
from driftkit.runtime.environment import read_launch
from driftkit.runtime.terminal import open_console, printable, say

PLAIN_INTERVAL_S = 5.0
TICK_S = 1.0  # between looks at whether a line is due
IMAGES = "images"


class Report(Protocol):
    """Takes the progress of work: its title, what was done since the last call, and all there is to do.

    A total of 0 is unknown. Work of one title ends when its total is reached, and a next report of it begins again.
    """

    def __call__(self, title: str, count: int, total: int, /, unit: str = IMAGES) -> None: ...


def no_report(title: str, count: int, total: int, /, unit: str = IMAGES) -> None:
    """Shows nothing."""


@dataclass
class Work:
    """Something that takes long."""

    title: str
    total: int = 0  # 0: unknown
    unit: str = IMAGES
    done: int = 0
    first: int = field(init=False)  # done when the clock was started
    begun: float = field(init=False)
    shown: float = field(init=False)  # when its last line was said, or it began
    interval: float | None = None  # seconds between its lines; None: PLAIN_INTERVAL_S
    is_command: bool = False  # whether the running command is over when this is

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Measure from now on."""
        self.first, self.begun = self.done, time.monotonic()
        self.shown = self.begun

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begun

    def rate(self) -> float:
        """What is done in a second; 0 where nothing was done yet."""
        return (self.done - self.first) / max(self.seconds(), 1e-9)

    def seconds_left(self) -> float | None:
        """At the rate so far; None where that or the total is unknown."""
        rate = self.rate()
        return (self.total - self.done) / rate if self.total and rate else None

    def status(self) -> str:
        """Its rate; nothing where none is known, or it is one of few large things."""
        rate = self.rate()
        return f"{rate:.3g}/s" if rate and self.unit == IMAGES else ""

    def count(self) -> str:
        """For example "50/100"; empty where nobody counts."""
        return f"{self.done}/{self.total}" if self.total else f"{self.done}" if self.done else ""

    def took(self, *, over: bool) -> str:
        """How much time is left, or was spent where that is unknown or the work is over."""
        left = self.seconds_left()
        if over or left is None:
            return f"done in {duration(self.seconds())}" if over else f"{duration(self.seconds())} so far"
        return f"{duration(left)} left"

    def line(self, *, over: bool = False) -> str:
        """For example "sampling: 128 of 2,000 images, 35/s, 54 s left"."""
        count = f"{self.done:,} of {self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"
        took = self.took(over=over)
        parts = [count if self.total or self.done else "", self.status(), took]
        return f"{self.title}: {', '.join(part for part in parts if part)}"

    def is_due(self, since: float | None = None) -> bool:
        """Whether its last line, or a moment, was an interval ago."""
        since = self.shown if since is None else since
        return time.monotonic() - since >= (PLAIN_INTERVAL_S if self.interval is None else self.interval)


class Display:
    """Shows works as lines on stderr. Works may begin within each other."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self._said = time.monotonic()  # when the last line of any of them was said
        self._lock = threading.RLock()
        self._closed = threading.Event()

    def report(self, title: str, count: int, total: int, /, unit: str = IMAGES) -> None:
        with self._lock:
            work = self.works.get(title)
            if work is None:
                work = self.begin(Work(title, total, unit, done=count))
            else:
                work.done += count
            if total and work.done >= total:
                self.end(title)
            else:
                self.refresh(work)

    def begin(self, work: Work) -> Work:
        """Show work until `end`."""
        with self._lock:
            self.works[work.title] = work
        return work

    def refresh(self, work: Work) -> None:
        """Show what has become of work, if it is time to."""
        with self._lock:
            if work.is_due():
                self.say(work)

    def say(self, work: Work, *, over: bool = False) -> None:
        """Say the line of work now."""
        with self._lock:
            say(work.line(over=over))
            self._said = work.shown = time.monotonic()

    def end(self, title: str, *, failed: bool = False) -> None:
        """The work is over."""
        with self._lock:
            work = self.works.pop(title)
            if not failed and work.done >= work.total and work.seconds() >= PLAIN_INTERVAL_S:
                self.say(work, over=True)

    def tick(self) -> None:
        """Say the line of the work that began last, if it is time to."""
        with self._lock:
            for work in list(self.works.values())[-1:]:
                if work.is_due(max(self._said, work.shown)):
                    self.say(work)

    def __enter__(self) -> "Display":
        self._ticking = threading.Thread(target=self._tick_until_closed, name="progress", daemon=True)
        self._ticking.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._closed.set()
        self._ticking.join()

    def _tick_until_closed(self) -> None:
        while not self._closed.wait(TICK_S):
            self.tick()


class _NoDisplay(Display):
    """Shows nothing, as ranks other than the first."""

    def say(self, work: Work, *, over: bool = False) -> None:
        pass


class Bars(Display):
    """Shows works as bars in a terminal, below a line on the pipeline where the command is a stage of one.

    Count and status of a work are `task.fields[count]` and `task.fields[status]` of the columns.
    """

    def __init__(self, console: "Console", columns: "Sequence[ProgressColumn]", *, transient: bool = True):
        from rich.progress import Progress
        from rich.text import Text

        display = self

        class BelowTheWhole(Progress):
            def get_renderables(self) -> "Iterator[RenderableType]":
                if _in_all is not None and display.is_open:  # it does not stay when the bars end
                    yield Text(_in_all(display.seconds_left()), style="dim", no_wrap=True, overflow="ellipsis")
                yield from super().get_renderables()

        super().__init__()
        self.is_open = False
        self.bars: Progress = BelowTheWhole(*columns, console=console, transient=transient)
        self._tasks: dict[str, TaskID] = {}

    def seconds_left(self) -> float | None:
        """Until the running command is over; None where no work says it, or the one that does is at its end."""
        return next((work.seconds_left() or None for work in list(self.works.values()) if work.is_command), None)

    def begin(self, work: Work) -> Work:
        from rich.markup import escape

        with self._lock:
            title = escape(printable(work.title))
            task = self.bars.add_task(
                title, total=work.total or None, completed=work.done, count=work.count(), status=""
            )
            self._tasks[work.title] = task
            return super().begin(work)

    def refresh(self, work: Work) -> None:
        task = self._tasks[work.title]
        self.bars.update(task, completed=work.done, count=work.count(), status=work.status())

    def say(self, work: Work, *, over: bool = False) -> None:
        self.refresh(work)

    def end(self, title: str, *, failed: bool = False) -> None:
        with self._lock:
            del self.works[title]
            self.bars.remove_task(self._tasks.pop(title))

    def __enter__(self) -> "Bars":
        self.is_open = True
        self.bars.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.is_open = False
        self.bars.stop()


_shown: Display | None = None


@contextlib.contextmanager
def showing(display: Display) -> Iterator[Display]:
    """All work that begins within joins the display."""
    global _shown
    before = _shown
    with display:
        _shown = display
        try:
            yield display
        finally:
            _shown = before


@contextlib.contextmanager
def progress_bars() -> Iterator[Report]:
    """Yield a function that takes reports of any number of works, distinguished by their titles."""
    with contextlib.ExitStack() as opened:
        display = _shown or opened.enter_context(showing(_new_display()))
        before, failed = set(display.works), True
        try:
            yield display.report
            failed = False
        finally:
            for title in display.works.keys() - before:
                display.end(title, failed=failed)


@contextlib.contextmanager
def progress(title: str, total: int, unit: str = IMAGES) -> Iterator[Callable[[int], None]]:
    """Yield a function that is called with the number of images just done; `total` is 0 where it is unknown."""
    with progress_bars() as report:
        report(title, 0, total, unit)
        yield lambda count: report(title, count, total, unit)


@contextlib.contextmanager
def phase(title: str) -> Iterator[None]:
    """Show that work goes on whose parts nobody counts."""
    with progress(title, 0):
        yield


@contextlib.contextmanager
def silent() -> Iterator[Callable[[int], None]]:
    """`progress` for ranks that show none."""
    yield lambda count: None


def _new_display() -> Display:
    with contextlib.suppress(UsageError):  # which whoever starts the ranks says
        if read_launch().rank > 0:
            return _NoDisplay()
    console = open_console(stderr=True)
    if not is_live(console):
        return Display()
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    count = (
        BarColumn(),
        TextColumn("{task.fields[count]}", style="progress.download", justify="right"),
        TextColumn("{task.fields[status]}"),
    )
    return Bars(console, [TextColumn("[bold]{task.description}"), *count, TimeElapsedColumn(), TimeRemainingColumn()])


def is_live(console: "Console") -> bool:
    """Whether lines can be rewritten there: a terminal that knows more than to print."""
    return console.is_terminal and not console.is_dumb_terminal


InAll = Callable[[float | None], str]
"""Gives the words for the time left of the whole, from the seconds left of its running part (None: unknown)."""

_in_all: InAll | None = None


@contextlib.contextmanager
def within(in_all: InAll) -> Iterator[None]:
    """Inside the block, the time left of the whole stands next to every time left of a part."""
    global _in_all
    before, _in_all = _in_all, in_all
    try:
        yield
    finally:
        _in_all = before


def time_left(seconds: float) -> str:
    """What is left of the running command, and of what it is a part of: "54 s left"."""
    left = f"{duration(seconds)} left"
    return left if _in_all is None else f"{left}, {_in_all(seconds)}"


def duration(seconds: float) -> str:
    """42 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def warn(message: str) -> None:
    """One line of warning on stderr."""
    say(f"warning: {message}")
