"""Tiny images, runs and command lines that many tests share."""

import json
import os
import socket
from pathlib import Path

from driftkit.runtime.environment import usable_cpus

# torch reads them when it is imported, and so do the commands that tests start: all compute with as many threads.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else str(usable_cpus()))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from typer.testing import CliRunner

from driftkit.cli.app import app
from driftkit.datasets.packs import ImagePack, PackCard, PackSource, content_sha256
from driftkit.methods.base import Setting
from driftkit.models.unet import UNetConfig
from driftkit.runtime.ranks import Ranks
from driftkit.storage.checksums import write_checksums
from driftkit.storage.files import read_tensors, write_tensors
from driftkit.storage.run_folder import Run
from tests.tiny import TINY_DATA, TINY_LOOP, TINY_MAE, TINY_UNET


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every test works in its own folder, with its own packs, and leaves torch's generators as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTKIT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DRIFTKIT_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_cpu():
    """Trainings in the process of the tests are float32 on every CPU, also on those that multiply bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("driftkit.runtime.device.cpu_multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_hub():
    """No test waits for a network that is not there."""
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and empty caches of weights."""

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.delenv("DRIFTKIT_INCEPTION_WEIGHTS", raising=False)


def setting(images: torch.Tensor, ranks: Ranks | None = None, **changes: object) -> Setting:
    """What an objective is built in: unlabelled uint8 images on the CPU."""
    labels = torch.full((len(images),), -1)
    source = PackSource(spec="test", kind="folder")
    card = PackCard(
        name="test", count=len(images), classes=(), height=images.shape[2],
        width=images.shape[3], sha256=content_sha256(images, labels), source=source, label="test",
    )  # fmt: skip
    pack = ImagePack(Path("test.safetensors"), images, labels, (), card)
    known = {"network": UNetConfig(), "training": torch.arange(len(images)), "held_out": torch.arange(0), "flips": True,
             "dtype": torch.float32, "compile": False, "device": torch.device("cpu"),
             "ranks": ranks or Ranks(), "global_batch": 8}  # fmt: skip
    return Setting(pack, **{**known, **changes})


def first_is_fast(*values: object) -> list[object]:
    """Values of a parametrization of which the default run takes the first alone; the others are slow."""
    first, *others = values
    wrap = [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in others]
    return [first, *wrap]


def free_port() -> int:
    """A port that no program listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def driftkit(*words: object):
    """Run one command line in this process."""
    return CliRunner().invoke(app, [str(w) for w in words])


def done(*words: object):
    """Run one command line that succeeds."""
    result = driftkit(*words)
    assert result.exit_code == 0, result.output
    return result


def document(*words: object):
    """What a command line that succeeds says as JSON."""
    return json.loads(done(*words, "--json").stdout)


def train_tiny(output: Path, objective: str = "drift", *more: object, steps: int = 2):
    """Train a tiny run of any objective; drift on pixels unless `more` says otherwise."""
    words = [] if objective != "drift" or "--encoder" in more else ["--encoder", "pixel"]
    model = TINY_MAE if objective in ("mae", "classifier") else TINY_UNET
    line = ["train", "--objective", objective, *words, *TINY_DATA, *model, *TINY_LOOP]
    return done(*line, "--steps", steps, "--output", output, *more)


def replace_weights(run: Path, which: str, tensors: dict[str, torch.Tensor]) -> None:
    """Put other tensors into a run's last checkpoint, with checksums that fit."""
    checkpoint = Run(run).checkpoint()
    path = checkpoint.path / f"{which}.safetensors"
    write_tensors(path, tensors, header=read_tensors(path)[1])
    write_checksums(checkpoint.path)


def pytest_collection_modifyitems(items):
    """Tests that need what is not here are skipped, and say what it is."""
    for item in items:
        if "real_data" in item.keywords and not os.environ.get("DRIFTKIT_TEST_CIFAR10"):
            item.add_marker(pytest.mark.skip(reason="DRIFTKIT_TEST_CIFAR10 names no zip of CIFAR-10 images"))
        if "weights" in item.keywords and not os.environ.get("DRIFTKIT_TEST_WEIGHTS"):
            item.add_marker(pytest.mark.skip(reason="DRIFTKIT_TEST_WEIGHTS is not set: published weights are not read"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
