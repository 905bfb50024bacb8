"""What a sandbox holds once all is done, such that equal work gives equal documents: all but times and chance."""

import hashlib
import json
from pathlib import Path
from typing import Any

from driftkit.storage.atomic import is_temporary
from driftkit.storage.checksums import CHECKSUM_FILE, read_checksums
from driftkit.storage.files import read_tensors, state_digest
from driftkit.storage.lock import is_lock

# Times; and what holds a time, or a number drawn once per run, or the digest of a file that does.
VARYING = {
    "created", "updated", "written", "since", "seconds", "train_seconds", "seconds_by_part", "seconds_per_step",
    "images_per_second", "images_per_second_of_steps", "peak_memory_gib", "id", "run_id", "run", "age",
    "sha256", "bytes", "fingerprint", "identity", "result", "products",
}  # fmt: skip
TEXTS_WITH_TIMES = {".html", ".svg", ".csv"}


def outcome(sandbox: Path) -> dict[str, Any]:
    """Relative path -> what the file holds: JSON without times, else a digest of its bytes."""
    files = sorted(p for p in sandbox.rglob("*") if (p.is_file() or p.is_symlink()) and not _is_leftover(p, sandbox))
    return {p.relative_to(sandbox).as_posix(): _content(p) for p in files}


def _is_leftover(path: Path, sandbox: Path) -> bool:
    """Half-written by a process that was killed, or a lock; nothing takes these for products."""
    parts = path.relative_to(sandbox).parts
    return any(is_temporary(Path(part)) for part in parts) or is_lock(path)


def differing(got: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What differs, in words; empty where nothing does."""
    lines = [f"{name} is missing" for name in expected.keys() - got.keys()]
    lines += [f"{name} should not be there" for name in got.keys() - expected.keys()]
    for name in sorted(got.keys() & expected.keys()):
        lines += _differing(got[name], expected[name], name)
    return sorted(lines)


def _differing(got: Any, expected: Any, where: str) -> list[str]:
    if isinstance(got, dict) and isinstance(expected, dict):
        keys = sorted(got.keys() | expected.keys())
        return [line for k in keys for line in _differing(got.get(k), expected.get(k), f"{where}: {k}")]
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        pairs = enumerate(zip(got, expected, strict=True))
        return [line for i, (a, b) in pairs for line in _differing(a, b, f"{where}: {i}")]
    return [] if got == expected else [f"{where} is {str(got)[:60]}, undisturbed {str(expected)[:60]}"]


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".safetensors":  # whose header lists its keys in any order
        tensors, header = read_tensors(path)
        texts = {k: _timeless(json.loads(v)) if v[:1] in "{[" else v for k, v in header.items() if k not in VARYING}
        return {"tensors": state_digest(tensors), "header": texts}
    if path.name == CHECKSUM_FILE:  # of files that hold times; `verify` compares them
        return sorted(read_checksums(path.parent))
    if path.suffix in TEXTS_WITH_TIMES:
        return "a text with times"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(document: Any) -> Any:
    if isinstance(document, dict):
        return {k: _timeless(v) for k, v in document.items() if k not in VARYING}
    if isinstance(document, list):
        return [_timeless(v) for v in document]
    return document
