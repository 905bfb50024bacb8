"""Kill points: every change that a process makes to files, counted from outside the product, and SIGKILL before one.

`watch` wraps, in the process that is to be killed, the functions by which Python changes files. Nothing of driftkit
knows of it. A kill comes before the change, so that all changes before are done and this one is not; at a "half" the
first half of the content is written before.
"""

import builtins
import io
import json
import os
import pathlib
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.(.*)\.[A-Za-z0-9]*-\d+-[0-9a-f]{6}\.partial(\..*)?", re.DOTALL)


@dataclass(frozen=True)
class Event:
    """A change to a file: `open` for writing, `half` of its content, `flush`, `rename`, `set aside`, `remove`, `make`
    (a folder) or `cut`; the path is relative, a temporary's is that of its target and `~`."""

    kind: str
    path: str


@dataclass(frozen=True)
class Kill:
    """When a process is to die: before its n-th change of a kind to a path, counted from the anchor on, or before its
    n-th change of all, or after some seconds of work.

    Attributes:
        anchor: a change that must have come first; None: from the start.
        number: of changes, from 1 on.
    """

    event: Event | None = None
    anchor: Event | None = None
    number: int = 1
    seconds: float | None = None


def plain_path(path: str, root: str) -> str | None:
    """The path below the root with temporaries under their targets' names; None for paths elsewhere."""
    absolute = os.path.abspath(path)
    if not absolute.startswith(root + os.sep):
        return None
    parts = os.path.relpath(absolute, root).split(os.sep)
    return "/".join(f"{m[1]}{m[2] or ''}~" if (m := TEMPORARY.fullmatch(part)) else part for part in parts)


class Watch:
    """Counts and writes down changes, and kills this process before the one that is named.

    Args:
        root: changes elsewhere do not count.
        log: file that gets one line per change, which outlives the kill.
    """

    def __init__(self, root: Path, log: Path, kill: Kill | None):
        self.root, self.kill = str(root), kill
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        self._anchored = kill is None or kill.anchor is None
        self._count = 0

    def see(self, kind: str, path: Any, tear: Callable[[], object] | None = None) -> None:
        """A change that is about to happen; `tear` does half of it."""
        try:
            name = plain_path(os.fspath(path), self.root)
        except TypeError:  # a file descriptor or a buffer
            return
        if name is None:
            return
        event = Event(kind, name)
        os.write(self._log, (json.dumps([kind, name]) + "\n").encode())
        if self.kill is None or self.kill.seconds is not None:
            return
        if self._anchored and self.kill.event in (None, event):
            self._count += 1
            if self._count == self.kill.number:
                if tear is not None:
                    tear()
                os.kill(os.getpid(), signal.SIGKILL)
        self._anchored = self._anchored or event == self.kill.anchor


def read_log(log: Path) -> list[Event]:
    """The changes that a process made, or was about to make, in order."""
    return [Event(*json.loads(line)) for line in log.read_text().splitlines()]


def watch(root: Path, log: Path, kill: Kill | None) -> None:
    """Watch this process from now on; there is no way back but its end."""
    seen = Watch(root, log, kill)
    _wrap_names(seen)
    _wrap_opening(seen)
    _wrap_content(seen)


def _wrap_names(seen: Watch) -> None:
    def renaming(original: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def wrapped(source: Any, target: Any, **more: Any) -> Any:
            is_temporary = TEMPORARY.fullmatch(os.path.basename(os.fspath(target)))
            seen.see("set aside" if is_temporary else kind, target)
            return original(source, target, **more)

        return wrapped

    def removing(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *, dir_fd: int | None = None) -> Any:
            folder = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else ""
            seen.see("remove", os.path.join(folder, path))
            return original(path, dir_fd=dir_fd)

        return wrapped

    def one(original: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def wrapped(path: Any, *more: Any, **options: Any) -> Any:
            seen.see(kind, path)
            return original(path, *more, **options)

        return wrapped

    flush = os.fsync

    def flushing(descriptor: int) -> None:
        seen.see("flush", os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    for name in ("replace", "rename"):
        setattr(os, name, renaming(getattr(os, name), "rename"))
    for name in ("unlink", "remove", "rmdir"):
        setattr(os, name, removing(getattr(os, name)))
    os.mkdir, os.truncate, os.fsync = one(os.mkdir, "make"), one(os.truncate, "cut"), flushing


def _wrap_opening(seen: Watch) -> None:
    open_file, open_descriptor = builtins.open, os.open

    class Torn(io.FileIO):
        """Lines are added to a file one at a time, each of which may be torn."""

        def write(self, content: Any) -> int:
            first = bytes(content)[: len(content) // 2]
            seen.see("half", self.name, lambda: io.FileIO.write(self, first))
            return io.FileIO.write(self, content)

    def opening(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return open_file(file, mode, buffering, *more, **options)
        seen.see("open", file)
        if mode == "ab" and buffering == 0:
            return Torn(os.fspath(file), "ab")
        return open_file(file, mode, buffering, *more, **options)

    def opening_descriptor(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            seen.see("open", path)
        return open_descriptor(path, flags, *more, **options)

    builtins.open = io.open = opening
    os.open = opening_descriptor


def _wrap_content(seen: Watch) -> None:
    import safetensors.torch
    from PIL import Image

    from driftkit.storage import files

    write_bytes, save_picture, save_file = pathlib.Path.write_bytes, Image.Image.save, files.save_file

    def half(path: Any, content: bytes) -> None:
        write_bytes(Path(path), content[: len(content) // 2])

    def writing(self: Path, content: Any) -> int:
        seen.see("half", self, lambda: half(self, bytes(content)))
        return write_bytes(self, content)

    def saving_picture(self: Image.Image, path: Any, format: str | None = None, **options: Any) -> None:
        def tear() -> None:
            whole = io.BytesIO()
            save_picture(self, whole, format, **options)
            half(path, whole.getvalue())

        seen.see("half", path, tear)
        save_picture(self, path, format, **options)

    def saving_tensors(tensors: Any, path: Any, metadata: Any = None) -> None:
        seen.see("open", path)
        seen.see("half", path, lambda: half(path, safetensors.torch.save(tensors, metadata)))
        save_file(tensors, path, metadata)

    pathlib.Path.write_bytes = writing  # type: ignore[method-assign]
    Image.Image.save = saving_picture  # type: ignore[method-assign]
    files.save_file = saving_tensors
