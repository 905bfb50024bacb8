"""What long work shows on stderr while it runs: a bar in a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

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
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not is_live(console):
        yield plain_lines(title, total, unit)
        return
    counter = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn(f"[bold]{title}", markup=True), BarColumn(), counter, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total or None)
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
            sys.stderr.write(f"{title}: {done:,}{f' of {total:,}' if total else ''} {unit}\n")
            sys.stderr.flush()

    return advance


def warn(message: str) -> None:
    """One line of warning on stderr."""
    sys.stderr.write(f"warning: {message}\n")
    sys.stderr.flush()
