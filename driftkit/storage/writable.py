"""Checks before the work that its result can be written."""

import os
import tempfile
from pathlib import Path

from driftkit.errors import ArtifactError, UsageError
from driftkit.storage.atomic import storage_errors
from driftkit.storage.files import read_json, read_tensors

# What `atomic_path` and `atomic_folder` add to a name while they write.
TEMPORARY_NAME_BYTES = 24


def require_writable(target: Path, key: str, *, folder: bool = False) -> None:
    """Refuse a file or a folder that could not be written. Nothing is left behind by asking.

    Args:
        target: what will be written; it and its parents need not be there yet.
        key: the setting that named it, for the message.
        folder: whether it is a folder that files go into, rather than a file.

    Raises:
        UsageError: something else is in the way, or nobody may write there.
        StorageError: the disk is full, over quota or read-only.
    """
    if "\0" in str(target):
        raise UsageError(f"{key} {str(target)!r}: expected a path, got one with a NUL character")
    try:
        with storage_errors(target):
            _try_to_write(target, key, folder=folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{key} {target}: cannot be written ({reason}); give another place") from None


def _try_to_write(target: Path, key: str, *, folder: bool) -> None:
    if os.path.lexists(target):
        os.stat(target)  # a link to nowhere is no place to write to
    if target.is_dir() != folder and target.exists():
        expected, got = ("a folder", "a file") if folder else ("a file", "a folder")
        raise UsageError(f"{key} {target}: expected {expected}, got {got}; give another name")
    parent = target if folder else target.parent
    missing = [] if folder else [target.name]
    while not os.path.lexists(parent):
        missing.append(parent.name)
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(f"{key} {target}: expected a folder at {parent}, got a file; give another name")
    longest = os.pathconf(parent, "PC_NAME_MAX") - TEMPORARY_NAME_BYTES
    for name in missing:
        if len(os.fsencode(name)) > longest:
            raise UsageError(f"{key} {target}: a name is too long, expected at most {longest} bytes")
    if len(os.fsencode(os.path.abspath(target))) > os.pathconf(parent, "PC_PATH_MAX") - 256:
        raise UsageError(f"{key} {target}: the path is too long; give a shorter one")
    with tempfile.TemporaryFile(dir=parent):  # permissions alone say nothing of read-only file systems
        pass


def require_replaceable(target: Path, key: str, kind: str) -> None:
    """Refuse, by a UsageError, to write over anything but an earlier result of the same kind.

    Args:
        target: the file that will be written, whose record is the JSON of that name.
        key: the setting that named it, for the message.
        kind: what the record must say it is; "evaluation" covers "evaluation curve".
    """
    record = target.with_suffix(".json")
    if not (target.exists() or record.exists()):
        return
    existing = _kind_of(target, record)
    if existing is None or existing.partition(" ")[0] != kind:
        got = "another file" if existing is None else f"the record of a {existing}"
        raise UsageError(f"{key} {target}: expected a new name or earlier {kind}, got {got}; give another name")


def _kind_of(target: Path, record: Path) -> str | None:
    try:
        if record.exists():
            return read_json(record).get("kind")
        # The record comes last, so that a process that was killed leaves tensors without one.
        tensors, header = read_tensors(target)
        return "samples" if tensors.keys() == {"images"} and not header else header.get("driftkit")
    except ArtifactError:
        return None
