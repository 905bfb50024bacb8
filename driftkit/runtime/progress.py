"""The progress of long work on stderr: bars in a terminal, lines now and then elsewhere."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

from driftkit.runtime.terminal import open_console, printable, say

PLAIN_INTERVAL_S = 5.0

Report = Callable[[str, int, int], None]
"""(title of the work, images done since the last call, images in all or 0 where that is unknown)"""


@contextlib.contextmanager
def progress_bars() -> Iterator[Report]:
    """Yield a function that takes reports of any number of works, told apart by their titles."""
    console = open_console(stderr=True)
    if not is_live(console):
        yield _plain_lines()
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
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


def _plain_lines() -> Report:
    done: Counter[str] = Counter()
    last: dict[str, float] = {}

    def report(title: str, count: int, total: int) -> None:
        done[title] += count
        now = time.monotonic()
        if now - last.setdefault(title, now) >= PLAIN_INTERVAL_S:
            last[title] = now
            say(f"{title}: {done[title]:,}{f' of {total:,}' if total else ''} images")
        if total and done[title] >= total:  # work of the same title starts again from nothing
            del done[title], last[title]

    return report


def warn(message: str) -> None:
    """One line of warning on stderr."""
    say(f"warning: {message}")
