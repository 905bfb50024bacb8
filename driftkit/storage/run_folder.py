"""A run folder: manifest, metrics, checkpoints, samples and evaluations of one training run.

RUN/manifest.json                         resolved config and origins, inputs, versions, state, step, seconds
RUN/metrics.jsonl                         one record per logged step
RUN/checkpoints/step-00002000/            ema.safetensors, raw.safetensors, optimizer.safetensors, state.json,
                                          SHA256SUMS; ema-0.9995.safetensors of a second ema_decay
RUN/samples/                              step-*.png from fixed noise while it trains, and what `sample` wrote
RUN/evaluations/*.json                    what `fid` wrote
"""

import json
import os
import platform
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from driftkit import __version__
from driftkit.config.weights_name import EMA, RAW, average_name, averaged_checkpoints
from driftkit.errors import ArtifactError, NotFoundError, StorageError
from driftkit.storage.atomic import (
    atomic_folder,
    is_temporary,
    remove_all_temporaries,
    remove_folder,
    require_free,
    storage_errors,
)
from driftkit.storage.checksums import read_checksums, require_listed, write_checksums
from driftkit.storage.files import read_tensors, tensor_bytes, write_bytes, write_tensors
from driftkit.storage.json_text import from_json
from driftkit.storage.records import CheckpointState, RunManifest

MANIFEST = "manifest.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One saved step of a run. What is read of it is compared with its checksum file.

    All that reads raises an ArtifactError where a file is absent or damaged, or is of another run or step.
    """

    path: Path
    step: int
    run_id: str | None = None  # None where the run has no readable manifest

    @property
    def state_path(self) -> Path:
        return self.path / "state.json"

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Network weights under their plain names, on the CPU."""
        return self._tensors(self.weights_path(name).name)

    def weights_path(self, name: str) -> Path:
        """The file of the weights of that name."""
        return self.path / f"{name}.safetensors"

    def weights_names(self) -> list[str]:
        """Names of the weights that it holds."""
        listed = sorted(file.removesuffix(".safetensors") for file in read_checksums(self.path))
        return [name for name in listed if name == RAW or name.startswith(EMA)]

    def optimizer(self) -> dict[str, torch.Tensor]:
        """Optimizer state as `training.optimizer` flattened it."""
        return self._tensors("optimizer.safetensors")

    def state(self) -> CheckpointState:
        require_listed(self.state_path)
        state = CheckpointState.read(self.state_path)
        if state.step != self.step:
            raise ArtifactError(f"{self.path} holds the checkpoint of step {state.step}; remove or rename it")
        if self.run_id is not None and state.run != self.run_id:
            raise ArtifactError(f"{self.path} is the checkpoint of another run; remove it")
        return state

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        self.state()
        require_listed(self.path / name)
        return read_tensors(self.path / name)[0]


def checkpoints_in(run: Path, run_id: str | None) -> list[Checkpoint]:
    """The saved steps in a run folder, oldest first. Folders still being written have other names."""
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        return []
    matches = [(_STEP.fullmatch(p.name), p) for p in folder.iterdir()]
    return sorted((Checkpoint(p, int(m[1]), run_id) for m, p in matches if m), key=lambda c: c.step)


