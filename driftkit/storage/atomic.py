"""Writing a file or a folder so that its final name never holds half of it, and what a failing disk is told as.

What is being written bears a name like `.manifest.HOST-1f2e3d-4711-9a8b7c.partial.json`: machine, process and chance
make it unique on folders that many machines share, and tell whether its writer still lives.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

from driftkit.errors import StorageError

PARTIAL, REPLACED = ".partial", ".replaced"
_OWNED = re.compile(
    r"\.(?P<stem>.*)\.(?P<host>[A-Za-z0-9]*)-(?P<machine>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{6}"
    r"(?P<kind>\.partial|\.replaced)(?P<suffix>\.[^.]*)?",
    re.DOTALL,
)
LONGEST_NAME = 255  # bytes, of Linux' file systems
AT_FDCWD, RENAME_EXCHANGE = -100, 2
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
    """Yield a temporary path beside `target`; on success it is flushed to disk and renamed, on failure removed.

    The temporary keeps the suffix of the target, since some writers choose their format by it.

    Args:
        num_bytes: how large the file will be, for the message of a disk that is full.

    Raises:
        StorageError: the disk is full, read-only, over quota or failing; what was there before is untouched.
    """
    target = Path(target)
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
    """Like `atomic_path` for a folder of files; a folder already at `target` is replaced.

    Where the system can swap two names at once (Linux, on local file systems), the old or the new folder is there at
    every moment. Elsewhere a kill between two renames leaves neither; `recover` then brings the old one back.
    """
    target = Path(target)
    with storage_errors(target, num_bytes):
        make_folder(target.parent)
        remove_abandoned(target)
        temporary, replaced = temporary_path(target), temporary_path(target, REPLACED)
        temporary.mkdir()
        try:
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
            if not target.exists():
                os.replace(temporary, target)
            elif not _exchange(temporary, target):
                os.replace(target, replaced)
                os.replace(temporary, target)
            flush(target.parent)
        except StorageError as error:  # of a file within: people know it by its final place
            raise StorageError(str(error).replace(str(temporary), str(target))) from error
        finally:
            if replaced.exists() and not target.exists():
                os.replace(replaced, target)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder such that no part of it is ever seen under its name."""
    with storage_errors(path):
        doomed = temporary_path(path)
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its parents, and have the disk know of each; gives those that were not there, deepest first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush(folder.parent)
    return missing


def flush(path: Path) -> None:
    """Have the disk know what a file holds, or which names a folder has."""
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


def temporary_path(target: Path, kind: str = PARTIAL) -> Path:
    """A name beside `target` that no other process has, now or ever."""
    suffix = target.suffix if kind == PARTIAL else ""
    middle = f".{_host()}-{_machine()}-{os.getpid()}-{secrets.token_hex(3)}{kind}{suffix}"
    return target.with_name(f".{_shortened(target, suffix)}{middle}")


def is_temporary(path: Path) -> bool:
    """Whether the name is one under which driftkit writes before renaming."""
    return path.name.startswith(".") and (PARTIAL in path.name or REPLACED in path.name)


def writer_lives(path: Path) -> bool | None:
    """Whether the process that writes a temporary still runs; None where another machine or container knows."""
    found = _OWNED.fullmatch(path.name)
    if found is None or found["machine"] != _machine():
        return None
    return _process_exists(int(found["pid"]))


def remove_abandoned(target: Path) -> None:
    """Remove temporaries of `target` whose writers are known to be dead, and bring back what one was replacing."""
    for path in _temporaries_of(target):
        if writer_lives(path) is False:
            _settle(path, target)


def remove_all_temporaries(folder: Path, pattern: str = "*") -> None:
    """The same for all of them in a folder of which the caller knows that nobody else writes there."""
    for path in sorted(folder.glob(f".{pattern}")):
        if is_temporary(path):
            found = _OWNED.fullmatch(path.name)
            name = found["stem"] if found else re.sub(r"(\.\d+)?\.(partial|replaced).*", "", path.name[1:])
            _settle(path, path.with_name(name))


@contextlib.contextmanager
def storage_errors(target: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turn the errors of a disk that takes no more into one line that says what and how much.

    Raises:
        StorageError: instead of the system's error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _errno(error)
        if number not in REMEDIES:
            raise
        raise StorageError(_told(target, number, num_bytes)) from error


def require_free(target: Path, num_bytes: int, what: str) -> None:
    """Refuse to begin what cannot end for lack of space.

    Raises:
        StorageError: fewer bytes are free where `target` will lie.
    """
    free = free_bytes(target)
    if free < num_bytes:
        raise StorageError(
            f"{what} needs {megabytes(num_bytes)} and {megabytes(free)} are free where {target} is to lie; "
            "free some space, or choose another disk"
        )


def free_bytes(target: Path) -> int:
    """Bytes free for this user on the disk where `target` lies or will lie."""
    there = next(parent for parent in (target.absolute(), *target.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def megabytes(count: int) -> str:
    """A number of bytes for people, in MB of 10^6 bytes."""
    return f"{count / 1e6:,.1f} MB"


def _told(target: Path, number: int, num_bytes: int | None) -> str:
    facts = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT):
        facts += f", {megabytes(num_bytes)} needed" if num_bytes is not None else ""
        facts += f", {megabytes(free_bytes(target))} free"
    return f"{target} was not written ({facts}): {REMEDIES[number]}; what was there before is kept"


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    in_text = re.search(r"\(os error (\d+)\)", str(error))  # safetensors tells the system's errors as text alone
    return int(in_text[1]) if in_text else None


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names at once; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def _settle(path: Path, target: Path) -> None:
    if path.name.endswith(REPLACED) and not target.exists():
        os.replace(path, target)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # another process may have found it, too


def _temporaries_of(target: Path) -> list[Path]:
    if not target.parent.is_dir():
        return []
    stems = {_shortened(target, target.suffix), _shortened(target, "")}
    found = []
    with os.scandir(target.parent) as entries:
        for entry in entries:
            match = _OWNED.fullmatch(entry.name) if entry.name.startswith(".") else None
            if match and match["stem"] in stems:
                found.append(target.with_name(entry.name))
    return found


def _shortened(target: Path, suffix: str) -> str:
    """The target's stem, cut such that the temporary's name is no longer than names may be."""
    stem = target.name.removesuffix(suffix) if suffix else target.name
    return shortened(stem, LONGEST_NAME - 60 - len(os.fsencode(suffix)))


def shortened(name: str, room: int) -> str:
    """The beginning of a name that takes at most so many bytes."""
    return os.fsencode(name)[:room].decode("utf-8", "ignore")


@cache
def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:16]


@cache
def _machine() -> str:
    """Stands for this machine since it was started, and this container on it: elsewhere process numbers mean others."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux: the name has to do
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:6]


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
