"""The whole comparison of `pipelines/cifar10-encoders.toml`, scaled down: every stage of it really runs."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from driftkit.cli.app import invoke
from driftkit.config.pipeline_file import Stage, load_pipeline
from driftkit.stages.run import run_pipeline
from driftkit.storage.run_folder import Run
from tests.conftest import TINY_MAE, TINY_UNET, driftkit, train_tiny

FILE = Path(__file__).parents[2] / "pipelines" / "cifar10-encoders.toml"
ENCODERS = ["dinov2-multires", "convnextv2", "mocov2", "resnet18", "dinov2", "pixel"]
SMALL_INPUTS = {"dinov2-multires": 28, "dinov2": 28, "convnextv2": 32, "mocov2": 32, "resnet18": 32, "pixel": 32}
SMALL = ["--batch-size", "4", "--steps", "1", "--sample-every", "0", "--device", "cpu"]


def changed(arguments: tuple[str, ...], **values: str) -> tuple[str, ...]:
    """The arguments with other values of some options."""
    words = list(arguments)
    for name, value in values.items():
        words[words.index(f"--{name.replace('_', '-')}") + 1] = value
    return tuple(words)


def scaled_down(stage: Stage, data: str, judge: Path) -> Stage:
    words = stage.arguments
    if stage.command == "train":
        at = words.index("--preset")
        network = TINY_MAE if "classifier" in words else TINY_UNET
        words = (*words[:at], *words[at + 2 :], "--data", data, *network, *SMALL)
        if "--encoder" in words:
            encoder = words[words.index("--encoder") + 1]
            words += ("--input-size", str(SMALL_INPUTS[encoder]))
            words += () if encoder == "pixel" else ("--random-weights",)
    elif stage.command == "sample":
        words = changed(words, num_images="40", **({"nfe": "3"} if "--nfe" in words else {}))
    elif stage.command == "fid":
        words = (*changed(words, reference=data, extractor=f"encoder:{judge}"), "--allow-collapsed")
    return replace(stage, arguments=words)


def test_the_file_shows_the_lines_for_one_gpu_and_for_eight():
    result = driftkit("run", FILE, "--dry-run")
    assert result.exit_code == 0, result.output
    for encoder in ENCODERS:
        line = f"train --encoder {encoder} --preset cifar10-multires --output outputs/drift_{encoder}"
        assert f"  driftkit {line}\n" in result.stdout
        assert f"  torchrun --nproc-per-node=8 -m driftkit {line}\n" in result.stdout
    document = json.loads(driftkit("run", FILE, "--dry-run", "--nproc", "8", "--json").stdout)
    trainings = [stage["command"] for stage in document["stages"] if "torchrun" in stage]
    assert len(trainings) == 9
    assert all(command.startswith("torchrun --nproc-per-node=8") for command in trainings)


@pytest.mark.slow
def test_every_stage_of_the_comparison_runs(tmp_path):
    data = os.environ.get("DRIFTKIT_TEST_CIFAR10", "")
    if data:
        driftkit("data", data, "--limit", "120", "--output", tmp_path / "images.safetensors")
        data = str(tmp_path / "images.safetensors")
    else:
        data = "shapes?image_size=32&count=120"
    train_tiny(tmp_path / "judge", "mae", "--data", data)
    pipeline = load_pipeline(FILE, output=tmp_path / "out")
    pipeline = replace(pipeline, stages=tuple(scaled_down(s, data, tmp_path / "judge") for s in pipeline.stages))
    records = run_pipeline(pipeline, invoke)
    assert [record["state"] for record in records] == ["done"] * 26
    for encoder in ENCODERS:
        manifest = Run(tmp_path / "out" / f"drift_{encoder}").manifest()
        assert manifest.state == "done"
        assert manifest.encoder["random_weights"] == (encoder != "pixel")
    report = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "random weights" in report
    assert all(f"drift_{encoder}" in report for encoder in ENCODERS)
    assert all(record["state"] == "skipped" for record in run_pipeline(pipeline, invoke))
