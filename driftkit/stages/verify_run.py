"""Checking a run: its manifest, and everything that training wrote; samples and scores stand for themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from driftkit.errors import ArtifactError
from driftkit.stages import verify_files
from driftkit.stages.findings import Findings
from driftkit.storage.files import read_sealed, read_tensors, require_recorded, sha256, sha256_file
from driftkit.storage.json_text import from_json
from driftkit.storage.lock import holder_of
from driftkit.storage.run_folder import METRICS_FILE, Checkpoint, Run

TENSOR_FILES = ("ema.safetensors", "optimizer.safetensors", "raw.safetensors")
FROM_COPY = "restore it from a copy"
ATTEMPTS = 3


def verify_run(folder: Path) -> Findings:
    """What training wrote into a run folder. A run that is trained meanwhile is looked at again where it changed."""
    for attempt in range(ATTEMPTS):
        found = Findings()
        before = _manifest_bytes(folder)
        _verify(folder, found)
        if found.ok or attempt + 1 == ATTEMPTS or _manifest_bytes(folder) == before:
            break
    if holder := holder_of(folder):
        found.note(folder, "in use", f"being written by {holder}")
    return found


def verify_checkpoint(folder: Path) -> Findings:
    """One checkpoint of a run."""
    found, run = Findings(), Run(folder.resolve().parent.parent)
    try:
        manifest, saved = run.manifest(), run.checkpoints()
    except ArtifactError as error:
        found.refused(run.manifest_path, error, FROM_COPY)
        return found
    for checkpoint in saved:
        if checkpoint.path.name == folder.resolve().name:
            entry = manifest.get("products", {}).get(f"checkpoints/{checkpoint.path.name}")
            named = replace(checkpoint, path=folder)
            _checkpoint(named, manifest.get("id"), entry, _owners(saved), found)
    return found


def handled(folder: Path, path: Path) -> bool:
    """Whether `verify_run` has looked at a path of the run."""
    name = path.relative_to(folder).as_posix()
    grid = name.startswith("samples/step-") and name.endswith(".png")
    return name in ("manifest.json", METRICS_FILE, "checkpoints") or grid


def _manifest_bytes(folder: Path) -> bytes:
    try:
        return (folder / "manifest.json").read_bytes()
    except OSError:  # told by whoever reads it next
        return b""


def _verify(folder: Path, found: Findings) -> None:
    manifest = verify_files.record(folder / "manifest.json", found, FROM_COPY)
    products = (manifest or {}).get("products")
    listed: dict[str, Any] = products if isinstance(products, dict) else {}
    _checkpoints(folder, None if manifest is None else manifest.get("id"), listed, found)
    _grids(folder, listed, found)
    _metrics(folder, listed.get(METRICS_FILE), found)


def _checkpoints(folder: Path, run_id: str | None, listed: dict[str, Any], found: Findings) -> None:
    saved = Run(folder).checkpoints_of(run_id)
    on_disk = {f"checkpoints/{c.path.name}" for c in saved}
    for name in sorted(listed):
        if name.startswith("checkpoints/") and name not in on_disk:
            fix = "restore it from a copy; the same train command goes on from the last that is there"
            found.problem(folder / name, "missing", "the checkpoint is not there", fix)
    owners = _owners(saved)
    for checkpoint in saved:
        entry = listed.get(f"checkpoints/{checkpoint.path.name}")
        _checkpoint(checkpoint, run_id, entry, owners, found)


def _checkpoint(
    checkpoint: Checkpoint, run_id: str | None, entry: Any, owners: dict[str, str], found: Findings
) -> None:
    fix = f"{FROM_COPY}, or remove the folder: training goes on from the one before, or from the start"
    path = checkpoint.path
    state = verify_files.record(checkpoint.state_path, found, fix)
    if state is None:
        return
    files = state.get("files")
    if state.get("step") != checkpoint.step:
        found.problem(path, "swapped", f"holds the checkpoint of step {state.get('step')}", fix)
        return
    if run_id is not None and state.get("run") not in (None, run_id):
        found.problem(path, "swapped", "is the checkpoint of another run", fix)
        return
    if not isinstance(files, dict):
        found.note(path, "not vouched for", "written without digests of its files")
        _unrecorded(checkpoint, found, fix)
        return
    if isinstance(entry, dict) and entry.get("sha256") != _seal(checkpoint):
        found.problem(path, "swapped", "is not the checkpoint that the manifest lists", fix)
        return
    if sum(_tensor_file(path / name, files.get(name), owners, found, fix) for name in TENSOR_FILES) == len(
        TENSOR_FILES
    ):
        found.good("checkpoint")
    for other in sorted(p.name for p in path.iterdir() if p.name not in (*TENSOR_FILES, "state.json")):
        found.note(path / other, "unknown", "no file of a checkpoint")


def _tensor_file(path: Path, entry: Any, owners: dict[str, str], found: Findings, fix: str) -> bool:
    try:
        require_recorded(path, entry if isinstance(entry, dict) else {})
    except ArtifactError as error:
        other = owners.get(sha256_file(path)) if path.is_file() else None
        if other is not None:
            found.problem(path, "swapped", f"holds what was written as {other}", fix)
        else:
            found.refused(path, error, fix)
        return False
    found.num_bytes += path.stat().st_size
    return True


def _unrecorded(checkpoint: Checkpoint, found: Findings, fix: str) -> None:
    """Of an old checkpoint no more can be told than that its files are whole and in their places."""
    for name in TENSOR_FILES:
        path = checkpoint.path / name
        try:
            header = read_tensors(path)[1]
        except ArtifactError as error:
            found.refused(path, error, fix)
            continue
        if "weights" in header and f"{header['weights']}.safetensors" != name:
            found.problem(path, "swapped", f"holds the {header['weights']} weights", fix)
        elif "step" in header and header["step"] != str(checkpoint.step):
            found.problem(path, "swapped", f"holds the weights of step {header['step']}", fix)


def _owners(saved: list[Checkpoint]) -> dict[str, str]:
    """sha256 -> the file that was written with it."""
    owners = {}
    for checkpoint in saved:
        try:
            files = checkpoint.state().get("files")
        except ArtifactError:  # told with its checkpoint
            continue
        for name, entry in files.items() if isinstance(files, dict) else ():
            if isinstance(entry, dict):
                owners[str(entry.get("sha256"))] = f"{checkpoint.path.name}/{name}"
    return owners


def _seal(checkpoint: Checkpoint) -> str | None:
    return read_sealed(checkpoint.state_path)[1]


def _grids(folder: Path, listed: dict[str, Any], found: Findings) -> None:
    fix = "remove it: nothing but the report shows it"
    for name, entry in sorted(listed.items()):
        if name.startswith("samples/"):
            verify_files.recorded(folder / name, entry, found, "picture", fix)
    for path in sorted((folder / "samples").glob("step-*.png")):
        if path.relative_to(folder).as_posix() not in listed:
            verify_files.picture(path, found)


def _metrics(folder: Path, entry: Any, found: Findings) -> None:
    path, fix = folder / METRICS_FILE, f"{FROM_COPY}, or remove it: training goes on without the records of before"
    if not path.is_file():
        if isinstance(entry, dict):
            found.problem(path, "missing", "is not there", fix)
        return
    content = path.read_bytes()
    if isinstance(entry, dict):
        known = content[: int(entry.get("bytes", 0))]
        if len(known) < int(entry.get("bytes", 0)):
            found.problem(path, "damaged", f"is cut off: {len(content):,} of at least {entry['bytes']:,} bytes", fix)
            return
        if sha256(known) != entry.get("sha256"):
            found.problem(path, "damaged", f"its first {len(known):,} bytes are not those that were written", fix)
            return
    *lines, last = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not _is_record(line):
            found.problem(path, "damaged", f"line {number} is no metric record", fix)
            return
    if last:
        found.note(path, "unfinished", "ends in half a line, which readers leave out and training writes again")
    if isinstance(entry, dict):
        found.good("metrics", len(content))


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(from_json(line), dict)
    except ValueError:
        return False
