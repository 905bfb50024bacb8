"""`driftkit fid` as typed: its document, its text, its errors."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from driftkit.cli.app import app
from driftkit.errors import MissingError
from tests.evaluation.fakes import FakePack, add_samples, make_run, random_images, tiny_extractor


@pytest.fixture
def data(monkeypatch, tmp_path):
    """One known reference, `real`."""

    def open_dataset(spec, *, image_size=None, limit=None, **_):
        if spec != "real":
            raise MissingError(f"{spec}: no such data")
        return FakePack(random_images(60, 50))

    module = ModuleType("driftkit.datasets.sources")
    module.open_dataset = open_dataset
    monkeypatch.setitem(sys.modules, "driftkit.datasets.sources", module)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def invoke(data, monkeypatch):
    """Runs the command with a tiny judge."""
    monkeypatch.setattr("driftkit.stages.fid.load_extractor", lambda name, **_: tiny_extractor())
    return lambda *words: CliRunner().invoke(app, ["fid", *map(str, words)])


def test_json_is_one_document_and_the_evaluation_lies_in_the_run(invoke, tmp_path):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = invoke(path, "--reference", "real", "--features", "encoder:tiny", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["name"] == "fid@16"
    assert document["metrics"]["fid"] > 0
    written = json.loads(Path(document["evaluation"]).read_text())
    assert written == {key: value for key, value in document.items() if key != "evaluation"}


def test_text_shows_score_floor_and_warnings(invoke, tmp_path):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = invoke(path, "--reference", "real", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    for word in ("fid@16", "kid", "precision", "two halves", "warning:", "encoder:tiny"):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 100


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["absent", "-r", "real"], 3, "found nothing"),
        (["{samples}"], 2, "--reference"),
        (["{samples}", "-r", "unreal"], 3, "unreal"),
        (["{samples}", "-r", "real", "--nfe", "3"], 2, "--nfe"),
        (["{samples}", "-r", "real", "--weights", "best"], 2, "ema or raw"),
        (["{samples}", "-r", "real", "--num-images", "99"], 2, "holds 16"),
        (["{samples}", "-r", "real", "--num-images", "1"], 5, "at least 2"),
        (["{samples}", "-r", "real", "--batch-size", "0"], 2, "--batch-size"),
        (["{samples}", "-r", "real", "--output", "x.txt"], 2, ".json"),
        (["{samples}", "-r", "real", "--image-size", "2"], 2, "--image-size"),
        (["{samples}", "-r", "real", "--device", "tpu"], 2, "auto, cpu or cuda"),
    ],
)
def test_errors_are_one_line_with_their_code(invoke, tmp_path, words, code, says):
    samples = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = invoke(*(w.format(samples=samples) for w in words))
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert result.stdout == ""


def test_unknown_features_are_a_usage_error(data, tmp_path):
    samples = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = CliRunner().invoke(app, ["fid", str(samples), "-r", "real", "--features", "incepton", "--device", "cpu"])
    assert result.exit_code == 2
    assert "expected inception, dinov2, encoder:RUN" in result.stderr
