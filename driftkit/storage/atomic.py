"""Writing a file or a folder so that its final name never holds half of it, and explaining a disk that fails.

What is being written has a name like `.manifest.HOST-4711-9a8b7c.partial.json`: host and process tell whether its
writer still lives.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError

from driftkit.errors import StorageError

PARTIAL = ".partial"
LONGEST_NAME = 255  # bytes, of Linux' file systems
_TEMPORARY = re.compile(
    r"\.(?P<stem>.*)\.(?P<host>[A-Za-z0-9]*)-(?P<pid>\d+)-[0-9a-f]{6}\.partial(?P<suffix>\..*)?", re.DOTALL
)
REMEDIES = {
    errno.ENOSPC: "no space is left there; free some, or choose another disk",
    errno.EDQUOT: "the quota there is used up; free some space, or choose another disk",
    errno.EROFS: "the file system is read-only; mount it for writing, or choose another folder",
    errno.EACCES: "writing there is not permitted; change the permissions, or choose another folder",
    errno.EPERM: "writing there is not permitted; change the permissions, or choose another folder",
    errno.EFBIG: "the file would be larger than the file system or `ulimit -f` allows",
    errno.EIO: "the disk or its network failed; look at the system's log before trusting it with more",
}


@contextlib.contextmanager
def atomic_path(target: Path, *, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path next to `target`; on success it is flushed and renamed, on failure removed.

    The temporary keeps the suffix of the target, since some writers choose their format by it.

    Raises:
        StorageError: the disk is full (for `num_bytes`), read-only, over quota or failing; what was there is untouched.
    """
    with storage_errors(target, num_bytes):
        make_folder(target.parent)
        remove_abandoned(target)
        temporary = temporary_path(target)
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, target)
            flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path, *, num_bytes: int | None = None) -> Iterator[Path]:
    """Like `atomic_path` for a folder of files; a kill may leave none where one was before, never a mixture."""
    target = Path(target)
    with storage_errors(target, num_bytes):
        make_folder(target.parent)
        remove_abandoned(target)
        temporary, old = temporary_path(target), temporary_path(target)
        temporary.mkdir()
        try:
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
            if target.exists():
                os.replace(target, old)
            try:
                os.replace(temporary, target)
            except OSError:
                if old.exists():
                    os.rename(old, target)
                raise
            flush(target.parent)
        except StorageError as error:  # of a file within: people know it by its final place
            raise StorageError(str(error).replace(str(temporary), str(target))) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder such that no part of it is ever seen under its name."""
    with storage_errors(path):
        doomed = temporary_path(path)
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its parents, flushed to disk; returns those that were not there, deepest first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush(folder.parent)
    return missing


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's names, to disk."""
    is_folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync folders: they make names lasting on their own.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def temporary_path(target: Path) -> Path:
    """A name next to `target` that no other process has."""
    suffix = target.suffix
    stem = shortened(target.name.removesuffix(suffix), LONGEST_NAME - 60 - len(os.fsencode(suffix)))
    return target.with_name(f".{stem}.{_host()}-{os.getpid()}-{secrets.token_hex(3)}{PARTIAL}{suffix}")


def is_temporary(path: Path) -> bool:
    """Whether the name is one under which driftkit writes before renaming."""
    return _TEMPORARY.fullmatch(path.name) is not None


def writer_lives(path: Path) -> bool | None:
    """Whether the process that writes a temporary still runs; None where another host knows."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None or match["host"] != _host():
        return None
    return bool(psutil.pid_exists(int(match["pid"])))


def remove_abandoned(target: Path) -> None:
    """Remove temporaries of `target` whose writers are known to be dead."""
    start = temporary_path(target).name.rpartition(f".{_host()}-")[0]

    def abandoned(path: Path) -> bool:
        match = _TEMPORARY.fullmatch(path.name)
        return match is not None and f".{match['stem']}" == start and writer_lives(path) is False

    _remove_temporaries(target.parent, abandoned)


def remove_all_temporaries(folder: Path, pattern: str = "*") -> None:
    """Remove temporaries of matching names in a folder in which, as the caller knows, nobody else writes those."""
    _remove_temporaries(folder, lambda path: path.match(f".{pattern}"))


@contextlib.contextmanager
def storage_errors(target: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turn the errors of a disk that takes no more into a StorageError of one line that says what and how much."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        in_text = re.search(r"\(os error (\d+)\)", str(error))  # all that safetensors says of the system's errors
        number = error.errno if isinstance(error, OSError) else int(in_text[1]) if in_text else None
        if number not in REMEDIES:
            raise
        facts = os.strerror(number)
        if number in (errno.ENOSPC, errno.EDQUOT):
            facts += f", {megabytes(num_bytes)} needed" if num_bytes is not None else ""
            facts += f", {megabytes(free_bytes(target))} free"
        message = f"{target} was not written ({facts}): {REMEDIES[number]}; what was there before is kept"
        raise StorageError(message) from error


def require_free(target: Path, num_bytes: int, what: str) -> None:
    """Refuse, by a StorageError, to begin what cannot end for lack of space."""
    if (free := free_bytes(target)) < num_bytes:
        raise StorageError(
            f"{what} needs {megabytes(num_bytes)} and {megabytes(free)} are free where {target} is to lie; "
            "free some space, or choose another disk"
        )


def free_bytes(target: Path) -> int:
    """Bytes free for this user on the disk where `target` lies or will lie."""
    folder = next(parent for parent in (target.absolute(), *target.absolute().parents) if parent.exists())
    return int(psutil.disk_usage(str(folder)).free)


def megabytes(count: int) -> str:
    """A number of bytes for people, in MB of 10^6 bytes."""
    return f"{count / 1e6:,.1f} MB"


def shortened(name: str, room: int) -> str:
    """The beginning of a name that takes at most so many bytes."""
    return os.fsencode(name)[:room].decode("utf-8", "ignore")


def _remove_temporaries(folder: Path, wanted: Callable[[Path], bool]) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_temporary(path) and wanted(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # another process may have found it, too


def _host() -> str:
    """Identifies this boot of this machine, and its container: only within it are process ids comparable."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux: the name has to do
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9]", "", parts[0])[:16] + digest[:6]
