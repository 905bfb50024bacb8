"""A run folder: manifest, metrics, checkpoints, samples and evaluations of one training run.

RUN/manifest.json                         resolved config and origins, inputs, versions, state, step, seconds
RUN/metrics.jsonl                         one record per logged step
RUN/checkpoints/step-00002000/            ema.safetensors, raw.safetensors, optimizer.safetensors, state.json
RUN/samples/                              step-*.png from fixed noise while it trains, and what `sample` wrote
RUN/evaluations/*.json                    what `fid` wrote
"""

import json
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from driftkit import __version__
from driftkit.artifacts.files import (
    atomic_folder,
    atomic_path,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from driftkit.errors import MissingError

FORMAT = 1
Weights = Literal["ema", "raw"]
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One saved step of a run."""

    path: Path
    step: int

    def weights(self, which: Weights) -> dict[str, torch.Tensor]:
        """Network weights under their plain names, on the CPU."""
        return read_tensors(self.path / f"{which}.safetensors")[0]

    def optimizer(self) -> dict[str, torch.Tensor]:
        """Optimizer state as `training.optim` flattened it."""
        return read_tensors(self.path / "optimizer.safetensors")[0]

    def state(self) -> dict[str, Any]:
        """Step, images seen and training seconds."""
        return read_json(self.path / "state.json")


class Run:
    """A run folder, new or existing.

    Args:
        path: the folder; `Run.open` checks that it is one.
    """

    def __init__(self, path: Path):
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run.

        Raises:
            MissingError: the folder is absent or is no driftkit run.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise MissingError(f"{path}: no such run folder; `driftkit train --output {path}` makes one")
        if not run.manifest_path.is_file():
            raise MissingError(f"{path} is no driftkit run: it has no manifest.json")
        manifest = run.manifest()
        if manifest.get("kind") != "run" or not isinstance(manifest.get("config"), dict):
            raise MissingError(
                f"{run.manifest_path}: expected the manifest of a run, got kind {manifest.get('kind')!r}"
            )
        if manifest.get("format") != FORMAT:
            raise MissingError(
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
        return self.path / "metrics.jsonl"

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
                "config": dict(config),
                "origins": dict(origins),
                "inputs": dict(inputs),
                "versions": versions(),
                "created": now(),
                "state": "created",
                "step": 0,
                **more,
            },
        )

    def update(self, **fields: Any) -> None:
        """Replace top-level fields of the manifest."""
        write_json(self.manifest_path, {**self.manifest(), **fields, "updated": now()})

    def checkpoints(self) -> list[Checkpoint]:
        """All saved steps, oldest first. Folders still being written have other names."""
        folder = self.path / "checkpoints"
        if not folder.is_dir():
            return []
        found = [(_STEP.fullmatch(p.name), p) for p in folder.iterdir()]
        return sorted((Checkpoint(p, int(m[1])) for m, p in found if m), key=lambda c: c.step)

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of `step`, or the last one.

        Raises:
            MissingError: there is none, or none of that step.
        """
        saved = self.checkpoints()
        if not saved:
            raise MissingError(
                f"{self.path} holds no checkpoint yet; its training saves one every checkpoint_every steps"
            )
        if step is None:
            return saved[-1]
        for checkpoint in saved:
            if checkpoint.step == step:
                return checkpoint
        raise MissingError(
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
        with atomic_folder(path) as folder:
            write_tensors(folder / "raw.safetensors", raw, header={**header, "weights": "raw"})
            write_tensors(folder / "ema.safetensors", ema, header={**header, "weights": "ema"})
            write_tensors(folder / "optimizer.safetensors", optimizer)
            write_json(folder / "state.json", state)
        return Checkpoint(path, step)

    def prune_checkpoints(self, *, keep_every: int) -> None:
        """Remove all but the last checkpoint and, if `keep_every` > 0, those whose step it divides."""
        for checkpoint in self.checkpoints()[:-1]:
            if keep_every <= 0 or checkpoint.step % keep_every != 0:
                shutil.rmtree(checkpoint.path)

    def remove_partial_checkpoints(self) -> None:
        """Remove what a killed process left half-written."""
        for path in (self.path / "checkpoints").glob(".step-*"):
            shutil.rmtree(path)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All metric records in order; a last line cut off by a kill is left out.

        Raises:
            MissingError: a line that is not the last is no JSON object.
        """
        if not self.metrics_path.is_file():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").split("\n")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                records.append(record)
            elif number != len(lines):
                raise MissingError(f"{self.metrics_path} line {number} is no metric record")
        return records

    def rewind_metrics(self, step: int) -> None:
        """Drop the records after `step`, which a resumed training writes again."""
        kept = [r for r in self.metrics() if r.get("step", 0) <= step]
        with atomic_path(self.metrics_path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")

    def evaluations(self) -> list[dict[str, Any]]:
        """All evaluation documents, by file name."""
        return [read_json(p) for p in sorted((self.path / "evaluations").glob("*.json"))]


def now() -> str:
    """UTC time, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "safetensors", "numpy")
    return {"driftkit": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
