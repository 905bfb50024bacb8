"""Locks on folders and files that only one process may write at a time.

A lock is a file with an flock on it: the system lets go of it when its holder ends, however it ends, so none is ever
left stale. The file says who holds it. (Lock files that stand for themselves, without flock, outlive a kill -9.)
"""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from driftkit.errors import BusyError, StorageError
from driftkit.storage.atomic import make_folder, shortened, storage_errors
from driftkit.storage.json_text import from_json

LOCK_FILE = ".lock"
SWITCH = "DRIFTKIT_LOCKS"
BUSY = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
POLL_S = 0.2
COMMAND_LENGTH = 100
PATIENCE_S = 0.5  # for one that is just letting go, or that only asks who holds it
SAY_AFTER_S = 2.0
_held: dict[Path, int] = {}  # this process's own, which it may take again


@contextlib.contextmanager
def locked_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, which is made if need be, so that no other process writes it as a whole.

    Folders that were made for this and are still empty at the end are removed.

    Args:
        wait: until others are done, instead of refusing.

    Raises:
        BusyError: another living process holds it; the message names that process.
        StorageError: the folder cannot be written, or its file system knows no locks.
    """
    with _made(folder), _held_lock(folder / LOCK_FILE, wait=wait, what=folder):
        yield


@contextlib.contextmanager
def locked_file(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a file or folder that others may want to write, too, by a lock beside it.

    Folders that were made for this and are still empty at the end are removed.

    Args:
        wait: until others are done, saying for whom, instead of refusing.

    Raises:
        BusyError: another living process holds it, and `wait` is not given.
        StorageError: the folder around it cannot be written, or its file system knows no locks.
    """
    lock = path.with_name(f".{shortened(path.name, 200)}{LOCK_FILE}")
    with _made(path.parent), _held_lock(lock, wait=wait, what=path):
        yield


def holder_of(folder: Path) -> str | None:
    """Who holds the lock of a folder now, in words; None where nobody does."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:  # no lock there, or none that this user could take
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return _owner(descriptor) if error.errno in BUSY else None
    finally:
        os.close(descriptor)
    return None


def is_lock(path: Path) -> bool:
    """Whether the name is that of a lock."""
    return path.name.startswith(".") and path.name.endswith(LOCK_FILE)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    with storage_errors(folder):
        made = make_folder(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: they were for something
            for empty in made:
                empty.rmdir()


@contextlib.contextmanager
def _held_lock(lock: Path, *, wait: bool, what: Path) -> Iterator[None]:
    key = lock.absolute()
    if _held.get(key) or os.environ.get(SWITCH) == "off":
        _held[key] = _held.get(key, 0) + 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    descriptor = _acquire(lock, wait=wait, what=what)
    _held[key] = 1
    try:
        yield
    finally:
        _held[key] = 0
        lock.unlink(missing_ok=True)  # still held: whoever waits finds a file without a name, and opens anew
        os.close(descriptor)


def _acquire(lock: Path, *, wait: bool, what: Path) -> int:
    started, said = time.monotonic(), False
    while True:
        with storage_errors(what):
            make_folder(lock.parent)  # whoever let go of the lock may have removed it, empty as it was
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            if _try(descriptor, lock, what):
                return descriptor
            owner = _owner(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not wait and time.monotonic() - started > PATIENCE_S:
            raise BusyError(
                f"{what} is being written by {owner}; wait until it is done, stop it, or give another folder"
            )
        if not said and time.monotonic() - started > SAY_AFTER_S:
            said = True
            sys.stderr.write(f"waiting for {owner}, which writes {what}\n")
            sys.stderr.flush()
        time.sleep(POLL_S)


def _try(descriptor: int, lock: Path, what: Path) -> bool:
    """Take the lock and write the owner's name, unless another holds it or has just removed the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        if error.errno in NO_LOCKS:
            raise StorageError(
                f"{lock.parent}: its file system knows no locks ({os.strerror(error.errno)}), so another process "
                f"could write the same files unnoticed; choose another folder, or set {SWITCH}=off where none will"
            ) from None
        raise
    try:
        if os.fstat(descriptor).st_ino != lock.stat().st_ino:
            return False
    except FileNotFoundError:
        return False
    try:
        with storage_errors(what):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_own_record()).encode(), 0)
    except StorageError:
        lock.unlink(missing_ok=True)
        raise
    return True


def _own_record() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": textwrap.shorten(shlex.join(["driftkit", *sys.argv[1:]]), COMMAND_LENGTH, placeholder=" ..."),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _owner(descriptor: int) -> str:
    try:
        record = from_json(os.pread(descriptor, 4096, 0))
        owner = f"process {record['pid']} on {record['host']} since {record['since']} ({record['command']})"
        return "".join(c if c.isprintable() else "?" for c in owner)  # it goes to a terminal
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it is just writing its name
        return "another process"
