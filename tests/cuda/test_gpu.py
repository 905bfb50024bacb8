"""What a GPU computes is what the CPU computes, and every command works there. Needs a CUDA device: `just gpu-test`."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from driftkit.methods.drifting import aggregated_drift
from driftkit.storage.files import read_json, read_tensors
from driftkit.storage.run_folder import Run
from driftkit.training.trainer import Trainer
from tests.conftest import TINY_DATA, TINY_UNET, driftkit, train_tiny

pytestmark = pytest.mark.gpu

CUDA = "cuda"
OBJECTIVES = ("drift", "ddpm", "mae", "classifier")


@pytest.fixture(autouse=True)
def _float32_is_float32():
    """Convolutions of float32 would otherwise be TF32, with three digits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def train(output: Path, objective: str, device: str, *more: object, steps: int = 2):
    return train_tiny(output, objective, "--device", device, *more, steps=steps)


def numbers(run: Path) -> list[dict[str, float]]:
    """What every step of a run says of its losses and health."""
    return [{"loss": r["loss"], **r["terms"], **r["health"]} for r in Run(run).metrics()]


def assert_alike(one: Path, other: Path, *, rtol: float) -> None:
    for got, want in zip(numbers(one), numbers(other), strict=True):
        assert got == pytest.approx(want, rel=rtol, abs=rtol)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_steps_in_float32_are_those_of_the_cpu(objective, tmp_path):
    for device in ("cpu", CUDA):
        train(tmp_path / device, objective, device, "--set", "trainer.precision=float32")
    assert_alike(tmp_path / CUDA, tmp_path / "cpu", rtol=1e-4)
    assert Run(tmp_path / CUDA).manifest().precision == "float32"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_steps_in_bfloat16_are_near_those_of_the_cpu(objective, tmp_path):
    train(tmp_path / "cpu", objective, "cpu", "--set", "trainer.precision=float32")
    train(tmp_path / "gpu", objective, CUDA, "--set", "trainer.precision=bfloat16")
    got, want = numbers(tmp_path / "gpu")[-1]["loss"], numbers(tmp_path / "cpu")[-1]["loss"]
    assert got == pytest.approx(want, rel=0.05)


def points(*, duplicates: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, real = (torch.randn(72, 128, 768, generator=generator) for _ in range(2))
    if duplicates:
        x, real = x[:, torch.arange(128) // 2], real[:, torch.arange(128) // 3]
    return x, real


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("duplicates", [True, False])
@pytest.mark.parametrize("taus", [(0.02, 0.05, 0.2), (0.005,)])
def test_the_field_is_that_of_the_cpu(taus, duplicates, wait):
    x, real = points(duplicates=duplicates)
    want = aggregated_drift(x.double(), real.double(), taus=taus)
    got = aggregated_drift(x.to(CUDA), real.to(CUDA), taus=taus, wait=wait)
    for name, expected in vars(want).items():
        error = (getattr(got, name).cpu().double() - expected).norm() / expected.norm()
        assert error < 1e-5, name


def test_the_field_waits_for_nothing():
    x, real = (part.to(CUDA) for part in points(duplicates=True))
    numbers = [0] * 36 + [1] * 36
    aggregated_drift(x, real, scale_over=numbers)  # what lasts is prepared by the first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        aggregated_drift(x, real, scale_over=numbers)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_steps_wait_at_most_twice(objective, tmp_path, monkeypatch):
    """Of ten steps, without pictures, checkpoints and records, the later ones."""
    waits = []

    def counting(trainer, *, original=Trainer.train_step):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                outcome = original(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append([str(w.message) for w in seen if "synchroniz" in str(w.message)])
        return outcome

    monkeypatch.setattr(Trainer, "train_step", counting)
    train(tmp_path / "run", objective, CUDA, "--set", "trainer.log_every=100", "--sample-every", 0, steps=10)
    assert len(waits) == 10
    assert all(len(step) <= 2 for step in waits[2:]), waits[2:]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(objective, tmp_path):
    options = ("--set", "trainer.precision=float32")
    train(tmp_path / "whole", objective, CUDA, *options, steps=4)
    train(tmp_path / "parts", objective, CUDA, *options, steps=2)
    train(tmp_path / "parts", objective, CUDA, *options, steps=4)
    assert_alike(tmp_path / "parts", tmp_path / "whole", rtol=1e-4)
    for which in ("raw", "ema"):
        whole, parts = (Run(tmp_path / name).checkpoint().weights(which) for name in ("whole", "parts"))
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5)


def test_a_run_of_a_gpu_goes_on_on_a_cpu(tmp_path):
    train(tmp_path / "run", "ddpm", CUDA, steps=2)
    train(tmp_path / "run", "ddpm", "cpu", steps=4)
    assert Run(tmp_path / "run").manifest().step == 4


def test_samples_of_a_gpu_are_those_of_the_cpu(tmp_path):
    train(tmp_path / "run", "ddpm", CUDA)
    made = {}
    for device in ("cpu", CUDA):
        path = tmp_path / f"{device}.safetensors"
        result = driftkit("sample", tmp_path / "run", "--num-images", 8, "--nfe", 4, "--device", device, "-o", path)
        assert result.exit_code == 0, result.output
        made[device] = read_tensors(path)[0]["images"].int()
    assert (made["cpu"] - made[CUDA]).abs().max() <= 1  # of 255


def test_scores_of_a_gpu_are_those_of_the_cpu_and_are_compared(tmp_path):
    train(tmp_path / "run", "ddpm", CUDA)
    words = ["fid", tmp_path / "run", "--reference", "shapes?image_size=8&count=256", "--num-images", 256,
             "--extractor", "pixels", "--nfe", 4, "--allow-collapsed"]  # fmt: skip
    scores = {}
    for device in ("cpu", CUDA):
        result = driftkit(*words, "--device", device, "--output", tmp_path / f"{device}.json")
        assert result.exit_code == 0, result.output
        scores[device] = read_json(tmp_path / f"{device}.json")["metrics"]["fid"]
    assert scores[CUDA] == pytest.approx(scores["cpu"], rel=1e-3)
    result = driftkit("compare", tmp_path / "run", "--output", tmp_path / "report", "--device", CUDA)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("objective", ["drift", "ddpm"])
def test_compiled_steps_are_those_of_eager_ones(objective, tmp_path):
    options = ("--set", "trainer.precision=float32")
    train(tmp_path / "eager", objective, CUDA, *options)
    train(tmp_path / "compiled", objective, CUDA, *options, "--compile")
    assert_alike(tmp_path / "compiled", tmp_path / "eager", rtol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_by_nccl_have_the_gradient_of_the_whole_batch(tmp_path):
    words = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, "--steps", "2", "--sample-every", "0",
             "--set", "trainer.log_every=1", "--set", "trainer.precision=float32", "--device", "cuda"]  # fmt: skip
    environment = {**os.environ, "DRIFTKIT_DATA_DIR": str(tmp_path), "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    for count in (1, 2):
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        words = [*words, "--batch-size", str(8 // count), "--output", str(tmp_path / str(count))]
        line = [*start, "-m", "driftkit", *words]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    assert_alike(tmp_path / "2", tmp_path / "1", rtol=1e-3)
