"""What every command does with its result and its options: one JSON document or text on stdout, all else on stderr."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer

from driftkit.runtime.terminal import open_console, printable, say

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON document on stdout.", show_envvar=False)
]


def emit(document: Mapping[str, Any], *, as_json: bool, show: Callable[[], None]) -> None:
    """Print `document` as JSON, or call `show` to print it for people."""
    if as_json:
        from driftkit.storage.json_text import to_json

        sys.stdout.write(to_json(document) + "\n")
        sys.stdout.flush()
    else:
        show()


def show_line(line: str) -> None:
    """One line of a result on stdout."""
    typer.echo(printable(line))


def note(message: str) -> None:
    """One line of progress or warning on stderr."""
    say(message)


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr, lines now and then where it is no terminal; gives `report(what, just done, total)`."""
    from rich.markup import escape
    from rich.progress import Progress, TaskID

    from driftkit.runtime.progress import is_live, plain_lines

    console = open_console(stderr=True)
    if not is_live(console):
        lines: dict[str, Callable[[int], None]] = {}
        counts: Counter[str] = Counter()

        def tell(what: str, done: int, total: int) -> None:
            lines.setdefault(what, plain_lines(what, total, "images"))(done)
            counts[what] += done
            if counts[what] >= total:  # what is done once more, for another evaluator, starts from nothing
                del lines[what], counts[what]

        yield tell
        return
    with Progress(console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(escape(printable(what)), total=total)
            bars.advance(tasks[what], done)
            if bars.tasks[bars.task_ids.index(tasks[what])].finished:
                tasks.pop(what)

        yield report


def option(*names: str, help: str, panel: str | None = None, default: str | None = None, **extra: Any) -> Any:
    """A typer option as this program shows it.

    Args:
        names: flags, for example "--steps".
        help: one plain sentence with the unit.
        panel: heading of the group the option stands in.
        default: text shown as the default where the value is decided later (by the preset, by the run).
    """
    return typer.Option(
        *names, help=help, rich_help_panel=panel, show_envvar=False, show_default=default if default else True, **extra
    )
