"""The loop: exact resuming, stopping, refusing, and what it leaves on disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from driftkit.datasets.sources import open_dataset
from driftkit.storage.files import read_json, read_tensors
from driftkit.storage.run_folder import Run
from driftkit.training.feed import Feed, hold_out
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_MAE, TINY_UNET, driftkit, first_is_fast, train_tiny


def contents(run: Path) -> dict[str, object]:
    """Everything a run computed, without clock readings."""
    last = Run(run).checkpoint()
    tensors = {f.name: read_tensors(f)[0] for f in sorted(last.path.glob("*.safetensors"))}
    records = [{k: r[k] for k in ("step", "images", "loss", "terms", "health")} for r in Run(run).metrics()]
    grids = {p.name: p.read_bytes() for p in sorted((run / "samples").glob("*.png"))}
    return {"step": last.step, "tensors": tensors, "records": records, "grids": grids}


@pytest.mark.parametrize("objective", first_is_fast("drift", "ddpm", "mae"))
def test_resuming_equals_not_having_stopped_bit_for_bit(objective, tmp_path):
    # MAE with everything it can do, begun in the middle; measured at every step, since the last one always is.
    more = [] if objective != "mae" else ["--set", "objective.finetune_from=2", "--set", "trainer.measure_every=1"]
    train_tiny(tmp_path / "whole", objective, *more, steps=5)
    train_tiny(tmp_path / "parts", objective, *more, steps=3)
    result = train_tiny(tmp_path / "parts", objective, *more, steps=5)
    assert "resumed from step 3" in result.stderr
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert whole["records"] == parts["records"]
    for name, tensors in whole["tensors"].items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, parts["tensors"][name][key]), (name, key)
    last = "step-00000005.png"
    assert whole["grids"][last] == parts["grids"][last]


def test_a_run_folder_holds_what_its_documentation_says(tmp_path):
    result = train_tiny(tmp_path / "run", "drift", "--json", steps=3)
    document = json.loads(result.stdout)
    assert document["state"] == "done"
    assert document["step"] == 3
    assert document["images_seen"] == 12
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["config"]["data"]["image_size"] == 8
    assert manifest["origins"]["trainer.steps"] == "option"
    assert manifest["origins"]["trainer.learning_rate"] == "default"
    assert manifest["encoder"]["name"] == "pixel"
    assert len(manifest["inputs"]["data"]["digest"]) == 64
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    assert sorted(p.name for p in checkpoint.iterdir()) == [
        "SHA256SUMS", "ema.safetensors", "optimizer.safetensors", "raw.safetensors", "state.json",
    ]  # fmt: skip
    _, header = read_tensors(checkpoint / "ema.safetensors")
    assert json.loads(header["config"]) == manifest["config"]
    assert header["step"] == "3"
    records = Run(tmp_path / "run").metrics()
    assert [r["step"] for r in records] == [1, 2, 3]
    assert {"drift_norm", "spread", "gradient_norm"} <= set(records[0]["health"])


def test_a_finished_run_is_left_as_it_is(tmp_path):
    train_tiny(tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "step-00000002" / "raw.safetensors").stat().st_mtime_ns
    result = train_tiny(tmp_path / "run")
    assert "already done" in result.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "raw.safetensors").stat().st_mtime_ns == before


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    train_tiny(tmp_path / "whole", steps=3)
    train_tiny(tmp_path / "killed", steps=3)
    shutil.rmtree(tmp_path / "killed" / "checkpoints")
    train_tiny(tmp_path / "killed", steps=3)
    assert contents(tmp_path / "whole")["records"] == contents(tmp_path / "killed")["records"]


def test_zero_steps_save_the_untrained_network(tmp_path):
    train_tiny(tmp_path / "run", steps=0)
    assert Run(tmp_path / "run").checkpoint().step == 0
    assert driftkit("sample", tmp_path / "run", "--num-images", 2).exit_code == 0


def test_checkpoints_are_kept_as_asked(tmp_path):
    train_tiny(tmp_path / "run", "drift", "--checkpoint-every", 1, "--set", "trainer.keep_every=2", steps=5)
    assert [c.step for c in Run(tmp_path / "run").checkpoints()] == [2, 4, 5]
    train_tiny(tmp_path / "run", "drift", "--checkpoint-every", 1, steps=5)
    assert [c.step for c in Run(tmp_path / "run").checkpoints()] == [2, 4, 5], "a run that is done keeps what it has"


COSINE = ["--schedule", "cosine", "--learning-rate", "0.01", "--set", "trainer.warmup_steps=1"]


def test_a_stopped_run_of_a_schedule_resumes_bit_for_bit_and_records_its_rates(tmp_path, monkeypatch):
    train_tiny(tmp_path / "whole", "drift", *COSINE, steps=4)
    train_tiny(tmp_path / "parts", "drift", *COSINE, "--checkpoint-every", 1, "--set", "trainer.keep_every=1", steps=4)
    for step in (3, 4):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"step-{step:08d}")
    train_tiny(tmp_path / "parts", "drift", *COSINE, steps=4)
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert all(torch.equal(t, parts["tensors"]["raw.safetensors"][k])
               for k, t in whole["tensors"]["raw.safetensors"].items())  # fmt: skip
    rates = [record["learning_rate"] for record in Run(tmp_path / "parts").metrics()]
    assert rates == pytest.approx([0.01, 0.01, 0.0075, 0.0025])


def test_more_steps_need_a_constant_schedule(tmp_path):
    train_tiny(tmp_path / "run", "drift", *COSINE)
    line = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--output", tmp_path / "run", *COSINE]
    result = driftkit(*line, "--steps", "4")
    assert result.exit_code == 2
    assert "--steps was 2 and is 4 now, and its cosine schedule ends at the last step" in result.stderr
    assert "--init-from" in result.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--seed", "5"], "--seed was 0 and is 5 now"),
        (["--resume", "never"], "already holds a run"),
        (["--set", "trainer.learning_rate=1"], "--learning-rate was 0.0002 and is 1.0 now"),
        (["--steps", "1"], "is at step 2, past"),
    ],
)
def test_a_run_with_another_config_is_not_touched(change, says, tmp_path):
    train_tiny(tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    line = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", "2"]
    result = driftkit(*line, "--output", tmp_path / "run", *change)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("meow")
    result = driftkit("train", "--encoder", "pixel", *TINY_DATA, "--output", tmp_path / "photos")
    assert result.exit_code == 2
    assert "holds no run" in result.stderr
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.txt"]


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, monkeypatch):
    train_tiny(tmp_path / "run", "ddpm", steps=2)
    saved = Run(tmp_path / "run").checkpoint().weights("raw")
    # at half precision's end of the range a huge learning rate is not needed: break the input itself
    from driftkit.training import feed

    monkeypatch.setattr(feed, "to_float", lambda images: images.float() * torch.nan)
    line = [
        "train",
        "--objective",
        "ddpm",
        *TINY_DATA,
        *TINY_UNET,
        *TINY_LOOP,
        "--steps",
        "4",
        "--output",
        tmp_path / "run",
    ]
    result = driftkit(*line)
    assert result.exit_code == 1
    assert "not finite at step 2: real images, noise_mse" in result.stderr
    assert read_json(tmp_path / "run" / "manifest.json")["state"] == "failed"
    after = Run(tmp_path / "run").checkpoint()
    assert after.step == 2
    assert all(torch.equal(v, saved[k]) for k, v in after.weights("raw").items())


@pytest.mark.parametrize(("number", "code"), first_is_fast((signal.SIGTERM, 143), (signal.SIGINT, 130)))
def test_a_signal_saves_and_the_same_command_goes_on(number, code, tmp_path):
    line = [sys.executable, "-m", "driftkit", "train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP,
            "--steps", "100000", "--sample-every", "0", "--output", str(tmp_path / "run")]  # fmt: skip
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={**os.environ})
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert "state saved" in errors
    stopped = Run(tmp_path / "run").checkpoint().step
    assert read_json(tmp_path / "run" / "manifest.json")["state"] == "interrupted"
    more = [w if w != "100000" else str(stopped + 1) for w in line[3:]]
    assert driftkit(*more).exit_code == 0
    assert Run(tmp_path / "run").checkpoint().step == stopped + 1


def test_held_out_images_are_not_trained_on_and_tell_how_good_the_encoder_is(tmp_path, monkeypatch):
    fed = set()
    batch = Feed.batch

    def watched(self, step):
        real = batch(self, step)
        fed.update(real.indices.tolist())
        return real

    monkeypatch.setattr(Feed, "batch", watched)
    train_tiny(tmp_path / "run", "mae", "--set", "data.holdout=24", "--set", "objective.finetune_from=2", steps=12)
    training, held_out = hold_out(64, 24)
    assert fed == set(training.tolist())  # 48 slots over 40 images
    assert not fed & set(held_out.tolist())
    records = Run(tmp_path / "run").metrics()
    measured = [r["step"] for r in records if "knn_accuracy" in r["health"]]
    assert measured == [2, 4, 6, 8, 10, 12]  # with the grids
    assert all(0 <= r["health"]["knn_accuracy"] <= 1 for r in records if r["step"] in measured)
    assert ["classifier" in r["terms"] for r in records] == [False, False, *[True] * 10]
    config = Run(tmp_path / "run").manifest().config
    assert config["model"]["num_classes"] == len(open_dataset("shapes?image_size=8&count=64").classes)


def test_some_images_are_held_out_of_a_mae_unless_it_is_told_otherwise(tmp_path):
    train_tiny(tmp_path / "mae", "mae", "--data", "shapes?image_size=8&count=200")
    train_tiny(tmp_path / "ddpm", "ddpm", "--data", "shapes?image_size=8&count=200")
    held_out = [Run(tmp_path / name).manifest().config["data"]["holdout"] for name in ("mae", "ddpm")]
    assert held_out == [4, 0]
    result = driftkit("train", "--objective", "mae", *TINY_DATA, "--set", "data.holdout=64", "--output", tmp_path / "x")
    assert result.exit_code == 2
    assert "only 64 images" in result.stderr


def test_fine_tuning_needs_classes_and_says_how_to_do_without(tmp_path):
    for number in range(40):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "flat" / f"{number}.png")
    line = ["train", "--objective", "mae", "--preset", "mae-cpu", "--data", tmp_path / "flat", *TINY_MAE, *TINY_LOOP,
            "--set", "data.holdout=4", "--steps", "1", "--output", tmp_path / "run"]  # fmt: skip
    result = driftkit(*line)
    assert result.exit_code == 2
    assert "objective.finetune_from=-1" in result.stderr
    result = driftkit(*line, "--set", "objective.finetune_from=-1")
    assert result.exit_code == 0, result.output
    assert set(Run(tmp_path / "run").metrics()[-1]["health"]) == {"gradient_norm", "held_out_mse"}
