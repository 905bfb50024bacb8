"""`train --eval-every`: scores on the way, the same ones that `fid` gives, outside the training time."""

import json
import os
import subprocess
import sys

import pytest
import torch

from driftkit.scoring import during_training
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import Drawn
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, train_tiny

IMAGES = 40


@pytest.fixture
def scored_by_mae(tmp_path):
    """Options that score with a MAE trained here."""
    train_tiny(tmp_path / "encoder", "mae", "--set", "model.base_channels=4")
    return ["--set", f"evaluation.extractor=encoder:{tmp_path / 'encoder'}", "--set", f"evaluation.num_images={IMAGES}"]


def scores(run):
    return {r["step"]: r["health"].get(f"fid@{IMAGES}") for r in Run.open(run).metrics()}


def test_scores_are_logged_and_are_those_of_fid(tmp_path, scored_by_mae):
    run = tmp_path / "drift"
    keep = ["--checkpoint-every", 2, "--set", "trainer.keep_every=2"]
    train_tiny(run, "drift", *scored_by_mae, "--eval-every", 2, *keep, "--set", "trainer.learning_rate=0.01", steps=5)
    found = scores(run)
    assert {step for step, value in found.items() if value is not None} == {2, 4, 5}
    result = driftkit(
        "fid", run, "-r", TINY_DATA[1], "--extractor", f"encoder:{tmp_path / 'encoder'}", "-n", IMAGES, "--step", 4,
        "--json", "--device", "cpu",
    )  # fmt: skip
    assert json.loads(result.stdout)["metrics"]["fid"] == pytest.approx(found[4], rel=1e-5)


def test_scoring_changes_neither_the_training_nor_a_resumed_one(tmp_path, scored_by_mae):
    train_tiny(tmp_path / "plain", steps=4)
    train_tiny(tmp_path / "scored", "drift", *scored_by_mae, "--eval-every", 1, steps=2)
    train_tiny(tmp_path / "scored", "drift", *scored_by_mae, "--eval-every", 2, steps=4)
    plain, scored = (Run.open(tmp_path / name) for name in ("plain", "scored"))
    losses = [[r["loss"] for r in run.metrics()] for run in (plain, scored)]
    assert losses[0] == losses[1]
    for name, tensor in plain.checkpoint().weights("ema").items():
        assert bool((tensor == scored.checkpoint().weights("ema")[name]).all()), name


def test_images_that_cannot_be_scored_warn_and_training_goes_on(tmp_path, scored_by_mae, monkeypatch):
    black = torch.zeros(IMAGES, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(during_training, "draw_images", lambda *_, **__: Drawn(black, "one-step", 1, {}, "float32"))
    result = train_tiny(tmp_path / "drift", "drift", *scored_by_mae, "--eval-every", 1)
    assert set(scores(tmp_path / "drift").values()) == {None}
    assert "no fid@40 at this step: samples: all 40 images are identical" in result.stderr
    assert Run.open(tmp_path / "drift").manifest().state == "done"


def test_what_does_not_fit_stops_the_run_before_it_begins(tmp_path, scored_by_mae):
    line = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", 2, "--eval-every", 1]
    for more, code, says in (
        (["--set", "evaluation.extractor=incepton"], 2, "expected inception"),
        (["--set", "evaluation.reference=absent.zip"], 3, "absent.zip"),
        (["--set", "evaluation.reference=shapes?image_size=16&count=64"], 5, "16 pixels wide"),
        (["--set", "evaluation.num_images=3"], 2, "greater than or equal to 10"),
    ):
        result = driftkit(*line, *scored_by_mae, *more, "--output", tmp_path / "drift")
        assert result.exit_code == code, result.stderr
        assert says in result.stderr
        assert not (tmp_path / "drift").exists()
    mae = driftkit("train", "--objective", "mae", *TINY_DATA, *TINY_LOOP, "--eval-every", 1, "--output", tmp_path / "m")
    assert mae.exit_code == 2
    assert "generates no images" in mae.stderr


@pytest.mark.slow
def test_ranks_keep_step_while_the_first_one_scores(tmp_path, scored_by_mae):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "driftkit",
            "train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, *scored_by_mae, "--eval-every", "1",
            "--steps", "3", "--output", str(tmp_path / "drift"), "--set", "trainer.learning_rate=0.01",
            "--set", "trainer.log_every=3"]  # fmt: skip
    done = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert set(scores(tmp_path / "drift")) == {1, 2, 3}
    assert scores(tmp_path / "drift")[3] is not None
