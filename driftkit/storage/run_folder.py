"""A run folder: manifest, metrics, checkpoints, samples and evaluations of one training run.

RUN/manifest.json                         resolved config and origins, inputs, versions, state, step, seconds, products
RUN/metrics.jsonl                         one record per logged step
RUN/checkpoints/step-00002000/            ema.safetensors, raw.safetensors, optimizer.safetensors, state.json
RUN/samples/                              step-*.png from fixed noise while it trains, and what `sample` wrote
RUN/evaluations/*.json                    what `fid` wrote

`state.json` vouches for the checkpoint's other files, by sha256, and says of which run and step it is. The `products`
of the manifest vouch for what training wrote: checkpoints by the seal of their state, grids, the metrics so far.
Samples and evaluations, which other processes write, come with sealed records of their own.
"""

import hashlib
import json
import platform
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from driftkit import __version__
from driftkit.errors import ArtifactError, NotFoundError, StorageError
from driftkit.storage.atomic import (
    atomic_folder,
    flush,
    is_temporary,
    remove_all_temporaries,
    remove_folder,
    require_free,
    storage_errors,
)
from driftkit.storage.files import (
    file_record,
    read_json,
    read_sealed,
    read_tensors,
    require_recorded,
    require_written,
    tensor_bytes,
    write_bytes,
    write_json,
    write_tensors,
)
from driftkit.storage.json_text import from_json

FORMAT = 1
METRICS_FILE = "metrics.jsonl"
Weights = Literal["ema", "raw"]
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One saved step of a run.

    Attributes:
        run: id of the run it is to be of; None where that is not known, as in old runs.
    """

    path: Path
    step: int
    run: str | None = None

    def weights(self, which: Weights) -> dict[str, torch.Tensor]:
        """Network weights under their plain names, on the CPU.

        Raises:
            ArtifactError: the file is absent, damaged, or not the one this checkpoint was written with.
        """
        return self._tensors(f"{which}.safetensors")

    def optimizer(self) -> dict[str, torch.Tensor]:
        """Optimizer state as `training.optim` flattened it; raises as `weights`."""
        return self._tensors("optimizer.safetensors")

    def state(self) -> dict[str, Any]:
        """Step, images seen, training seconds, and what the checkpoint's files hold."""
        return read_json(self.state_path)

    @property
    def state_path(self) -> Path:
        return self.path / "state.json"

    def files(self) -> dict[str, dict[str, Any]]:
        """What the checkpoint's other files were written with; empty in checkpoints older than such records.

        Raises:
            ArtifactError: the state is unreadable, or of a checkpoint of another step.
        """
        state = self.state()
        files = state.get("files")
        if not isinstance(files, dict):
            return {}
        if state.get("step") != self.step:
            raise ArtifactError(f"{self.path} holds the checkpoint of step {state.get('step')}; remove or rename it")
        if self.run is not None and state.get("run") not in (None, self.run):
            raise ArtifactError(f"{self.path} is the checkpoint of another run; remove it")
        return files

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        files = self.files()
        if files and name not in files:
            raise ArtifactError(f"{self.path / name} is not listed in {self.state_path.name}; remove the checkpoint")
        if files:
            require_recorded(self.path / name, files[name])
        return read_tensors(self.path / name)[0]


