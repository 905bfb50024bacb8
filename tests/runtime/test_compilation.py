"""When networks are compiled, and that convolutions are tried only while they should be."""

import json

import pytest
import torch
from pydantic import TypeAdapter

from driftkit.runtime import compilation
from driftkit.runtime.compilation import COMPILE_STEPS, decide_compilation, tried_convolutions
from driftkit.storage.run_folder import Run
from driftkit.training.train_config import CompileSetting
from tests.conftest import driftkit, train_tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def able(monkeypatch):
    monkeypatch.setattr(compilation, "_hindrance", lambda device: None)


@pytest.mark.parametrize(
    ("device", "steps", "compiled"),
    [(CPU, 10**6, False), (GPU, COMPILE_STEPS, True), (GPU, COMPILE_STEPS - 1, False), (GPU, 0, False)],
)
def test_auto_compiles_long_runs_on_a_gpu(able, device, steps, compiled):
    decided = decide_compilation("auto", device=device, steps_left=steps)
    assert decided.compiled == compiled
    assert ("cpu" if device == CPU else f"{steps:,} steps left") in decided.reason


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("setting", ["on", "off"])
def test_what_was_asked_for_is_done_anywhere(setting, device):
    assert decide_compilation(setting, device=device, steps_left=0).compiled == (setting == "on")


def test_auto_leaves_gpus_alone_that_nothing_is_compiled_for(monkeypatch):
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    assert decide_compilation("auto", device=GPU, steps_left=10**6).reason == "Triton is not installed"
    monkeypatch.undo()
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    decided = decide_compilation("auto", device=GPU, steps_left=10**6)
    assert (decided.compiled, decided.reason) == (False, "Triton knows no GPU of compute capability 6.1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert decide_compilation("auto", device=GPU, steps_left=10**6).compiled


def test_flags_are_settings():
    settings = TypeAdapter(CompileSetting)
    assert [settings.validate_python(value) for value in (True, False, "auto", "on")] == ["on", "off", "auto", "on"]
    with pytest.raises(ValueError, match="'auto', 'on' or 'off'"):
        settings.validate_python("yes")


@pytest.mark.parametrize(("flags", "setting"), [([], "auto"), (["--compile"], "on"), (["--no-compile"], "off")])
def test_the_command_line_says_on_or_off_and_is_silent_for_auto(flags, setting):
    document = json.loads(driftkit("train", "--dry-run", "--encoder", "pixel", "--json", *flags).stdout)
    assert document["config"]["trainer"]["compile"] == setting


def test_the_manifest_says_what_was_decided_and_a_resumed_run_may_decide_again(tmp_path):
    train_tiny(tmp_path / "run")
    told = Run(tmp_path / "run").manifest().compilation
    assert told == {"setting": "auto", "compiled": False, "reason": "on cpu it takes longer than it saves"}
    train_tiny(tmp_path / "run", "drift", "--no-compile", steps=3)
    assert Run(tmp_path / "run").manifest().compilation["setting"] == "off"


@pytest.mark.parametrize("fails", [False, True])
def test_convolutions_are_tried_inside_alone(fails):
    assert not torch.backends.cudnn.benchmark
    try:
        with tried_convolutions(wanted=True):
            assert torch.backends.cudnn.benchmark
            1 / (not fails)
    except ZeroDivisionError:
        assert fails
    assert not torch.backends.cudnn.benchmark
    with tried_convolutions(wanted=False):
        assert not torch.backends.cudnn.benchmark
