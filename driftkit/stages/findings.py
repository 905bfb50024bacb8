"""What `verify` finds: problems, which make files unfit for use, and notes, which do not."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from driftkit.errors import DriftkitError

ProblemKind = Literal["damaged", "missing", "swapped", "future"]
NoteKind = Literal["not vouched for", "unfinished", "leftover", "in use", "unknown"]


@dataclass(frozen=True)
class Problem:
    """A file that must not be used as it is.

    Attributes:
        problem: what is wrong with it, got and expected.
        fix: one thing to do about it.
    """

    path: str
    kind: ProblemKind
    problem: str
    fix: str


@dataclass(frozen=True)
class Note:
    """Something to know of a file that may be used, or that driftkit does not know."""

    path: str
    kind: NoteKind
    note: str


@dataclass
class Findings:
    """All that was found, and what was read for it.

    Attributes:
        checked: number of products by kind (checkpoint, pack, evaluation, ...) that are as they were written.
        num_bytes: of the files whose content was compared with a digest.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems

    def problem(self, path: Path, kind: ProblemKind, problem: str, fix: str) -> None:
        self.problems.append(Problem(str(path), kind, problem.removeprefix("is "), fix))

    def refused(self, path: Path, error: DriftkitError, fix: str) -> None:
        """A reader's refusal, without the path it begins with; its own fix stands before the one given."""
        what, _, own = str(error).removeprefix(str(path)).lstrip(": ").partition("; ")
        kind: ProblemKind = "missing" if what.startswith("is not there") else "damaged"
        self.problem(path, kind, what, own or fix)

    def note(self, path: Path, kind: NoteKind, note: str) -> None:
        self.notes.append(Note(str(path), kind, note))

    def good(self, kind: str, num_bytes: int = 0) -> None:
        self.checked[kind] += 1
        self.num_bytes += num_bytes

    def document(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            "kind": "verification",
            "ok": self.ok,
            "checked": dict(sorted(self.checked.items())),
            "bytes": self.num_bytes,
            "problems": [asdict(problem) for problem in self.problems],
            "notes": [asdict(note) for note in self.notes],
        }
