"""The generator that the repository ships draws images, and is what its card and checksums say."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import driftkit

PRETRAINED = Path(__file__).parents[2] / "pipelines" / "pretrained"
FOLDERS = sorted(path.parent for path in PRETRAINED.glob("*/manifest.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_generator_draws_images_that_differ(folder, tmp_path):
    result = driftkit("sample", folder, "--num-images", 8, "--output", tmp_path / "a.safetensors")
    assert result.exit_code == 0, result.output
    images = load_file(tmp_path / "a.safetensors")["images"]
    assert images.shape == (8, 3, 32, 32)
    assert images.float().std(0).mean() > 20  # of 255: they are not all alike


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_folder_is_small_and_whole(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4e6
    assert driftkit("verify", folder).exit_code == 0
    scores = json.loads((folder / "model.json").read_text())["scores"]
    assert any("kin evaluator" not in score["warnings"] for score in scores)  # by one that did not train it


def test_there_is_one():
    assert FOLDERS
