"""Sampling: image i is a function of (seed, i), and what is written says how it came about."""

import json
from pathlib import Path

import pytest
import torch

from driftkit.config.sampling_config import SamplingConfig
from driftkit.storage.files import read_tensors
from driftkit.storage.images import read_samples
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import generate
from tests.conftest import TINY_DATA, driftkit, replace_weights, train_tiny


@pytest.mark.parametrize(
    ("objective", "request_"), [("drift", {}), ("ddpm", {"sampler": "ddpm", "nfe": 4}), ("ddpm", {"nfe": 3})]
)
def test_image_seventeen_is_the_same_whatever_the_batch(objective, request_, tmp_path):
    train_tiny(tmp_path / "run", objective, steps=3)
    run = Run.open(tmp_path / "run")
    whole, _ = generate(run, SamplingConfig(seed=5, **request_), num_images=20, batch_size=20)
    parts, _ = generate(run, SamplingConfig(seed=5, **request_), num_images=18, batch_size=7)
    # rounding to uint8 may flip where the order of float additions differs
    assert (whole[:18].int() - parts.int()).abs().max() <= 1
    other, _ = generate(run, SamplingConfig(seed=6, **request_), num_images=18)
    assert not torch.equal(other, parts)


def test_samples_are_written_with_record_and_grid(tmp_path):
    train_tiny(tmp_path / "run", "ddpm")
    result = driftkit(
        "sample", tmp_path / "run", "--num-images", 5, "--sampler", "ddim", "--nfe", 3, "--json", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    made = read_samples(tmp_path / "run" / "samples" / document["samples"].rsplit("/", 1)[-1])
    assert made.images.shape == (5, 3, 8, 8)
    assert made.images.dtype == torch.uint8
    for key, want in {"nfe": 3, "sampler": "ddim", "weights": "ema", "step": 2, "seed": 0, "method": "ddpm"}.items():
        assert getattr(made.record, key) == want
    assert made.path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("nfe", "variance"), [(10, "large"), (None, "large"), (9, "small")])
def test_the_variance_of_ancestral_sampling_is_recorded(nfe, variance, tmp_path):
    train_tiny(tmp_path / "run", "ddpm", "--set", "objective.num_steps=10")
    run = Run.open(tmp_path / "run")
    by_default, info = generate(run, SamplingConfig(sampler="ddpm", nfe=nfe), num_images=2)
    assert info["sampler_options"] == {"variance": variance}
    named, _ = generate(run, SamplingConfig(sampler="ddpm", nfe=nfe), num_images=2, options={"variance": variance})
    assert torch.equal(by_default, named)
    other = {"variance": {"large": "small", "small": "large"}[variance]}
    changed, info = generate(run, SamplingConfig(sampler="ddpm", nfe=nfe), num_images=2, options=other)
    assert info["sampler_options"] == other
    assert not torch.equal(by_default, changed)
    assert generate(run, SamplingConfig(sampler="ddim", nfe=3), num_images=2)[1]["sampler_options"] == {}


@pytest.mark.parametrize(
    ("trained", "asked", "used"),
    [("bfloat16", None, "bfloat16"), ("bfloat16", "float32", "float32"), ("float32", "bfloat16", "bfloat16"),
     ("bfloat16", "auto", "float32")],
)  # fmt: skip
def test_precision_is_that_of_training_or_as_asked_for(trained, asked, used, tmp_path):
    # With an output layer that starts at zero all formats would give the same images.
    train_tiny(tmp_path / "run", "ddpm", "--precision", trained, "--set", "trainer.learning_rate=0.01", steps=4)
    result = driftkit("sample", tmp_path / "run", "-n", 4, *(["--precision", asked] if asked else []), "--nfe", 3,
                      "--weights", "raw", "--device", "cpu", "--json")  # fmt: skip
    document = json.loads(result.stdout)
    assert document["precision"] == used
    assert ("bfloat16" in document["samples"].rsplit("/", 1)[-1]) == (used == "bfloat16")
    run, plain = Run.open(tmp_path / "run"), {"nfe": 3, "weights": "raw"}
    exact = generate(run, SamplingConfig(precision="float32", **plain), num_images=4)[0]
    rounded = generate(run, SamplingConfig(precision="bfloat16", **plain), num_images=4)[0]
    assert not torch.equal(exact, rounded)
    assert torch.equal(read_samples(Path(document["samples"])).images, exact if used == "float32" else rounded)


