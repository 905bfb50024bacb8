"""A real lack of memory, in a process with a limit: explained, and what is advised fits under the same limit."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from driftkit.methods.drifting.objective import Drifting
from driftkit.models.unet import UNet
from driftkit.storage.run_folder import Run
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, first_is_fast, train_tiny

PROGRAM = """
import json, resource, sys
from pathlib import Path
import driftkit.training.budget, driftkit.scoring.evaluator, driftkit.training.sampling, driftkit.stages.train
from typer.testing import CliRunner
from driftkit.cli.app import app

PAGE = resource.getpagesize()

def limited(words, mib):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (size + mib * 2**20, hard))
    done = CliRunner().invoke(app, words)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return {"code": done.exit_code, "stderr": done.stderr}

for line in sys.stdin:
    words, mib = json.loads(line)
    print(json.dumps(limited(words, mib)), flush=True)
"""
UNET = ["--set", "model.base_channels=16", "--set", "model.channel_multipliers=[1,2]", "--set", "model.num_heads=2",
        "--set", "model.attention_resolutions=[]", "--set", "model.num_res_blocks=1"]  # fmt: skip
TRAIN = ["train", "--data", "shapes?image_size=16&count=1024", *UNET, "--sample-every", "0", "--device", "cpu"]
MIB = 300


@pytest.fixture(scope="module")
def limited():
    """Runs a command line with little memory, in one process for all."""
    # Else every new thread reserves address space for an arena of its own, which the limit counts and nobody uses, and
    # blocks that were freed stay in pieces.
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    environment = {**os.environ, **allocator, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:

        def run(*words, mib=MIB):
            process.stdin.write(json.dumps([[str(word) for word in words], mib]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space are Linux's")
@pytest.mark.parametrize("objective", first_is_fast("ddpm", "drift"))
def test_a_step_without_memory_is_explained_and_the_advice_fits(objective, limited, tmp_path):
    words = [*TRAIN, "--objective", objective, *(["--encoder", "pixel"] if objective == "drift" else [])]
    words += ["--batch-size", 1024, "--output", tmp_path / "run"]
    done = limited(*words, "--steps", 1)
    assert done["code"] == 4, done
    said = done["stderr"]
    assert "Traceback" not in said
    assert said.count("\n") == 1
    assert re.search(r"out of memory in the (network|backward pass)", said)
    assert "batch 1024 in micro-batches of 1024" in said
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "failed"
    [micro] = re.findall(r"(?:--micro-batch|trainer.micro_batch)`? (\d+) would take", said)
    again = limited(*words, "--steps", 1, "--micro-batch", micro)
    assert again["code"] == 0, again
    done = limited(*words, "--steps", 2)
    assert done["code"] == 4, done
    assert Run(tmp_path / "run").checkpoint().step == 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space are Linux's")
def test_sampling_without_memory_names_a_batch_that_fits(limited, tmp_path):
    done = limited(
        *TRAIN, "--encoder", "pixel", "--batch-size", 2, "--steps", 0, "--output", tmp_path / "run", mib=2000
    )
    assert done["code"] == 0, done
    words = ["sample", tmp_path / "run", "--num-images", 2048, "--output", tmp_path / "images.safetensors"]
    done = limited(*words, "--batch-size", 2048, mib=75)
    assert done["code"] == 4, done
    assert not (tmp_path / "images.safetensors").exists()
    [fits] = re.findall(r"sampling takes 2048 images at a time; --batch-size (\d+) fits", done["stderr"])
    done = limited(*words, "--batch-size", fits, mib=75)
    assert done["code"] == 0, done


@pytest.mark.slow
def test_a_gpu_without_memory_is_explained_like_a_cpu(tmp_path, monkeypatch):
    train_tiny(tmp_path / "run", steps=2)

    def generate(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.1 GiB")

    monkeypatch.setattr(Drifting, "_generate", generate)
    line = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--output", tmp_path / "run"]
    result = driftkit(*line, "--steps", 4)
    assert result.exit_code == 4, result.output
    assert "(2.0 GiB at once)" in result.stderr
    assert "batch 4 in micro-batches of 4, field workspace 16 MiB" in result.stderr
    assert Run(tmp_path / "run").checkpoint().step == 2

    def forward(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.1 GiB")

    monkeypatch.setattr(UNet, "forward", forward)
    result = driftkit("sample", tmp_path / "run")
    assert result.exit_code == 4, result.output
    assert "not even one image fits" in result.stderr
