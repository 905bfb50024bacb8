"""Which device is taken, and when none is taken silently."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from driftkit.errors import ResourceError
from driftkit.runtime import device
from driftkit.runtime.device import autocast_dtype, choose_threads, resolve_device, training_dtype
from driftkit.runtime.environment import MALLOC_VARIABLES
from driftkit.runtime.terminal import say_once
from driftkit.storage.run_folder import Run
from tests.conftest import driftkit, train_tiny

CPU = torch.device("cpu")


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
def four_processors(monkeypatch):
    """The numbers of threads that torch is told to take, of four; nobody has set the variable."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "DEFAULT_THREADS", 4)
    monkeypatch.setattr(device, "usable_cpus", lambda: 4)
    monkeypatch.setattr(device, "free_cpus", lambda enough: 4.0)
    say_once.cache_clear()
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: taken[-1] if taken else 4)
    return taken


@pytest.mark.parametrize(
    ("free", "threads", "said"),
    [(3.9, 4, ""), (3.5, 4, ""), (None, 4, ""), (3.2, 3, "3 threads"), (1.4, 1, "1 thread "), (0.0, 1, "1 thread ")],
)
def test_threads_are_as_many_as_processors_are_free(monkeypatch, capsys, four_processors, free, threads, said):
    monkeypatch.setattr(device, "free_cpus", lambda enough: free)
    choose_threads(CPU)
    choose_threads(CPU)  # as the stages of a pipeline do
    assert four_processors == [threads, threads]
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == bool(said)


def test_the_number_of_threads_that_the_user_has_set_stays(monkeypatch, four_processors):
    monkeypatch.setattr(device, "free_cpus", lambda enough: 1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    choose_threads(CPU)
    choose_threads(CPU, before="cpu (x86_64, 2 threads)")
    assert four_processors == []


@pytest.mark.parametrize(
    ("before", "threads", "said"),
    [
        ("cpu (x86_64, 4 threads)", 4, ""),
        ("cpu (x86_64, 2 threads)", 2, "computing with 2 threads, as before"),
        ("cpu (x86_64, 1 thread)", 1, "computing with 1 thread, as before"),
        ("cpu (x86_64, 16 threads)", 3, "not bit for bit"),
        ("NVIDIA H100", 3, "computing with 3 threads instead of 4"),
        (None, 3, "computing with 3 threads instead of 4"),
    ],
)
def test_a_resumed_run_has_as_many_threads_as_before(monkeypatch, capsys, four_processors, before, threads, said):
    monkeypatch.setattr(device, "free_cpus", lambda enough: 3.0)
    choose_threads(CPU, before=before)
    assert four_processors == [threads]
    err = capsys.readouterr().err
    assert said in err
    assert bool(err) == bool(said)


def test_the_threads_of_a_resumed_run_are_not_those_of_what_comes_after_it(tmp_path, four_processors):
    train_tiny(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["device"].endswith("4 threads)")
    manifest["device"] = manifest["device"].replace("4 threads", "2 threads")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    train_tiny(tmp_path / "run", steps=3)
    train_tiny(tmp_path / "other")
    assert four_processors == [4, 2, 4]


def test_a_refused_command_says_one_line_on_a_busy_machine(tmp_path, monkeypatch, four_processors):
    monkeypatch.setattr(device, "free_cpus", lambda enough: 1.0)
    for line in (
        ["sample", tmp_path / "none"],
        ["fid", tmp_path / "none", "-r", "shapes"],
        ["train", "--data", "no.zip"],
    ):
        result = driftkit(*line)
        assert result.exit_code in (2, 3)
        assert result.stderr.count("\n") == 1
    assert four_processors == []


def test_what_was_freed_before_is_no_peak_of_what_comes_after():
    script = """
import torch
from driftkit.runtime.device import peak_memory_gib, reset_peak_memory
from driftkit.runtime.environment import keep_freed_memory
keep_freed_memory()
torch.ones(2**30, dtype=torch.uint8)
reset_peak_memory(torch.device("cpu"))
print(peak_memory_gib(torch.device("cpu")))
"""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(MALLOC_VARIABLES)}
    result = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 0.9
