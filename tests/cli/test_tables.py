"""Tables fit a terminal of 80 columns: every frame closes, and no word is cut off."""

import shutil
from itertools import groupby
from pathlib import Path

import pytest

from driftkit.storage.files import write_json
from tests.conftest import driftkit, train_tiny
from tests.scoring.fakes import KIN, add_samples, evaluation, make_pack, make_run, random_images, tiny_extractor

FRAME = "┏┗┡└├┃│"
LONG_NAME = "drift_with_quite_a_long_name_indeed"
TOY = ["--points", "two-modes", "--steps", "2", "-b", "8", "--set", "frames=2"]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def shown(*words, code=0):
    """What a command prints, whose tables are whole."""
    result = driftkit(*words)
    assert result.exit_code == code, result.output
    for framed, lines in groupby(result.stdout.splitlines(), lambda line: line[:1] in FRAME and line != ""):
        widths = {len(line) for line in lines} if framed else {0}
        assert len(widths) == 1, result.stdout
        assert max(widths) <= 80, result.stdout
    assert "…" not in result.stdout
    return result.stdout


@pytest.fixture
def scored(monkeypatch):
    """Two runs with evaluations and samples, and a pack of real images."""
    monkeypatch.setattr("driftkit.scoring.evaluator.load_extractor", lambda name, **_: tiny_extractor())
    make_pack(Path("real.safetensors"), random_images(60, 50))
    for name, objective, more in ((LONG_NAME, "drift", {"kinship": KIN}), ("ddpm", "ddpm", {})):
        run = make_run(Path(name), objective)
        write_json(run.path / "evaluations" / "a.json", evaluation(9.0, **more))
        add_samples(run)


@pytest.mark.usefixtures("scored")
def test_scores():
    samples = next(Path("ddpm").rglob("*.safetensors"))
    assert "real images get" in shown("fid", samples, "-r", "real", "--device", "cpu")


@pytest.mark.usefixtures("scored")
def test_scores_against_steps():
    train_tiny(Path("run"), "flow", steps=1)
    words = ["-r", "real", "-n", "10", "--nfe", "1", "--all-checkpoints", "--allow-collapsed", "--device", "cpu"]
    assert "images seen" in shown("fid", "run", *words)


@pytest.mark.usefixtures("scored")
def test_runs_side_by_side():
    text = shown("compare", "ddpm", LONG_NAME, "--no-speed", "--no-neighbours", "--device", "cpu")
    tables = text.partition("\nNo evaluator")[0].splitlines()
    assert max(len(line.rstrip()) for line in tables) <= 80
    assert {"memory", "progress", "Precision", "images/s"} <= set(text.split())


def test_encoders():
    text = shown("probe-encoder", "--list")
    for words in ("aimv2", "model: resnet50", "licence: Apache-2.0", "feature set: multires", "maps: block3, block6"):
        assert words in text


def test_the_list_of_encoders_is_one_table_where_there_is_room(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert {"trained", "licence", "here"} <= set(driftkit("probe-encoder", "--list").stdout.splitlines()[2].split())


def test_a_probe():
    data = ["--data", "shapes?image_size=8&count=64", "-n", "32", "-b", "8", "--no-speed", "--device", "cpu"]
    assert "field call" in shown("probe-encoder", "pixel", *data)


def test_shapes_of_several_encoders():
    assert "encoders" not in shown("probe-encoder", "pixel", "pixel?feature_set=global")


def test_the_plan_of_a_training():
    plan = shown("train", "--data", "shapes", "--encoder", "pixel", "--preset", "demo", "--dry-run")
    assert "trainer.steps" in plan
    assert "trainer.rank_timeout" not in plan  # a default
    assert "further keys have their default" in plan


def test_toys():
    shown("toy", *TOY, "--output", "b")
    shutil.copytree("b", "a-toy-with-a-long-name")
    assert "spacing" in shown("toy", "a-toy-with-a-long-name", "b", "--output", "both")


def test_images():
    assert "circle" in shown("data", "shapes?image_size=8&count=64")


def test_the_machine():
    lines = shown("doctor", "--offline").splitlines()
    assert max(len(line.rstrip()) for line in lines if not line.startswith("warning:")) <= 80


def test_damage():
    make_run(Path("run"), "ddpm")  # which has no checkpoint
    assert max(map(len, shown("verify", "run", code=3).splitlines())) <= 80
