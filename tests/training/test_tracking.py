"""Trackers get copies of what metrics.jsonl holds, and say how to install what is missing."""

import json
import sys
import types

import pytest
import torch

from driftkit.errors import UsageError
from driftkit.stages import train
from driftkit.training.hooks import Hook
from driftkit.training.metrics_log import open_trackers
from tests.conftest import train_tiny


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_its_fix(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"uv sync --extra {name}"):
        open_trackers(name, tmp_path, {})


def test_records_reach_tensorboard_under_readable_names(tmp_path, monkeypatch):
    seen = {}

    class Writer:
        def __init__(self, log_dir):
            seen["folder"] = log_dir

        def add_scalar(self, name, value, step):
            seen[name] = (value, step)

        def add_images(self, name, images, step):
            seen[name] = (tuple(images.shape), step)

        def flush(self):
            seen["flushed"] = seen.get("flushed", 0) + 1

        def close(self):
            seen["closed"] = True

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    [tracker] = open_trackers("tensorboard", tmp_path, {})
    tracker.record({"step": 3, "loss": 0.5, "health": {"drift_norm": 0.1}})
    tracker.grid(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 3)
    tracker.close()
    assert seen == {
        "folder": str(tmp_path / "tensorboard"),
        "loss": (0.5, 3),
        "health/drift_norm": (0.1, 3),
        "samples": ((2, 3, 8, 8), 3),
        "flushed": 2,  # after each, so that they can be seen while the training goes on
        "closed": True,
    }


class WhileItRuns(Hook):
    """Reads with other hands what a run has written after each step."""

    def __init__(self, folder):
        self.folder, self.lines, self.events = folder, [], []

    def after_step(self, trainer, step):
        text = (self.folder / "metrics.jsonl").read_text()
        self.lines.append((text[-1:], [json.loads(line)["step"] for line in text.splitlines()]))
        self.events.append(sum(path.stat().st_size for path in (self.folder / "tensorboard").glob("events.*")))


@pytest.fixture
def reading(tmp_path, monkeypatch):
    """Train with a hook that reads along, the last of them."""
    hook, made = WhileItRuns(tmp_path / "run"), train._hooks

    def hooks(*arguments, **options):
        those, checkpoints = made(*arguments, **options)
        return [*those, hook], checkpoints

    monkeypatch.setattr(train, "_hooks", hooks)
    return hook


def test_metrics_can_be_followed_line_by_line_while_a_training_runs(tmp_path, reading):
    train_tiny(tmp_path / "run", "ddpm", "--set", "trainer.log_every=1", steps=3)
    assert reading.lines == [("\n", [1]), ("\n", [1, 2]), ("\n", [1, 2, 3])]


def test_tensorboard_can_be_followed_while_a_training_runs(tmp_path, reading):
    pytest.importorskip("tensorboard")
    train_tiny(tmp_path / "run", "ddpm", "--set", "trainer.log_every=1", "--tracker", "tensorboard", steps=3)
    assert reading.events == sorted(set(reading.events))  # it has grown after each step
    assert reading.events[0] > 0