class Run:
    """A run folder, new or existing. Checkpoints may be written on one thread while another adds metrics and grids.

    Args:
        path: the folder; `Run.open` checks that it is one.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._written: dict[str, Any] = {}  # products that the manifest does not list yet
        self._metrics: tuple[int, Any] | None = None  # bytes of the metrics that this process knows, and their sha256
        self._products_lock = threading.RLock()  # of these two
        self._manifest_lock = threading.Lock()  # from reading the manifest to writing it

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run.

        Raises:
            ArtifactError: the folder is absent or is no driftkit run.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise NotFoundError(f"{path}: no such run folder; `driftkit train --output {path}` makes one")
        if not run.manifest_path.is_file():
            raise ArtifactError(f"{path} is no driftkit run: it has no manifest.json")
        manifest = run.manifest()
        parts = (manifest.get("config"), manifest.get("products", {}))
        if manifest.get("kind") != "run" or not all(isinstance(part, dict) for part in parts):
            raise ArtifactError(
                f"{run.manifest_path}: expected the manifest of a run, got kind {manifest.get('kind')!r}"
            )
        if manifest.get("format") != FORMAT:
            raise ArtifactError(
                f"{run.manifest_path} has format {manifest.get('format')!r}, this driftkit {__version__} reads {FORMAT}"
            )
        return run

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS_FILE

    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk now."""
        return read_json(self.manifest_path)

    def create(
        self, *, config: Mapping[str, Any], origins: Mapping[str, str], inputs: Mapping[str, Any], **more: Any
    ) -> None:
        """Write the first manifest.

        Args:
            config: the resolved config as JSON data.
            origins: dotted config key -> where its value came from.
            inputs: what the run reads, each with a digest.
            more: further top-level fields.
        """
        write_json(
            self.manifest_path,
            {
                "format": FORMAT,
                "kind": "run",
                "id": secrets.token_hex(8),
                "config": dict(config),
                "origins": dict(origins),
                "inputs": dict(inputs),
                "versions": versions(),
                "created": now(),
                "state": "created",
                "step": 0,
                "products": {},
                **more,
            },
        )

    def update(self, **fields: Any) -> None:
        """Replace top-level fields of the manifest, and list what was written since the last time."""
        self._update(fields, forget=set())

    def _update(self, fields: Mapping[str, Any], *, forget: set[str]) -> None:
        with self._manifest_lock:
            manifest = self.manifest()
            with self._products_lock:
                written = dict(self._written)
            products = {**manifest.get("products", {}), **written}
            if self.metrics_path.is_file():
                products[METRICS_FILE] = self._metrics_record()
            kept = {name: record for name, record in products.items() if name not in forget}
            write_json(self.manifest_path, {**manifest, **fields, "products": kept, "updated": now()})
        with self._products_lock:  # the other thread may have written more in the meantime
            self._written = {n: r for n, r in self._written.items() if written.get(n) != r}

    def wrote(self, path: Path) -> None:
        """Have the next `update` list a file of the run with its digest."""
        self._list(path, file_record(path))

    def _list(self, path: Path, record: Mapping[str, Any]) -> None:
        with self._products_lock:
            self._written[path.relative_to(self.path).as_posix()] = dict(record)

    def checkpoints(self) -> list[Checkpoint]:
        """All saved steps, oldest first. Folders still being written have other names."""
        return self.checkpoints_of(self.manifest().get("id") if self.manifest_path.is_file() else None)

    def checkpoints_of(self, run: str | None) -> list[Checkpoint]:
        """The same, where the id that they are to bear is known already or cannot be."""
        folder = self.path / "checkpoints"
        if not folder.is_dir():
            return []
        found = [(_STEP.fullmatch(p.name), p) for p in folder.iterdir()]
        return sorted((Checkpoint(p, int(m[1]), run) for m, p in found if m), key=lambda c: c.step)

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of `step`, or the last one.

        Raises:
            ArtifactError: there is none, or none of that step.
        """
        saved = self.checkpoints()
        if not saved:
            raise NotFoundError(
                f"{self.path} holds no checkpoint yet; its training saves one every checkpoint_every steps"
            )
        if step is None:
            return saved[-1]
        for checkpoint in saved:
            if checkpoint.step == step:
                return checkpoint
        raise NotFoundError(
            f"{self.path} has no checkpoint of step {step}; it has {', '.join(str(c.step) for c in saved)}"
        )

    def save_checkpoint(
        self,
        step: int,
        *,
        raw: Mapping[str, torch.Tensor],
        ema: Mapping[str, torch.Tensor],
        optimizer: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        header: Mapping[str, Any],
    ) -> Checkpoint:
        """Write one checkpoint folder whole or not at all.

        Args:
            raw, ema: network weights; `header` (config, step, EMA setting) goes into both files.
            optimizer: flattened optimizer state.
            state: what resuming needs beside tensors; all random draws follow from the seed and the step.
        """
        path = self.path / "checkpoints" / f"step-{step:08d}"
        tensors = {"raw": raw, "ema": ema, "optimizer": optimizer}
        headers = {which: {**header, "weights": which} for which in ("raw", "ema")}
        num_bytes = sum(map(tensor_bytes, tensors.values()))
        run = self.manifest().get("id") if self.manifest_path.is_file() else None
        try:
            require_free(path, num_bytes, f"the checkpoint of step {step}")
            with atomic_folder(path, num_bytes=num_bytes) as folder:
                files = {}
                for name, held in tensors.items():
                    file = folder / f"{name}.safetensors"
                    write_tensors(file, held, header=headers.get(name))
                    files[file.name] = require_written(file, held)
                seal = write_json(folder / "state.json", {"format": FORMAT, "run": run, **state, "files": files})
        except StorageError as error:
            last = max((c.step for c in self.checkpoints()), default=None)
            kept = "there is no earlier checkpoint" if last is None else f"the checkpoint of step {last} is kept"
            raise StorageError(f"{error}; {kept}") from error
        self._list(path, {"sha256": seal})
        return Checkpoint(path, step, run)

    def prune_checkpoints(self, *, keep_every: int) -> None:
        """Remove all but the last checkpoint and, if `keep_every` > 0, those whose step it divides.

        The manifest no longer lists them by then, so that a kill in between leaves one too many and none missing.
        """
        old = [c for c in self.checkpoints()[:-1] if keep_every <= 0 or c.step % keep_every != 0]
        if old:
            self._update({}, forget={c.path.relative_to(self.path).as_posix() for c in old})
        for checkpoint in old:
            remove_folder(checkpoint.path)

    def remove_partial_checkpoints(self) -> None:
        """Remove what killed processes left half-written; for the one process that writes the run."""
        for folder in (self.path, self.path / "checkpoints", self.path / "samples"):
            remove_all_temporaries(folder, "*" if folder == self.path else "step-*")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl, whole or not at all.

        Raises:
            StorageError: the disk takes no more; the lines before are as they were.
        """
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with self._products_lock:
            size, digest = self._known_metrics()
            with storage_errors(self.metrics_path, len(line)), open(self.metrics_path, "ab", buffering=0) as file:
                try:
                    rest = memoryview(line)
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError:
                    file.truncate(size)  # needs no room
                    raise
            digest.update(line)
            self._metrics = (size + len(line), digest)

    def _known_metrics(self) -> tuple[int, Any]:
        if self._metrics is None:
            content = self.metrics_path.read_bytes() if self.metrics_path.is_file() else b""
            self._metrics = (len(content), hashlib.sha256(content))
        return self._metrics

    def _metrics_record(self) -> dict[str, Any]:
        """Of the lines so far: those that follow do not make it wrong."""
        with self._products_lock:
            size, digest = self._known_metrics()
            record = {"sha256": digest.hexdigest(), "bytes": size}
        flush(self.metrics_path)
        return record

    def metrics(self) -> list[dict[str, Any]]:
        """All metric records in order; a last line cut off by a kill is left out.

        Raises:
            ArtifactError: a line that is not the last is no JSON object.
        """
        if not self.metrics_path.is_file():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8", errors="replace").split("\n")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                record = from_json(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                records.append(record)
            elif number != len(lines):
                raise ArtifactError(f"{self.metrics_path} line {number} is no metric record")
        return records

    def rewind_metrics(self, step: int) -> None:
        """Drop the records after `step`, which a resumed training writes again, and what the manifest lists of then."""
        manifest = self.manifest()
        self._list_unlisted(manifest, step)
        later = {
            name
            for name in manifest.get("products", {})
            if (_step_of(name) or 0) > step or not (self.path / name).exists()
        }
        kept = [r for r in self.metrics() if not isinstance(at := r.get("step"), int | float) or at <= step]
        content = "".join(json.dumps(r) + "\n" for r in kept).encode()
        if not later and self.metrics_path.is_file() and self.metrics_path.read_bytes() == content:
            return
        listed = {k: v for k, v in manifest.get("products", {}).items() if k not in later | {METRICS_FILE}}
        write_json(self.manifest_path, {**manifest, "products": listed})
        write_bytes(self.metrics_path, content)
        self._metrics = None

    def _list_unlisted(self, manifest: Mapping[str, Any], step: int) -> None:
        """Have the next `update` list checkpoints and grids that a process wrote right before it was killed."""
        listed = manifest.get("products", {})
        for checkpoint in self.checkpoints():
            name = checkpoint.path.relative_to(self.path).as_posix()
            if name not in listed and checkpoint.files():
                self._list(checkpoint.path, {"sha256": read_sealed(checkpoint.state_path)[1]})
        for grid in (self.path / "samples").glob("step-*.png"):
            if grid.relative_to(self.path).as_posix() not in listed and (_step_of(grid.name) or 0) <= step:
                self.wrote(grid)

    def evaluations(self) -> list[dict[str, Any]]:
        """All evaluation documents, by file name."""
        return [read_json(p) for p in self.evaluation_paths()]

    def evaluation_paths(self) -> list[Path]:
        """Their files, by name; those still being written are left out."""
        return [p for p in sorted((self.path / "evaluations").glob("*.json")) if not is_temporary(p)]


def _step_of(product: str) -> int | None:
    found = _STEP.search(product)
    return int(found[1]) if found else None


def now() -> str:
    """UTC time, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "safetensors", "numpy")
    return {"driftkit": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
