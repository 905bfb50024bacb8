"""Trackers get copies of what metrics.jsonl holds, and say how to install what is missing."""

import sys
import types

import pytest
import torch

from driftkit.errors import UsageError
from driftkit.training.metrics_log import open_trackers


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
        "closed": True,
    }
