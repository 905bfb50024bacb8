"""Where image files lie: a folder, a zip or a tar. Archives are read member by member in memory and never extracted."""

import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Container as Holds
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

from driftkit.errors import ArtifactError, shortened
from driftkit.storage.files import digest_json

MAX_MEMBER_BYTES = 256 * 2**20
MAX_FILES = 20_000_000
MAX_METADATA_BYTES = 2**20
METADATA = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVE_SUFFIXES = (".zip", *TAR_SUFFIXES)
BROKEN_ARCHIVE = (
    zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error,
    OSError, EOFError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip


class Container(Protocol):
    """Files by name, whatever holds them."""

    @property
    def path(self) -> Path: ...

    def names(self) -> list[str]:
        """Names of all files, with forward slashes, hidden ones skipped; in no special order."""

    def notes(self) -> tuple[str, ...]:
        """What a reader of the pack should know."""

    def digest(self) -> str:
        """Hex digest that changes when a file does, computed without reading contents."""

    def contents(self, names: Holds[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files of those names, in the order that is cheapest to read."""


@dataclass(frozen=True)
class Folder:
    """A folder with all that is below it. Links are followed, also out of it."""

    path: Path

    @cached_property
    def _files(self) -> dict[str, tuple[int, int]]:
        """Name to size in bytes and time of the last change in nanoseconds."""
        return self._walk[0]

    @cached_property
    def _walk(self) -> tuple[dict[str, tuple[int, int]], tuple[str, ...]]:
        """The files, and the places that links lead to: folders outside, and linked folders inside."""
        files: dict[str, tuple[int, int]] = {}
        places: dict[str, bool] = {}  # whether the folder itself is linked, or a file in it
        root, num_folders = str(self.path), 0
        waiting = [_Place(root, "", (), None)]
        while waiting:
            here = waiting.pop().entered()
            num_folders += 1
            if len(files) + num_folders > MAX_FILES:  # links can make folders without end of a few
                raise ArtifactError(f"{root} holds more than {MAX_FILES:,} files; make several packs of it")
            for entry in _entries(here.path):
                if is_hidden(entry.name):
                    continue
                try:
                    linked, status = entry.is_symlink(), entry.stat()
                except OSError as error:
                    raise ArtifactError(f"{entry.path} is not readable: {error.strerror}; remove it") from None
                is_folder = stat.S_ISDIR(status.st_mode)
                if linked:
                    target = os.path.join(here.path, os.readlink(entry.path))
                    places[target if is_folder else os.path.dirname(target)] = is_folder
                if is_folder:
                    link = entry.path if linked else here.link
                    waiting.append(_Place(entry.path, f"{here.prefix}{entry.name}/", here.ancestors, link))
                elif stat.S_ISREG(status.st_mode):
                    files[here.prefix + entry.name] = (status.st_size, status.st_mtime_ns)
                else:
                    raise ArtifactError(f"{entry.path} is no plain file; remove it")
        real = os.path.realpath(root)
        shown = {os.path.realpath(at) for at, is_whole in places.items() if is_whole or not is_within(at, real)}
        return files, tuple(sorted(shown))

    def names(self) -> list[str]:
        return list(self._files)

    def notes(self) -> tuple[str, ...]:
        return (f"follows links to {shortened(self._walk[1], 5)}",) if self._walk[1] else ()

    def digest(self) -> str:
        return digest_json(sorted((name, *facts) for name, facts in self._files.items()))

    def contents(self, names: Holds[str]) -> Iterator[tuple[str, bytes]]:
        for name in sorted(self._files):
            if name in names:
                path = f"{self.path}/{name}"
                require_image_file(path, self._files[name][0])
                try:
                    with open(path, "rb", buffering=0) as file:
                        data = file.read()
                except OSError as error:
                    raise ArtifactError(f"{path} is not readable: {error.strerror}") from None
                yield name, data


@dataclass(frozen=True)
class _Place:
    """A folder on the way through a folder."""

    path: str
    prefix: str  # of the names of its files
    ancestors: tuple[tuple[int, int], ...]  # device and inode of the folders above it
    link: str | None  # the last link on the way to it

    def entered(self) -> Self:
        """The same with itself among the ancestors; refused if it is there already."""
        status = os.stat(self.path)
        identity = (status.st_dev, status.st_ino)
        if identity in self.ancestors:
            raise ArtifactError(f"{self.link} is a link to a folder that it lies in, a loop; remove it")
        return replace(self, ancestors=(*self.ancestors, identity))


def is_within(path: str, folder: str) -> bool:
    """Whether a path lies below a real folder, or is it."""
    return f"{os.path.realpath(path)}/".startswith(f"{folder}/")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ArtifactError(f"{folder} is not readable: {error.strerror}") from None


@dataclass(frozen=True)
class Zip:
    """A zip archive."""

    path: Path

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = archive.infolist()
        except BROKEN_ARCHIVE as error:
            raise ArtifactError(f"{self.path} is no whole zip archive: {error}; get it again") from None
        found: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                _refuse(self.path, member.filename, "a link or a device")
            if not member.filename:
                _refuse(self.path, member.filename, "a member without a name")
            name = member.filename.replace("\\", "/")  # as Windows writes them
            _check_name(self.path, member.orig_filename.replace("\\", "/"))
            if not name.endswith("/"):
                _add(found, self.path, name, member)
        return found

    def names(self) -> list[str]:
        return list(self._members)

    def notes(self) -> tuple[str, ...]:
        return ()

    def digest(self) -> str:
        return digest_json(sorted((name, m.CRC, m.file_size) for name, m in self._members.items()))

    def contents(self, names: Holds[str]) -> Iterator[tuple[str, bytes]]:
        with zipfile.ZipFile(self.path) as archive:
            for name, member in self._members.items():
                if name in names:
                    require_image_file(f"{self.path}: {name}", member.file_size)
                    try:
                        data = archive.read(member)  # compares the CRC, too
                    except BROKEN_ARCHIVE as error:
                        raise ArtifactError(
                            f"{self.path}: {name} is not readable: {error}; get the archive again"
                        ) from None
                    yield name, data


class _StrictMember(tarfile.TarInfo):
    """Raises on a broken header, which tarfile takes for the end: a truncated archive would look complete."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        # tarfile reads names, extended headers and maps of holes whole, however long a compressed archive makes them.
        if member.type in METADATA and member.size > MAX_METADATA_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes, expected at most {MAX_METADATA_BYTES:,}")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{member.name} has holes; make the archive without --sparse")
        return member

    def _proc_gnusparse_10(self, *_: Any) -> NoReturn:
        raise tarfile.ReadError(f"{self.name} has holes; make the archive without --sparse")

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the block of zeros that closes an archive
                raise
            raise tarfile.ReadError(f"no closing block, it is cut off or broken ({error})") from None


@dataclass(frozen=True)
class Tar:
    """A tar archive, plain or compressed."""

    path: Path

    def _walk(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        """Every plain file in the order of the archive."""
        try:
            with tarfile.open(self.path, "r:*", tarinfo=_StrictMember) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all, and millions of empty ones compress to nothing
                    _check_name(self.path, member.name)
                    if member.isfile():
                        yield archive, member
                    elif not member.isdir():
                        _refuse(self.path, member.name, "a link or a device")
        except ArtifactError:
            raise
        except BROKEN_ARCHIVE as error:
            raise ArtifactError(f"{self.path} is no whole tar archive: {error}; get it again") from None

    def names(self) -> list[str]:
        found: dict[str, None] = {}
        for _, member in self._walk():
            require_image_file(f"{self.path}: {member.name}", member.size)
            _add(found, self.path, re.sub(r"^(\./)+", "", member.name), None)
        return list(found)

    def notes(self) -> tuple[str, ...]:
        return ()

    def digest(self) -> str:
        # A tar has no directory to look at, and reading through it costs as much as the import.
        status = self.path.stat()
        return digest_json([status.st_size, status.st_mtime_ns])

    def contents(self, names: Holds[str]) -> Iterator[tuple[str, bytes]]:
        for archive, member in self._walk():
            name = re.sub(r"^(\./)+", "", member.name)
            if name in names:
                stream = archive.extractfile(member)
                assert stream is not None, "_walk gives plain files"
                yield name, stream.read()


def open_container(path: Path) -> Container:
    """The folder or archive at `path`.

    Raises:
        ArtifactError: it is neither.
    """
    if path.is_dir():
        return Folder(path)
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is no plain file; expected a folder or an archive of images")
    if path.name.lower().endswith(".zip"):
        return Zip(path)
    if path.name.lower().endswith(TAR_SUFFIXES):
        return Tar(path)
    raise ArtifactError(f"{path}: expected a folder, {', '.join(ARCHIVE_SUFFIXES)} or a pack (.safetensors)")


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key under which img2 comes before img10."""
    pieces = re.split(r"(\d{1,4000})", name)  # int() takes no longer ones
    return [(int(p), "") if p.isascii() and p.isdigit() else (-1, p) for p in pieces], name


def _add(found: dict[str, Any], path: Path, name: str, member: Any) -> None:
    if any(is_hidden(part) for part in name.split("/")):
        return
    if name in found:
        raise ArtifactError(f"{path} holds {name} twice; make it again")
    if len(found) >= MAX_FILES:
        raise ArtifactError(f"{path} holds more than {MAX_FILES:,} files; make several packs of it")
    found[name] = member


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is passed over."""
    return (name.startswith(".") and name != ".") or name == "__MACOSX"


def _check_name(path: Path, name: str) -> None:
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        _refuse(path, name, "a name that leads out of the archive")
    if "\0" in name or "\\" in name:
        _refuse(path, name, "a name with a backslash or a zero byte")


def _refuse(path: Path, name: str, what: str) -> NoReturn:
    raise ArtifactError(f"{path}: refused, since {name!r} is {what}; make the archive again without it")


def require_image_file(name: str, size: int) -> None:
    """Refuse more bytes than one encoded image may have."""
    if size > MAX_MEMBER_BYTES:
        raise ArtifactError(f"{name}: {size:,} bytes, expected at most {MAX_MEMBER_BYTES:,} for one image; remove it")
