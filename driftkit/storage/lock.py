"""Locks on folders and files that only one process may write at a time.

The lock is `filelock`'s: the system releases it when its holder ends, however it ends. A small JSON file next to it
says who holds it. A killed holder leaves both files, which hold nothing.
"""

import contextlib
import errno
import os
import shlex
import socket
import sys
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from driftkit.errors import BusyError, StorageError
from driftkit.storage.atomic import make_folder, shortened, storage_errors

LOCK_FILE = ".lock"
HOLDER_SUFFIX = ".json"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
SWITCH = "DRIFTKIT_LOCKS"
COMMAND_LENGTH = 100
REFUSE_AFTER_S = 0.5
REPORT_AFTER_S = 2.0


class Holder(BaseModel):
    """The process that holds a lock."""

    pid: int
    host: str
    command: str
    since: str

    def __str__(self) -> str:
        text = f"process {self.pid} on {self.host} since {self.since} ({self.command})"
        return "".join(c if c.isprintable() else "?" for c in text)  # it goes to a terminal


def locked_folder(folder: Path, *, wait: bool = False) -> AbstractContextManager[None]:
    """Hold a folder, which is made if need be, so that no other process writes it as a whole; see `_lock`."""
    return _lock(folder / LOCK_FILE, folder, wait=wait)


def locked_file(path: Path, *, wait: bool = True) -> AbstractContextManager[None]:
    """Hold a file or folder that others may want to write, too, by a lock next to it; see `_lock`."""
    return _lock(path.with_name(f".{shortened(path.name, 200)}{LOCK_FILE}"), path, wait=wait)


def holder_of(folder: Path) -> str | None:
    """Who holds the lock of a folder now, in words; None where nobody does."""
    path = folder / LOCK_FILE
    if not path.is_file() or not os.access(path, os.W_OK):
        return None
    lock = _file_lock(path)
    if lock.is_locked:
        return _holder(path)
    try:
        with lock.acquire(timeout=0):
            return None
    except Timeout:
        return _holder(path)
    except OSError:  # no lock that this user could take
        return None


def is_lock(path: Path) -> bool:
    """Whether the name is that of a lock, or of the file that says who holds it."""
    return path.name.startswith(".") and path.name.removesuffix(HOLDER_SUFFIX).endswith(LOCK_FILE)


@contextlib.contextmanager
def _lock(path: Path, target: Path, *, wait: bool) -> Iterator[None]:
    """Hold `target` by a lock at `path`. Folders that were made for this and are empty at the end are removed.

    Args:
        wait: until others are done, saying for whom, instead of refusing.

    Raises:
        BusyError: another living process, which is named, holds it, and `wait` is not given.
        StorageError: the lock cannot be written.
    """
    if os.environ.get(SWITCH) == "off":
        yield
        return
    with storage_errors(target):
        made = make_folder(path.parent)
    lock = _file_lock(path)
    first = not lock.is_locked
    try:
        with storage_errors(target):
            _acquire(lock, path, target, wait=wait)
            if first:
                command = textwrap.shorten(shlex.join(["driftkit", *sys.argv[1:]]), COMMAND_LENGTH, placeholder=" ...")
                since = datetime.now(UTC).isoformat(timespec="seconds")
                holder = Holder(pid=os.getpid(), host=socket.gethostname(), command=ascii(command)[1:-1], since=since)
                _write_new(_holder_path(path), holder.model_dump_json())
        yield
    finally:
        if first and lock.is_locked:
            _holder_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)  # still held: `filelock` lets nobody take a file that has lost its name
        lock.release()
        with contextlib.suppress(OSError):  # not empty: they were for something
            for folder in made:
                folder.rmdir()


def _file_lock(path: Path) -> FileLock:
    """The lock of this process, which may take it again, in any thread."""
    return FileLock(path, is_singleton=True, thread_local=False, fallback_to_soft=False)


def _acquire(lock: FileLock, path: Path, target: Path, *, wait: bool) -> None:
    try:
        lock.acquire(timeout=REPORT_AFTER_S if wait else REFUSE_AFTER_S)
    except Timeout:
        holder = _holder(path)
        if not wait:
            raise BusyError(
                f"{target} is being written by {holder}; wait until it is done, stop it, or give another folder"
            ) from None
        sys.stderr.write(f"waiting for {holder}, which writes {target}\n")
        sys.stderr.flush()
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise StorageError(
            f"{path.parent}: its file system knows no locks, so another process could write the same files unnoticed; "
            f"choose another folder, or set {SWITCH}=off where none will"
        ) from None


def _holder(path: Path) -> str:
    try:
        return str(Holder.model_validate_json(_holder_path(path).read_bytes()))
    except (OSError, ValidationError):  # it has not written its name yet
        return "another process"


def _write_new(path: Path, text: str) -> None:
    """Write a small file in place of whatever has its name; a link there is replaced, not followed."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _holder_path(path: Path) -> Path:
    return path.with_name(path.name + HOLDER_SUFFIX)
