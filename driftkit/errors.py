"""The errors a user can cause, each with the exit code the command line documents.

A message says what was got, what was expected and one fix, on one line. Everything else that escapes is a bug.
"""

from collections.abc import Sequence

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_RESOURCES = 4
EXIT_REFUSED = 5
EXIT_INTERRUPTED = 130

UNTOUCHED = "nothing was updated, the last checkpoint is whole"
MAX_NAMES = 4  # of many that a message shows


def shortened(names: Sequence[object], most: int = MAX_NAMES, joint: str = ", ") -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - most
    return joint.join(map(str, names[:most])) + (f" and {more:,} more" if more > 0 else "")


class DriftkitError(ValueError):
    """A failure that a user can understand and fix; exit code 1.

    Attributes:
        code: short stable name of the kind of error, which stands in brackets after the message.
    """

    exit_code = EXIT_FAILURE
    code = "failure"
    on_all_ranks = False
    """Whether every process of a distributed run raises the same, so that the first one's message is enough."""


class UsageError(DriftkitError):
    """An option, config key or value that does not fit; exit code 2."""

    exit_code = EXIT_USAGE
    code = "usage"


class ArtifactError(DriftkitError):
    """Data, weights or a run that cannot be used: absent, unreadable, damaged or of another kind; exit code 3."""

    exit_code = EXIT_MISSING
    code = "artifact"


class NotFoundError(ArtifactError):
    """Data, weights or a run that is absent; exit code 3."""

    code = "not-found"


class ResourceError(DriftkitError):
    """Out of memory or disk, a device that is not there, a folder that is in use; exit code 4."""

    exit_code = EXIT_RESOURCES
    code = "resources"


class StorageError(ResourceError):
    """A disk that is full, over quota, read-only or failing; exit code 4."""

    code = "storage"


class BusyError(ResourceError):
    """A folder that another living process writes; exit code 4."""

    code = "busy"


class RefusedError(DriftkitError):
    """A check on results that refuses to go on (mismatch, collapse, images that are not finite); exit code 5."""

    exit_code = EXIT_REFUSED
    code = "refused"


class NonFiniteError(DriftkitError):
    """Features that are not finite; exit code 1.

    Attributes:
        fields: numbers of the fields they belong to; empty where only those of another process are not finite.
    """

    code = "non-finite"

    def __init__(self, fields: list[int]):
        which = (
            f"of field {fields[0]} are not finite (fields {fields})" if fields else "of another process are not finite"
        )
        super().__init__(f"features {which}; nothing was updated")
        self.fields = fields


class LostRankError(DriftkitError):
    """Another process of a run has died or cannot be reached; exit code 1."""

    code = "lost-rank"


class NonFiniteStepError(DriftkitError):
    """A training step in which something is not finite; nothing was updated with it. Raised on every rank; exit code 1.

    Attributes:
        names: what is not finite, in order of cause.
        step: steps done before it.
        rank: the first on which it was found; None where that is not known, or in a world of one.
    """

    code = "non-finite"
    on_all_ranks = True

    def __init__(
        self, names: Sequence[str], step: int, *, rank: int | None = None, state: str = UNTOUCHED, more: str = ""
    ):
        place = "" if rank is None else f" on rank {rank}"
        super().__init__(f"not finite at step {step}{place}: {shortened(names)}; {state}{more and '; '}{more}")
        self.names, self.step, self.rank = tuple(names), step, rank


class InterruptedRunError(DriftkitError):
    """The run was asked to stop and has saved its state; exit code 128 + the number of the signal."""

    code = "interrupted"

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
