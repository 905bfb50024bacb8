"""Files that driftkit writes and reads back: JSON and safetensors, and the digests that vouch for them.

Who vouches for what: a record (a JSON document) names the sha256 of the files it stands for and is written after them;
the record itself ends with its `seal`, the sha256 of all else in it. So a process may be killed between any two writes:
what was written last is at most not vouched for yet, never contradicted.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from driftkit.errors import ArtifactError, NotFoundError, StorageError
from driftkit.storage.atomic import atomic_folder, atomic_path
from driftkit.storage.json_text import from_json

__all__ = [
    "SEAL",
    "atomic_folder",
    "atomic_path",
    "digest_json",
    "file_record",
    "read_json",
    "read_sealed",
    "read_tensors",
    "require_recorded",
    "require_written",
    "sha256",
    "sha256_file",
    "state_digest",
    "tensor_bytes",
    "write_bytes",
    "write_json",
    "write_tensors",
]

SEAL = "seal"

MAX_JSON_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 32 * 2**20


def write_json(path: Path, document: Mapping[str, Any]) -> str:
    """Write one JSON document and its seal, which is given back; NaN is refused, since no other reader accepts it."""
    plain = json.loads(json.dumps(document, allow_nan=False))  # as a reader will see it: tuples are lists
    plain.pop(SEAL, None)
    seal = digest_json(plain)
    text = json.dumps({**plain, SEAL: seal}, indent=2, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # what is no UTF-8 in paths becomes JSON's \\udcXX
    return seal


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path, num_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object, without its seal, with which it is compared. Documents without one are taken as they are.

    Raises:
        ArtifactError: the file is absent, is no JSON, holds something other than an object, or was changed since it
            was sealed.
    """
    document, seal = read_sealed(path)
    if seal is not None and not seal_fits(seal, document):
        raise ArtifactError(
            f"{path} is not as driftkit wrote it: its content does not fit its seal; restore it from a copy, or, "
            f'if the change is yours, remove the line "{SEAL}" from it'
        )
    return document


def read_sealed(path: Path) -> tuple[dict[str, Any], str | None]:
    """One JSON object and its seal, None where it has none; whether they fit is not asked.

    Raises:
        ArtifactError: the file is absent, is no plain file, larger than 256 MiB, no JSON, or holds something other than
            an object.
    """
    _require_plain(path)
    try:
        if (size := Path(path).stat().st_size) > MAX_JSON_BYTES:
            raise ArtifactError(f"{path}: {size:,} bytes of JSON, expected at most {MAX_JSON_BYTES:,}")
        document = from_json(Path(path).read_text(encoding="utf-8"))
    except ArtifactError:
        raise
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(document).__name__}")
    seal = document.pop(SEAL, None)
    return document, None if seal is None else str(seal)


def seal_fits(seal: str, document: Mapping[str, Any]) -> bool:
    """Whether a document is the one that was sealed."""
    try:
        return digest_json(document) == seal
    except ValueError:  # NaN or infinity, which driftkit writes nowhere
        return False


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, header: Mapping[str, Any] | None = None) -> None:
    """Write tensors as safetensors; `header` values other than strings are stored as JSON text."""
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (header or {}).items()}
    contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_path(path, num_bytes=tensor_bytes(contiguous)) as temporary:
        # Without tensors, safetensors 0.8.0 writes an empty mapping of metadata as what it cannot read back.
        save_file(contiguous, temporary, metadata=metadata or None)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors (memory-mapped) and the header of a safetensors file.

    Raises:
        ArtifactError: the file is absent, truncated, no safetensors file, or has a header of more than 32 MiB.
    """
    _require_plain(path)
    try:
        with open(path, "rb") as head:
            header = int.from_bytes(head.read(8), "little")
        # The format allows 100 MB, which take a gigabyte once parsed; a header of 100,000 tensors has 10 MB.
        if header > MAX_HEADER_BYTES:
            raise ArtifactError(f"{path}: a header of {header:,} bytes, expected at most {MAX_HEADER_BYTES:,}")
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except ArtifactError:
        raise
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}") from None


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes that tensors take, in memory and in a file."""
    return sum(tensor.nbytes for tensor in tensors.values())


def file_record(path: Path) -> dict[str, Any]:
    """What a record says of a file: `sha256` and `bytes`."""
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def require_recorded(path: Path, record: Mapping[str, Any]) -> None:
    """Read a file and compare it with what a record says of it.

    Raises:
        ArtifactError: it is absent, cut off, or holds something else.
    """
    try:
        there, expected = path.stat().st_size, record.get("bytes")
        if expected is not None and there != expected:
            state = "cut off" if there < expected else "changed"
            raise ArtifactError(f"{path} is {state}: it has {there:,} bytes and was written with {expected:,}")
        got = sha256_file(path)
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except OSError as error:
        raise ArtifactError(f"{path} is not readable: {error.strerror}") from None
    if got != record.get("sha256"):
        raise ArtifactError(
            f"{path} is damaged, or another file: its sha256 is {got[:12]}, expected {str(record.get('sha256'))[:12]}"
        )


def require_written(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Read back a file of tensors that was just written, from the disk where the system allows; gives its record.

    Raises:
        StorageError: it does not hold what was written.
    """
    _forget_cached(path)
    back, _ = read_tensors(path)
    same = back.keys() == tensors.keys() and all(
        torch.equal(_bytes_of(back[name]), _bytes_of(tensor)) for name, tensor in tensors.items()
    )
    if not same:
        raise StorageError(
            f"{path} does not read back as it was written: the disk or the memory fails; what was there before is kept"
        )
    return file_record(path)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)  # NaN equals NaN, and 0 is not -0


def _forget_cached(path: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only what the disk has can be forgotten
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sha256(content: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(content).hexdigest()


def _require_plain(path: Path) -> None:
    """Refuse pipes and devices, which would be waited for without end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # what is absent or unreadable is said by who opens it
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ArtifactError(f"{path} is no plain file; remove it")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 over names, shapes and bytes of the tensors, in order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_json(document: Any) -> str:
    """Hex sha256 of a document's canonical JSON: equal documents have equal digests."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
