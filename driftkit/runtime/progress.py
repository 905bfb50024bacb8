"""What long work shows on stderr while it runs: a bar in a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

from driftkit.runtime.terminal import open_console, printable, say

PLAIN_INTERVAL_S = 5.0

Report = Callable[[str, int, int], None]
"""(what is being worked on, units done since the last call, units in all or 0 when nobody knows)"""


@contextlib.contextmanager
def progress(title: str, total: int, *, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many further units are done.

    Args:
        title: what is being done.
        total: how many units there are; 0 when nobody knows.
        unit: "images", or "bytes".
    """
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = open_console(stderr=True)
    if not is_live(screen):
        yield plain_lines(title, total, unit)
        return
    counter = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), counter, TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(escape(printable(title)), total=total or None)
        yield lambda done: bar.advance(task, done)


@contextlib.contextmanager
def silent() -> Iterator[Callable[[int], None]]:
    """The same for ranks whose progress nobody is to see."""
    yield lambda done: None


def is_live(console: "Console") -> bool:
    """Whether lines can be rewritten there: a terminal that knows more than to print."""
    return console.is_terminal and not console.is_dumb_terminal


def plain_lines(title: str, total: int, unit: str) -> Callable[[int], None]:
    """A function that is told how many further units are done, and writes a line on stderr now and then."""
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= PLAIN_INTERVAL_S:
            last = time.monotonic()
            say(f"{title}: {done:,}{f' of {total:,}' if total else ''} {unit}")

    return advance


def warn(message: str) -> None:
    """One line of warning on stderr."""
    say(f"warning: {message}")
