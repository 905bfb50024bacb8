"""Which device is taken, and when none is taken silently."""

import math

import pytest
import torch

from driftkit.errors import ResourceError
from driftkit.runtime import device
from driftkit.runtime.device import (
    autocast_dtype,
    leave_busy_processors,
    resolve_device,
    training_dtype,
    use_threads_of,
)
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


@pytest.fixture
def four_threads(monkeypatch):
    """The number that torch is told to take, of four; nobody has set the variable."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(device, "usable_cpus", lambda: 4)
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    leave_busy_processors.cache_clear()
    yield taken
    leave_busy_processors.cache_clear()


@pytest.mark.parametrize(("free", "threads"), [(3.9, []), (None, []), (3.2, [3]), (1.4, [1]), (0.0, [1])])
def test_threads_are_as_many_as_processors_are_free(monkeypatch, capsys, four_threads, free, threads):
    monkeypatch.setattr(device, "free_cpus", lambda: free)
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("cpu").type == "cpu"  # as the stages of a pipeline do
    assert four_threads == threads
    assert capsys.readouterr().err.count("of 4 processors") == len(threads)


def test_the_number_of_threads_that_the_user_has_set_stays(monkeypatch, four_threads):
    monkeypatch.setattr(device, "free_cpus", lambda: 1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    resolve_device("cpu")
    use_threads_of("cpu (x86_64, 2 threads)")
    assert four_threads == []


def test_a_resumed_run_computes_with_as_many_threads_as_before(tmp_path, monkeypatch, four_threads):
    monkeypatch.setattr(device, "free_cpus", lambda: None)
    train_tiny(tmp_path / "run")
    assert Run.open(tmp_path / "run").manifest().device == device.describe_device(torch.device("cpu"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    train_tiny(tmp_path / "run", steps=3)
    assert four_threads == [4]


@pytest.mark.parametrize("description", [None, "NVIDIA H100", "cpu (x86_64, 5 threads)", "cpu (x86_64, 99999 threads)"])
def test_threads_of_another_machine_or_device_are_not_taken(four_threads, description):
    use_threads_of(description)
    assert four_threads == []
