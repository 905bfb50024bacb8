"""A step that is not finite stops the run before its update, names where it begins and can be repeated."""

import json
import os
import subprocess
import sys

import pytest
import torch
from driftkit.stages.replay import replay

from driftkit.encoders.networks import PixelEncoder
from driftkit.runtime.finite import not_finite
from driftkit.storage.files import read_json, read_tensors
from driftkit.storage.run_folder import Run
from driftkit.training import feed, inspection
from driftkit.training.trainer import Trainer
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, replace_weights, train_tiny

BAD_IMAGE = 5


@pytest.fixture
def broken_image(monkeypatch):
    """One image of the pack turns into NaN on its way into the batch."""
    real = feed.Feed.batch

    def batch(self, step, **which):
        made = real(self, step, **which)
        made.images[made.indices == BAD_IMAGE] = torch.nan
        return made

    monkeypatch.setattr(feed.Feed, "batch", batch)


def go_on(output, objective, *more, steps=64):
    """Train on towards a step that does not come, and give the refusal."""
    words = ["--encoder", "pixel"] if objective == "drift" else []
    model = (
        TINY_UNET if objective != "mae" else ["--set", "model.base_channels=8", "--set", "model.num_blocks=[1,1,1,1]"]
    )
    line = ["train", "--objective", objective, *words, *TINY_DATA, *model, *TINY_LOOP, "--sample-every", "0"]
    result = driftkit(*line, "--steps", steps, "--output", output, *more)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error:") == 1
    return result.stderr


def saved(run):
    """The one folder in RUN/inspect, and its record."""
    [folder] = (run / "inspect").iterdir()
    return folder, read_json(folder / "record.json")


@pytest.mark.parametrize("objective", ["drift", "ddpm", "mae"])
def test_a_broken_image_is_named_and_the_step_kept_and_repeatable(objective, tmp_path, broken_image):
    said = go_on(tmp_path / "run", objective, "--set", "data.holdout=0")
    assert f"input images {BAD_IMAGE} of the pack are not finite" in said
    folder, record = saved(tmp_path / "run")
    assert str(folder) in said
    assert record["not_finite"]["images"] == [BAD_IMAGE]
    batch = read_tensors(folder / "batch.safetensors")[0]
    assert batch["indices"][0] == BAD_IMAGE
    assert not torch.isfinite(batch["images"][0]).any()
    assert torch.isfinite(batch["images"][1:]).all()
    assert (folder / "batch.png").stat().st_size > 0
    assert not not_finite(read_tensors(folder / "weights.safetensors")[0])
    assert read_json(tmp_path / "run" / "manifest.json")["state"] == "failed"
    again = replay(folder)
    assert again["images"] == [BAD_IMAGE]
    assert again["cause"] == record["cause"]


@pytest.mark.parametrize("objective", ["drift", "ddpm"])
def test_weights_before_the_update_are_kept_even_if_one_looks_late(objective, tmp_path, broken_image, monkeypatch):
    build = Trainer.__init__

    def late(self, *arguments, **options):
        build(self, *arguments, **options)
        self.watch.deferred = True  # as on a GPU, where nobody asks before the next record

    go_on(tmp_path / "at-once", objective)
    monkeypatch.setattr(Trainer, "__init__", late)
    go_on(tmp_path / "late", objective, "--set", "trainer.log_every=7")
    (one, record), (other, late_record) = saved(tmp_path / "at-once"), saved(tmp_path / "late")
    assert record["step"] == late_record["step"] > 0
    before, after = (read_tensors(folder / "weights.safetensors")[0] for folder in (one, other))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert record["not_finite"] == late_record["not_finite"]


def test_a_gradient_is_named_by_its_parameters(tmp_path, monkeypatch):
    from driftkit.methods.ddpm import objective as ddpm

    real = ddpm.DDPM.accumulate

    def accumulate(self, model, batch, how):
        hook = model.input.weight.register_hook(lambda grad: grad * (torch.nan if batch.step == 2 else 1))
        outcome = real(self, model, batch, how)
        hook.remove()
        return outcome

    monkeypatch.setattr(ddpm.DDPM, "accumulate", accumulate)
    said = go_on(tmp_path / "run", "ddpm")
    assert "gradient is not finite at step 2 (loss" in said
    assert "gradients of input.weight)" in said
    _, record = saved(tmp_path / "run")
    assert record["not_finite"]["terms"] == []
    assert list(record["not_finite"]["gradients"]) == ["input.weight"]


def test_features_are_named_by_map_and_side(tmp_path, monkeypatch):
    real = PixelEncoder.maps

    def maps(self, images):
        found = real(self, images)
        if images.requires_grad:
            found[0].values[:, :, 0, 0] = torch.inf
        return found

    monkeypatch.setattr(PixelEncoder, "maps", maps)
    said = go_on(tmp_path / "run", "drift")
    assert "features are not finite at step 0: generated pixels/" in said
    _, record = saved(tmp_path / "run")
    assert all(name.startswith("generated ") for name in record["not_finite"]["features"])