class Run:
    """A run folder, new or existing. Checkpoints may be written on one thread while another adds metrics and grids."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._manifest_lock = threading.Lock()  # from reading the manifest to writing it

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run.

        Raises:
            NotFoundError: the folder is absent.
            ArtifactError: it is no driftkit run, or its manifest is damaged or of another version.
        """
        run = cls(path)
        if not run.path.is_dir():
            if run.path.exists():
                raise ArtifactError(f"{path}: expected a run folder, got a file")
            fix = "nothing fits the pattern" if "*" in str(path) else f"`driftkit train --output {path}` makes one"
            raise NotFoundError(f"{path}: no such run folder; {fix}")
        if not run.manifest_path.is_file():
            raise ArtifactError(f"{path}: no driftkit run, it has no manifest.json")
        run.manifest()
        return run

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def manifest_path(self) -> Path:
        return self.path / MANIFEST

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS_FILE

    def manifest(self) -> RunManifest:
        """The manifest as it is on disk now."""
        return RunManifest.read(self.manifest_path)

    @property
    def objective(self) -> str:
        """The name of the objective the run was trained with; ArtifactError where its config has none."""
        return str(self._config_value("objective", "name", str))

    @property
    def image_size(self) -> int:
        """Side in pixels of the training images, at least 1; ArtifactError where its config has none."""
        size = int(self._config_value("data", "image_size", int))
        if size < 1:
            raise ArtifactError(f"{self.manifest_path}: config key data.image_size is {size}, expected at least 1")
        return size

    @property
    def resized_to(self) -> int | None:
        """Side in pixels to which the training images were resized; None where they were taken as they are."""
        asked = self.manifest().origins.get("data.image_size", "default") != "default"
        return self.image_size if asked else None

    def config_section(self, name: str) -> dict[str, Any]:
        """A section of the config, not validated yet; ArtifactError where it has none."""
        section = self.manifest().config.get(name)
        if not isinstance(section, dict):
            raise ArtifactError(f"{self.manifest_path}: its config has no section {name}; it was edited or damaged")
        return section

    def _config_value(self, section: str, key: str, kind: type) -> Any:
        value = self.config_section(section).get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ArtifactError(
                f"{self.manifest_path}: config key {section}.{key} is {value!r:.80}, expected {kind.__name__}; "
                "it was edited or damaged"
            )
        return value

    def create(
        self, *, config: Mapping[str, Any], origins: Mapping[str, str], inputs: Mapping[str, Any], **more: Any
    ) -> None:
        """Write the first manifest, from fields of `RunManifest`."""
        own = {"id": secrets.token_hex(8), "versions": versions(), "created": now()}
        given = {"config": dict(config), "origins": dict(origins), "inputs": dict(inputs)}
        _manifest_of({**own, **given, **more}).write(self.manifest_path)

    def update(self, **fields: Any) -> None:
        """Replace fields of the manifest."""
        with self._manifest_lock:
            _manifest_of({**dict(self.manifest()), **fields, "updated": now()}).write(self.manifest_path)

    def checkpoints(self) -> list[Checkpoint]:
        """All saved steps, oldest first."""
        return checkpoints_in(self.path, self.manifest().id if self.manifest_path.is_file() else None)

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of `step`, or the last one; a NotFoundError where it is absent."""
        saved = self.checkpoints()
        if not saved:
            raise NotFoundError(
                f"{self.path} holds no checkpoint yet; its training saves one every checkpoint_every steps"
            )
        for checkpoint in reversed(saved):
            if step in (None, checkpoint.step):
                return checkpoint
        known = ", ".join(str(c.step) for c in saved)
        raise NotFoundError(f"{self.path} has no checkpoint of step {step}; it has {known}")

    def kept_name(self, name: str) -> str:
        """The name under which the run keeps weights: `ema` for ema-DECAY of its first average, else the same."""
        return EMA if name == self._first_average() else name

    def _first_average(self) -> str | None:
        trainer = self.manifest().config.get("trainer") if self.manifest_path.is_file() else None
        decays = trainer.get("ema_decay") if isinstance(trainer, dict) else None
        first = next(iter(decays), None) if isinstance(decays, list) else decays
        return average_name(float(first)) if isinstance(first, int | float) else None

    def weights_paths(self, name: str, step: int | None = None) -> list[Path]:
        """The files that weights come from: one, or for `average:N` the raw weights of N checkpoints.

        Raises NotFoundError where the run has no such weights, or fewer checkpoints up to `step`.
        """
        checkpoint = self.checkpoint(step)
        return [each.weights_path(part) for each, part in self._parts(name, checkpoint)]

    def weights(self, name: str, step: int | None = None) -> tuple[dict[str, torch.Tensor], Checkpoint]:
        """Weights of the network on the CPU, and the checkpoint of `step`, or of the last step, that they belong to.

        `average:N` is the mean of the raw weights of that checkpoint and the N - 1 kept ones before it, taken in
        float64. Raises NotFoundError where the run has no such weights.
        """
        checkpoint = self.checkpoint(step)
        parts = self._parts(name, checkpoint)
        if len(parts) == 1:
            return parts[0][0].weights(parts[0][1]), checkpoint
        last = checkpoint.weights(RAW)
        sums = {key: tensor.double() for key, tensor in last.items()}
        for each, part in parts[:-1]:
            for key, tensor in each.weights(part).items():
                sums[key] += tensor
        return {key: (sums[key] / len(parts)).to(tensor.dtype) for key, tensor in last.items()}, checkpoint

    def _parts(self, name: str, checkpoint: Checkpoint) -> list[tuple[Checkpoint, str]]:
        count, name = averaged_checkpoints(name), self.kept_name(name)
        if count is None:
            if name.startswith(f"{EMA}-") and name not in (names := checkpoint.weights_names()):
                first = self._first_average()
                also = f" ({EMA} is {first})" if first else ""
                raise NotFoundError(f"{checkpoint.path} has no weights {name}; it has {', '.join(names)}{also}")
            return [(checkpoint, name)]
        kept = [each for each in self.checkpoints() if each.step <= checkpoint.step]
        if len(kept) < count:
            raise NotFoundError(
                f"{self.path}: weights {name} need {count} checkpoints up to step {checkpoint.step}, it has "
                f"{len(kept)}; `trainer.keep_every` keeps more of them in training"
            )
        return [(each, RAW) for each in kept[-count:]]

    def save_checkpoint(
        self,
        step: int,
        *,
        weights: Mapping[str, Mapping[str, torch.Tensor]],
        optimizer: Mapping[str, torch.Tensor] | None,
        state: Mapping[str, Any],
        headers: Mapping[str, Mapping[str, Any]],
    ) -> Checkpoint:
        """Write one checkpoint folder whole or not at all.

        Args:
            weights: name (raw, ema, ...) -> those of the network; `headers` (config, step, EMA setting) go into their
                files.
            optimizer: flattened; None: none, as in exports, which do not resume.
            state: fields of `CheckpointState`.
        """
        path = self.path / CHECKPOINTS / f"step-{step:08d}"
        tensors = {**weights, **({} if optimizer is None else {"optimizer": optimizer})}
        headers = {name: {**headers.get(name, {}), "weights": name} for name in weights}
        num_bytes = sum(map(tensor_bytes, tensors.values()))
        run_id = self.manifest().id if self.manifest_path.is_file() else None
        try:
            require_free(path, num_bytes, f"the checkpoint of step {step}")
            with atomic_folder(path, num_bytes=num_bytes) as folder:
                for name, held in tensors.items():
                    write_tensors(folder / f"{name}.safetensors", held, header=headers.get(name))
                CheckpointState(**{**state, "run": run_id}).write(folder / "state.json")
                write_checksums(folder)
        except StorageError as error:
            last = max((c.step for c in self.checkpoints()), default=None)
            kept = "there is no earlier checkpoint" if last is None else f"the checkpoint of step {last} is kept"
            raise StorageError(f"{error}; {kept}") from error
        return Checkpoint(path, step, run_id)

    def prune_checkpoints(self, *, keep_every: int) -> None:
        """Remove all but the last checkpoint and, if `keep_every` > 0, those whose step it divides."""
        for checkpoint in self.checkpoints()[:-1]:
            if keep_every <= 0 or checkpoint.step % keep_every != 0:
                remove_folder(checkpoint.path)

    def remove_partial_checkpoints(self) -> None:
        """Remove what killed processes left half-written; for the one process that writes the run."""
        remove_all_temporaries(self.path)
        remove_all_temporaries(self.path / CHECKPOINTS)
        remove_all_temporaries(self.path / "samples", "step-*")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl, whole or, with a StorageError, not at all."""
        line = memoryview((json.dumps(record, allow_nan=False) + "\n").encode())
        with storage_errors(self.metrics_path, len(line)), open(self.metrics_path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(size)  # needs no room
                raise

    def metrics(self) -> list[dict[str, Any]]:
        """All metric records in order; a last line cut off by a kill is skipped, any other is an ArtifactError."""
        if not self.metrics_path.is_file():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8", errors="replace").split("\n")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            if (record := metric_record(line)) is not None:
                records.append(record)
            elif number != len(lines):
                raise ArtifactError(f"{self.metrics_path} line {number} is no metric record")
        return records

    def rewind_metrics(self, step: int) -> None:
        """Drop the records after `step`, which a resumed training writes again."""
        kept = [r for r in self.metrics() if not isinstance(at := r.get("step"), int | float) or at <= step]
        content = "".join(json.dumps(r) + "\n" for r in kept).encode()
        if not self.metrics_path.is_file() or self.metrics_path.read_bytes() != content:
            write_bytes(self.metrics_path, content)

    def evaluation_paths(self) -> list[Path]:
        """The files of its evaluations, by name; those still being written are skipped."""
        return [p for p in sorted((self.path / "evaluations").glob("*.json")) if not is_temporary(p)]


def _manifest_of(fields: Mapping[str, Any]) -> RunManifest:
    unknown = fields.keys() - RunManifest.model_fields.keys()
    assert not unknown, f"no fields of a manifest: {sorted(unknown)}"
    return RunManifest.model_validate(fields)


def metric_record(line: str | bytes) -> dict[str, Any] | None:
    """What a line of metrics.jsonl holds; None where it is no JSON object."""
    try:
        record = from_json(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def now() -> str:
    """UTC time, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "safetensors", "numpy")
    return {"driftkit": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
