"""Which device is taken, and when none is taken silently."""

import math

import pytest
import torch

from driftkit.errors import ResourceError
from driftkit.runtime import device
from driftkit.runtime.device import autocast_dtype, resolve_device, training_dtype
from driftkit.storage.run_folder import Run
from tests.conftest import train_tiny


@pytest.fixture
def without_cuda(monkeypatch, tmp_path):
    """A machine whose torch sees no GPU, and its folder of device files."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_a_machine_without_gpu_computes_on_its_cpu(without_cuda):
    assert resolve_device("auto").type == "cpu"


def test_a_gpu_that_torch_cannot_use_is_told_instead_of_left_idle(without_cuda, monkeypatch):
    (without_cuda / "nvidia0").touch()
    with pytest.raises(ResourceError, match="install a torch build"):
        resolve_device("auto")
    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert resolve_device("auto").type == "cpu"


def test_files_of_a_driver_without_device_are_no_device(without_cuda):
    (without_cuda / "nvidiactl").touch()
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_taken_only_where_the_gpu_computes_in_it(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert autocast_dtype("auto", torch.device("cuda")) == dtype
    assert autocast_dtype("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_trainings_take_bfloat16_only_where_the_cpu_multiplies_it(monkeypatch, native, dtype):
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: native)
    assert training_dtype("auto", torch.device("cpu")) == dtype
    assert training_dtype("float32", torch.device("cpu")) == torch.float32
    assert autocast_dtype("auto", torch.device("cpu")) == torch.float32  # samples are the same on all CPUs


@pytest.mark.parametrize("method", ["drift", "mae"])
def test_trainings_in_bfloat16_keep_float32_weights_in_the_layout_that_is_fastest(tmp_path, monkeypatch, method):
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: True)
    train_tiny(tmp_path / "run", method, steps=3)
    run = Run.open(tmp_path / "run")
    assert run.manifest().precision == "bfloat16"
    assert {tensor.dtype for tensor in run.weights("ema")[0].values()} == {torch.float32}
    assert all(math.isfinite(record["loss"]) for record in run.metrics())
