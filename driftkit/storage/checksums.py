"""One checksum file per folder: `SHA256SUMS`, which `sha256sum -c` understands, lists every other file of it.

It is written with the folder. What is loaded is compared with it, and `driftkit verify` compares all of it.
"""

import re
from pathlib import Path
from typing import Any

from driftkit.errors import ArtifactError, NotFoundError
from driftkit.storage.atomic import is_temporary
from driftkit.storage.files import sha256, sha256_file

CHECKSUM_FILE = "SHA256SUMS"
MAX_CHECKSUM_BYTES = 2**20
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\0]+)")


def file_record(path: Path) -> dict[str, Any]:
    """What a record says of a file, or of a folder of files: `sha256` and `bytes`."""
    if path.is_dir():
        listed = _checksum_lines(path)
        return {
            "sha256": sha256(listed.encode(errors="surrogateescape")),
            "bytes": sum(file.stat().st_size for file in path.iterdir()),
        }
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def write_checksums(folder: Path) -> None:
    """List all files of a folder; for folders that are written under a temporary name."""
    (folder / CHECKSUM_FILE).write_text(_checksum_lines(folder))


def _checksum_lines(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.name != CHECKSUM_FILE and not is_temporary(p))
    return "".join(f"{sha256_file(path)}  {path.name}\n" for path in files)


def read_checksums(folder: Path) -> dict[str, str]:
    """File name -> sha256 of the files of a folder.

    Raises:
        NotFoundError: the folder has no checksum file.
        ArtifactError: the checksum file is damaged.
    """
    path = folder / CHECKSUM_FILE
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(MAX_CHECKSUM_BYTES).splitlines()
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable: {error}") from None
    entries = [_LINE.fullmatch(line) for line in lines]
    if not entries or None in entries:
        raise ArtifactError(f"{path} is damaged: expected lines of a sha256 and a file name")
    return {entry[2]: entry[1] for entry in entries if entry}


def require_checksum(path: Path, expected: str, *, num_bytes: int | None = None) -> None:
    """Compare a file, or a folder of files, with the hex sha256 and, where that is known, the size of its record.

    Raises:
        NotFoundError: the file is absent.
        ArtifactError: it is cut off, damaged or another file.
    """
    try:
        size = path.stat().st_size
        if num_bytes is not None and size != num_bytes and not path.is_dir():
            state = "cut off" if size < num_bytes else "changed"
            raise ArtifactError(f"{path} is {state}: it has {size:,} bytes and was written with {num_bytes:,}")
        got = file_record(path)["sha256"]
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except OSError as error:
        raise ArtifactError(f"{path} is not readable: {error.strerror}") from None
    if got != expected:
        raise ArtifactError(f"{path} is damaged, or another file: sha256 is {got[:12]}, expected {expected[:12]}")


def require_listed(path: Path) -> None:
    """Compare a file with the checksum file of its folder; raises as `require_checksum`."""
    listed = read_checksums(path.parent)
    if path.name not in listed:
        raise ArtifactError(f"{path} is not listed in {CHECKSUM_FILE}")
    require_checksum(path, listed[path.name])
