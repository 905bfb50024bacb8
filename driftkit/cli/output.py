"""What every command does with its result and its options: one JSON document or text on stdout, all else on stderr."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

from driftkit.runtime.progress import progress_bars as progress_bars
from driftkit.runtime.terminal import say

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON document on stdout.", show_envvar=False)
]


def emit(document: Mapping[str, Any], *, as_json: bool, show: Callable[[], None]) -> None:
    """Print `document` as JSON, or call `show` to print it for people."""
    if as_json:
        from driftkit.storage.json_text import to_json

        knows_all = (sys.stdout.encoding or "").lower().startswith("utf")
        sys.stdout.write(to_json(document, ascii=not knows_all) + "\n")
        sys.stdout.flush()
    else:
        show()


def facts_table(rows: "Iterable[tuple[str, str]]") -> "Table":
    """Titles in bold, each with its text in markup next to it."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in rows:
        table.add_row(title, text)
    return table


def show_line(line: str) -> None:
    """One line of a result on stdout."""
    say(line, file=sys.stdout)


def note(message: str) -> None:
    """One line of progress or warning on stderr."""
    say(message)


def option(*names: str, help: str, panel: str | None = None, notes: Sequence[str] = (), **extra: Any) -> Any:
    """A typer option as this program shows it.

    Args:
        names: flags, for example "--steps".
        help: one plain sentence with the unit.
        panel: heading of the group the option stands in.
        notes: what is shown in brackets after the help, for example "default: 3".
    """
    text = f"{help} [dim]\\[{'; '.join(notes)}][/dim]" if notes else help
    # Typer would show the default in parentheses.
    return typer.Option(*names, help=text, rich_help_panel=panel, show_envvar=False, show_default=False, **extra)