def test_a_signal_of_one_temperature_is_named_with_the_loss_term(tmp_path, monkeypatch):
    from driftkit.methods.drifting import objective as drifting

    real = drifting.aggregated_drift

    def aggregated_drift(*arguments, **options):
        result = real(*arguments, **options)
        result.drift_scale[1] = torch.nan
        result.v[0] = torch.nan
        return result

    monkeypatch.setattr(drifting, "aggregated_drift", aggregated_drift)
    said = go_on(tmp_path / "run", "drift")
    assert "loss is not finite at step 0: pixels/" in said
    assert "drift_scale/tau 0.05" in said
    assert "drift_scale/tau 0.2" not in said


def test_an_update_that_spoils_the_weights_never_becomes_a_checkpoint(tmp_path, monkeypatch):
    train_tiny(tmp_path / "run", "ddpm", steps=2)
    real = Trainer._train_step

    def train_step(self):
        outcome = real(self)
        if self.step == 4:
            self.network.output.weight.data[0, 0] = torch.inf
        return outcome

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    said = go_on(tmp_path / "run", "ddpm", "--checkpoint-every", 1)
    assert "weights are not finite at step 4: raw/output.weight" in said
    assert "weights are not finite: output.weight)" in said
    assert Run(tmp_path / "run").checkpoint().step == 3
    assert "loss is not finite at step 4: noise_mse (weights" in go_on(tmp_path / "run", "ddpm")


def spoil(run, which, part=""):
    """One number of a saved tensor becomes infinite; its name."""
    tensors, _ = read_tensors(Run(run).checkpoint().path / f"{which}.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1 and part in name)
    tensors[name].view(-1)[0] = torch.inf
    replace_weights(run, which, tensors)
    return name


@pytest.mark.parametrize(("which", "prefix"), [("raw", "raw/"), ("ema", "ema/"), ("optimizer", "")])
def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(which, prefix, tmp_path):
    train_tiny(tmp_path / "run", "ddpm", steps=2)
    name = spoil(tmp_path / "run", which)
    line = ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", 3]
    result = driftkit(*line, "--output", tmp_path / "run")
    assert result.exit_code == 5, result.output
    assert f"not finite: {prefix}{name} (1 of" in result.stderr
    assert Run(tmp_path / "run").checkpoint().step == 2


def test_weights_that_are_not_finite_are_neither_sampled_nor_scored_nor_an_encoder(tmp_path):
    train_tiny(tmp_path / "run", "ddpm", steps=2)
    name = spoil(tmp_path / "run", "ema")
    shapes = ["--reference", "shapes?image_size=8&count=64", "--features", "encoder:mae", "-n", 16]
    train_tiny(tmp_path / "mae", "mae", steps=2)
    for line in (["sample", tmp_path / "run"], ["fid", tmp_path / "run", *shapes]):
        result = driftkit(*line)
        assert result.exit_code == 5, result.output
        assert f"ema weights are not finite: {name}" in result.stderr
    broken = spoil(tmp_path / "mae", "ema", "stem")
    line = ["train", "--encoder", tmp_path / "mae", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", 1]
    result = driftkit(*line, "--output", tmp_path / "x")
    assert result.exit_code == 5, result.output
    assert broken in result.stderr
    assert not (tmp_path / "x").exists()


def test_only_the_last_inspection_is_kept_and_its_size_is_bounded(tmp_path, broken_image, monkeypatch):
    old = tmp_path / "run" / "inspect" / "step-00000000"
    monkeypatch.setattr(inspection, "MOST_IMAGE_BYTES", 2 * 3 * 8 * 8 * 4)
    go_on(tmp_path / "run", "ddpm")
    folder, record = saved(tmp_path / "run")
    assert len(read_tensors(folder / "batch.safetensors")[0]["images"]) == 2
    old.mkdir()
    go_on(tmp_path / "run", "ddpm")
    assert saved(tmp_path / "run") == (folder, {**record, "created": saved(tmp_path / "run")[1]["created"]})


SCRIPT = """
import os, torch
from driftkit.training import feed
real = feed.Feed.batch
def batch(self, step, **which):
    made = real(self, step, **which)
    if os.environ["RANK"] == "1" and step == 2:
        made.images[0] = torch.nan
    return made
feed.Feed.batch = batch
from driftkit.cli.app import main
main()
"""


@pytest.mark.slow
def test_all_ranks_stop_together_with_one_message(tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
            f"--master-port={31500 + os.getpid() % 1000}", str(tmp_path / "program.py"), "train", "--objective", "ddpm",
            *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", "5", "--output", str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert done.stderr.count("error: loss is not finite at step 2: noise_mse") == 1, done.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(tmp_path) not in done.stderr
    folder, record = saved(tmp_path / "run")
    assert record["not_finite"]["ranks"] == [1]
    assert record["world_size"] == 2
    assert len(read_tensors(folder / "batch.safetensors")[0]["images"]) == 8
    assert "on ranks 1" in json.loads((tmp_path / "run" / "manifest.json").read_text())["failure"]
