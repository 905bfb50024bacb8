"""Copies of metric records and grids for TensorBoard or Weights & Biases; `metrics.jsonl` stays the original."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from driftkit.config.layers import flatten
from driftkit.errors import UsageError
from driftkit.storage.files import digest_json
from driftkit.training.train_config import TrackerName


class TensorBoardTracker:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path):
        module = _require("torch.utils.tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(log_dir=str(run / "tensorboard"))

    def record(self, record: Mapping[str, Any]) -> None:
        for name, value in flatten(record).items():
            if name != "step":
                self.writer.add_scalar(name.replace(".", "/"), value, record["step"])

    def grid(self, images: torch.Tensor, step: int) -> None:
        self.writer.add_images("samples", images, step)

    def close(self) -> None:
        self.writer.close()


class WandbTracker:
    """A Weights & Biases run named after the folder; the same folder continues the same run."""

    def __init__(self, run: Path, config: Mapping[str, Any]):
        self.wandb = _require("wandb", "wandb")
        self.session = self.wandb.init(
            project="driftkit",
            name=run.name,
            id=digest_json(str(run.resolve()))[:16],  # two folders of one name are two runs
            resume="allow",
            dir=str(run),
            config=dict(config),
        )

    def record(self, record: Mapping[str, Any]) -> None:
        values = {name.replace(".", "/"): value for name, value in flatten(record).items()}
        self.session.log(values, step=record["step"])

    def grid(self, images: torch.Tensor, step: int) -> None:
        pictures = [self.wandb.Image(image.permute(1, 2, 0).numpy()) for image in images]
        self.session.log({"samples": pictures}, step=step)

    def close(self) -> None:
        self.session.finish()


Tracker = TensorBoardTracker | WandbTracker


def open_trackers(name: TrackerName, run: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The tracker of that name for a run folder; empty for "none". Raises UsageError: its package is not installed."""
    if name == "none":
        return []
    return [TensorBoardTracker(run) if name == "tensorboard" else WandbTracker(run, config)]


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"`trainer.tracker` {package}: the package {package} is not installed; uv sync --extra {package}"
        ) from None
