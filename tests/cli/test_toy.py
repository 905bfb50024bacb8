"""`driftkit toy` as typed: its document, its files, toys side by side, and as stages of a pipeline."""

import json
from pathlib import Path

import pytest
from PIL import Image

from driftkit.storage.files import read_json
from driftkit.tutorial import toy_figure
from tests.conftest import document, driftkit

TINY = ["--points", "two-modes", "--steps", "3", "-b", "8", "--set", "frames=3"]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_toy_writes_an_animation_a_still_and_its_record():
    made = document("toy", *TINY, "--start", "far", "--repulsion", "1.5", "--output", "t")
    assert made == read_json(Path("t/toy.json"))
    assert (made["kind"], made["points"], made["start"], made["repulsion"]) == ("toy", "two-modes", "far", 1.5)
    assert len(made["drift_norm"]) == 3
    assert made["shown_steps"] == [0, 1, 3]
    assert made["path"] == "t/toy.gif"
    assert set(made["files"]) == {"toy.gif", "toy.png"}
    with Image.open("t/toy.gif") as animation:
        assert (animation.n_frames, animation.info["loop"], animation.size) == (3, 0, (400, 490))
        assert animation.convert("RGB").getpixel((2, 100)) == (255, 255, 255)
    with Image.open("t/toy.png") as still:
        still.verify()


def test_the_same_settings_give_the_same_bytes_over_what_was_there():
    document("toy", *TINY, "--output", "t")
    before = contents("t")
    document("toy", *TINY, "--output", "t")
    assert contents("t") == before
    document("toy", *TINY, "--output", "t", "--seed", "1")
    assert contents("t")["toy.json"] != before["toy.json"]


def test_text_says_what_was_reached_and_where_it_is():
    text = driftkit("toy", *TINY).stdout
    for words in ("energy distance", "real against real", "of 2 modes", "outputs/toy/two-modes-middle/toy.gif"):
        assert words in text
    driftkit("toy", *TINY, "--repulsion", "0")
    assert Path("outputs/toy/two-modes-middle-1-0/toy.gif").is_file()


def test_toys_side_by_side_are_one_animation_and_one_table():
    document("toy", *TINY, "--output", "a")
    document("toy", *TINY, "--attraction", "1.5", "--output", "b")
    table = document("toy", "a", "b", "--output", "c", "--set", "frames=2")
    assert table == read_json(Path("c/toys.json"))
    assert [(row["name"], row["attraction"]) for row in table["toys"]] == [("a", 1.0), ("b", 1.5)]
    assert table["toys"][0]["scores"] == read_json(Path("a/toy.json"))["scores"]
    with Image.open("c/toys.gif") as animation:
        assert (animation.n_frames, animation.size) == (2, (496, 304))
    Path("b/toy.gif").write_bytes(Path("b/toy.gif").read_bytes()[:30])
    result = driftkit("toy", "a", "b", "--output", "d")
    assert result.exit_code == 3
    assert "b/toy.gif" in result.stderr
    assert not Path("d").exists()


def test_animations_of_strangers_are_read_in_bounds(monkeypatch):
    document("toy", *TINY, "--output", "a")
    monkeypatch.setattr(toy_figure, "MAX_PIXELS", 3 * 400 * 490)
    document("toy", "a", "--output", "b", "--set", "frames=2")
    monkeypatch.setattr(toy_figure, "MAX_PIXELS", 3 * 400 * 490 - 1)
    result = driftkit("toy", "a", "--output", "c", "--set", "frames=2")
    assert (result.exit_code, "400x490 pixels, 3 pictures: no toy" in result.stderr) == (3, True)
    content = Path("a/toy.gif").read_bytes()
    Path("a/toy.gif").write_bytes(content[:6] + b"\xff" * 4 + content[10:])
    result = driftkit("toy", "a", "--output", "c")
    assert (result.exit_code, "(a bug" in result.stderr) == (3, False)


def test_variables_for_training_do_not_stop_toys_side_by_side(monkeypatch):
    document("toy", *TINY, "--output", "a")
    monkeypatch.setenv("DRIFTKIT_TOY_STEPS", "3")
    document("toy", "a", "--output", "b", "--set", "frames=2")


def test_verify_compares_the_pictures_with_their_checksums():
    document("toy", *TINY, "--output", "t")
    result = json.loads(driftkit("verify", "t", "--json").stdout)
    assert (result["ok"], result["notes"]) == (True, [])
    Path("t/toy.gif").write_bytes(Path("t/toy.gif").read_bytes()[:-9])
    result = json.loads(driftkit("verify", "t", "--json").stdout)
    assert [problem["path"] for problem in result["problems"]] == ["t/toy.gif"]


CHAIN = """
output = "out"
[[stage]]
each = [{ id = "a", repulsion = 1 }, { id = "b", repulsion = 0 }]
name = "{id}"
command = "toy"
repulsion = "{repulsion}"
steps = 3
batch_size = 8
set = { frames = 3 }
output = "{output}/{id}"

[[stage]]
name = "all"
command = "toy"
toys = ["{output}/a", "{output}/b"]
set = { frames = 2 }
output = "{output}/all"
"""


def states(text=CHAIN):
    Path("chain.toml").write_text(text)
    result = driftkit("run", "chain.toml", "--json")
    assert result.exit_code == 0, result.output
    return [stage["state"] for stage in json.loads(result.stdout)["stages"]]


def test_stages_are_skipped_when_done_and_run_again_when_changed_or_gone():
    assert states() == ["done", "done", "done"]
    assert states() == ["skipped", "skipped", "skipped"]
    assert states(CHAIN.replace("repulsion = 0", "repulsion = 2")) == ["skipped", "done", "done"]
    Path("out/a/toy.gif").unlink()
    assert states(CHAIN.replace("repulsion = 0", "repulsion = 2")) == ["done", "skipped", "done"]


@pytest.mark.parametrize("points", ["checkerboard", "swiss-roll"])
def test_the_other_distributions_train(points):
    made = document("toy", "--points", points, "--start", "collapsed", *TINY[2:], "--output", points)
    assert made["scores"]["num_modes"] == 8
