"""One row of the tables: a command line, what it needs, and how it must end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def nothing(folder: Path) -> None:
    """The command needs no files of its own."""


@dataclass(frozen=True)
class Case:
    """A command line that is refused.

    Attributes:
        id: what is wrong, unique in all tables.
        line: as typed in a folder of its own; {pack}, {drift}, ... are the paths of `world`.
        code: the documented exit code.
        says: words of the one line on stderr.
        given: makes the files that the line names in the folder it is typed in.
        environment: further variables.
    """

    id: str
    line: str
    code: int
    says: Sequence[str]
    given: Callable[[Path], None] = nothing
    environment: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Works:
    """A command line that is unusual and right: exit code 0; the words stand on stdout.

    Attributes:
        makes: files that are there afterwards.
        replaces: the file of those that were there which is another one afterwards.
    """

    id: str
    line: str
    says: Sequence[str] = ()
    given: Callable[[Path], None] = nothing
    makes: Sequence[str] = ()
    replaces: str = ""
