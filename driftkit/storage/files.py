"""JSON and safetensors files: written whole or not at all, read without trusting them."""

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

from driftkit.errors import ArtifactError, NotFoundError
from driftkit.storage.atomic import atomic_folder as atomic_folder
from driftkit.storage.atomic import atomic_path as atomic_path
from driftkit.storage.json_text import from_json, to_json

MAX_JSON_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 32 * 2**20


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON document; NaN is refused, since no other reader accepts it."""
    write_bytes(path, f"{to_json(document)}\n".encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path, num_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        NotFoundError: there is no such file.
        ArtifactError: no plain file, larger than 256 MiB, no JSON, or something other than an object.
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
    return document


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, header: Mapping[str, Any] | None = None) -> None:
    """Write tensors as safetensors; `header` values other than strings are stored as JSON text."""
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (header or {}).items()}
    contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_path(path, num_bytes=tensor_bytes(contiguous)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # that the umask gives; safetensors 0.8.0 leaves the owner alone permitted
        # Without tensors, safetensors 0.8.0 writes an empty mapping of metadata as what it cannot read back.
        save_file(contiguous, temporary, metadata=metadata or None)
        temporary.chmod(mode)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors (memory-mapped) and the header of a safetensors file.

    Raises:
        NotFoundError: there is no such file.
        ArtifactError: truncated, no safetensors file, or a header of more than 32 MiB.
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


def _require_plain(path: Path) -> None:
    """Refuse pipes and devices, which would be waited for without end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens the file reports what is absent or unreadable
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ArtifactError(f"{path} is no plain file; remove it")


def sha256(content: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
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