def test_ema_and_raw_weights_differ(tmp_path):
    train_tiny(tmp_path / "run", "drift", "--set", "trainer.learning_rate=0.01", steps=4)
    run = Run.open(tmp_path / "run")
    ema, info = generate(run, SamplingConfig(), num_images=2)
    raw, _ = generate(run, SamplingConfig(weights="raw"), num_images=2)
    assert info["nfe"] == 1
    assert info["sampler"] == "one-step"
    assert not torch.equal(ema, raw)


def test_every_average_is_kept_sampled_scored_and_exported_by_its_name(tmp_path):
    decays = ["--set", "trainer.ema_decay=[0.5,0.9,0.999]", "--set", "trainer.ema_warmup=0"]
    keeps = ["--checkpoint-every", 2, "--set", "trainer.keep_every=2"]
    train_tiny(tmp_path / "whole", "drift", "--set", "trainer.learning_rate=0.01", *decays, *keeps, steps=6)
    train_tiny(tmp_path / "parts", "drift", "--set", "trainer.learning_rate=0.01", *decays, *keeps, steps=3)
    train_tiny(tmp_path / "parts", "drift", "--set", "trainer.learning_rate=0.01", *decays, *keeps, steps=6)
    run = Run.open(tmp_path / "whole")
    names = ["ema", "ema-0.9", "ema-0.999", "raw", "average:3"]
    held = {name: run.weights(name)[0] for name in names}
    for name in names[:-1]:
        assert held[name].keys() == held["raw"].keys()
        resumed = Run.open(tmp_path / "parts").weights(name)[0]
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in held[name].items()), name
        header = read_tensors(run.weights_paths(name)[0])[1]
        assert (header["weights"], float(header["ema_decay"])) == (
            name,
            {"ema-0.9": 0.9, "ema-0.999": 0.999}.get(name, 0.5),
        )
    images = [generate(run, SamplingConfig(weights=name), num_images=2)[0] for name in names]
    assert all(not torch.equal(one, other) for i, one in enumerate(images) for other in images[:i])
    sums = (run.checkpoint().path / "SHA256SUMS").read_text()
    assert "ema-0.9.safetensors" in sums
    done = driftkit("sample", run.path, "-n", 2, "--weights", "average:3", "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    assert "average-3" in json.loads(done.stdout)["samples"]
    done = driftkit("export", run.path, "--weights", "ema-0.999", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["weights"] == "ema-0.999"
    done = driftkit("export", run.path, "--weights", "ema-0.5", "--force", "--json")
    assert json.loads(done.stdout)["weights"] == json.loads(done.stdout)["origin"]["weights"] == "ema"
    assert generate(run, SamplingConfig(weights="ema-0.5"), num_images=2)[1]["weights"] == "ema"
    done = driftkit("fid", run.path, "-r", TINY_DATA[1], "--weights", "ema-0.9", "-n", 16, "--extractor", "pixels",
                    "--allow-collapsed", "--device", "cpu", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "ema-0.9" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--weights", "ema-0.5"], 3, "it has ema, raw"),
        (["--sampler", "ddim"], 2, "samples with one-step"),
        (["--nfe", "4"], 2, "exactly 1"),
        (["--num-images", "0"], 2, "--num-images"),
        (["--step", "7"], 3, "no checkpoint of step 7"),
        (["--output", "a.png"], 2, ".safetensors"),
        (["--set", "eta=1"], 2, "options of sampler one-step (none)"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--precision", "fp8"], 2, "expected auto, float32 or bfloat16"),
    ],
)
def test_requests_that_do_not_fit_are_refused(words, code, says, tmp_path):
    train_tiny(tmp_path / "run")
    before = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    result = driftkit("sample", tmp_path / "run", *words)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == before


def test_a_mae_run_generates_nothing(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    result = driftkit("sample", tmp_path / "mae")
    assert result.exit_code == 2
    assert "generates no images" in result.stderr


def test_samples_that_are_not_finite_are_refused(tmp_path):
    train_tiny(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    checkpoint = run.checkpoint()
    broken = {k: v * float("nan") for k, v in checkpoint.weights("ema").items()}
    replace_weights(run.path, "ema", broken)
    result = driftkit("sample", tmp_path / "run")
    assert result.exit_code == 5
    assert "not finite" in result.stderr
