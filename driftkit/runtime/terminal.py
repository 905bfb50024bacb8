"""Names and messages of others on a terminal: shown, and never obeyed."""

import functools
import io
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

from driftkit.runtime.environment import read_launch

if TYPE_CHECKING:
    from rich.console import Console

# C0 but tab and newline, DEL, C1, lone surrogates, and the marks that turn the direction of text around.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters, among them escape sequences and bytes of no encoding, in Python's notation."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def open_standard_streams() -> None:
    """Open those of stdin, stdout and stderr that are closed on /dev/null, as whoever starts daemons leaves them.

    The lowest free number is opened, which is that of the stream: else the next file would get it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode, closefd=False))  # noqa: SIM115


def replace_unknown_characters() -> None:
    """Let stdout show "?" for a character that its encoding lacks, as under LANG=C, instead of failing at it.

    Another way that the user has chosen by PYTHONIOENCODING stays.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")


def say(line: str, *, file: TextIO | None = None) -> None:
    """One line on stderr, or on `file`."""
    stream = file or sys.stderr
    stream.write(printable(line) + "\n")
    stream.flush()


@functools.cache
def say_once(line: str) -> None:
    """A line on stderr, once in a process and by the first rank alone."""
    if read_launch().rank == 0:
        say(line)


def open_console(*, most: int | None = None, **options: Any) -> "Console":
    """A rich console on stdout that shows control characters in text instead of passing them on.

    Args:
        most: columns that are used at most, and in files and pipes; None: all of the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(printable(text), **how)

    console = PlainConsole(**options)
    if most is not None:
        known = console.is_terminal or "COLUMNS" in os.environ
        console.width = min(most, console.width) if known else most
    return console
