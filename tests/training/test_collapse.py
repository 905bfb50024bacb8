"""Collapse is told once per episode, recorded, shown by compare, and stops a run that asked for it."""

import pytest

from driftkit.comparison.run_summary import summarise
from driftkit.storage.files import read_json
from driftkit.storage.run_folder import Run
from driftkit.training.collapse import CollapseWatch
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit

# The output layer starts at zero: without learning every image is grey.
STUCK = ["--learning-rate", "1e-12"]


def line(output, *more, steps):
    words = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--sample-every", 0]
    return [*words, "--set", "trainer.collapse_patience=20", "--steps", steps, "--output", output, *more]


def watched(spreads, *, patience=3):
    watch = CollapseWatch(threshold=0.1, patience=patience)
    return watch, [step for step, spread in enumerate(spreads) if watch.see(spread, step=step)]


def test_an_episode_is_told_once_after_the_patience_and_again_after_recovery():
    watch, told = watched([0.0, 0.0, 0.5, 0.05, 0.05, 0.04, 0.05, 0.02, 0.03, 0.2, 0.0, 0.0, 0.0, 0.01])
    assert told == [6, 13]
    known = watch.document()
    assert (known["first_step"], known["episodes"], known["now"], known["below_since"]) == (3, 2, True, 10)
    assert (known["worst_spread"], known["worst_step"]) == (0.01, 13)


@pytest.mark.parametrize("spreads", [[0.0, 0.01, 0.05, 0.3, 0.9], [0.5, 0.05, 0.05, 0.2, 0.05, 0.05, 0.3], [0.1] * 9])
def test_untrained_starts_and_dips_are_no_collapse(spreads):
    watch, told = watched(spreads)
    assert told == []
    assert watch.document() is None


def test_the_watch_goes_on_where_it_was_saved():
    spreads = [0.05, 0.5, 0.04, 0.03, 0.02, 0.01, 0.01, 0.5, 0.0]
    whole, _ = watched(spreads)
    for cut in range(len(spreads)):
        first, _ = watched(spreads[:cut])
        second = CollapseWatch(threshold=0.1, patience=3)
        second.restore(first.state())
        for step in range(cut, len(spreads)):
            second.see(spreads[step], step=step)
        assert second.known == whole.known


def test_a_collapsed_run_warns_once_is_recorded_and_compare_says_so(tmp_path):
    result = driftkit(*line(tmp_path / "run", *STUCK, steps=40))
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: collapse: since step 1 ") == 1
    assert "COLLAPSED" in result.stderr
    records = Run(tmp_path / "run").metrics()
    assert [r["step"] for r in records if r["health"].get("collapsed")] == list(range(21, 41))
    known = read_json(tmp_path / "run" / "manifest.json")["collapse"]
    assert (known["first_step"], known["episodes"], known["now"]) == (1, 1, True)
    assert known["worst_spread"] < 0.01
    [warning] = summarise(Run(tmp_path / "run"), label="run").warnings
    assert "collapse in training from step 1: generated features spread" in warning


def test_a_run_that_learns_does_not_warn(tmp_path):
    result = driftkit(*line(tmp_path / "run", "--batch-size", 16, "--learning-rate", "1e-3", steps=60))
    assert result.exit_code == 0, result.output
    assert "collapse" not in result.stderr
    assert read_json(tmp_path / "run" / "manifest.json")["collapse"] is None


def test_a_kernel_that_tells_no_points_apart_collapses(tmp_path):
    learns = ["--batch-size", 16, "--learning-rate", "1e-3"]
    result = driftkit(*line(tmp_path / "run", *learns, "--set", "objective.taus=[50]", steps=60))
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: collapse") == 1


def test_fail_on_collapse_saves_and_ends_with_5_and_again_when_resumed(tmp_path):
    words = line(tmp_path / "run", *STUCK, steps=60)
    result = driftkit(*words, "--fail-on-collapse")
    assert result.exit_code == 5, result.output
    assert "stopped at step 21, state saved" in result.stderr
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["state"] == "failed"
    assert "collapsed" in manifest["failure"]
    assert Run(tmp_path / "run").checkpoint().step == 21
    again = driftkit(*words, "--fail-on-collapse")
    assert again.exit_code == 5
    assert Run(tmp_path / "run").checkpoint().step == 22
    without = driftkit(*words)
    assert without.exit_code == 0, without.output
    assert "warning: collapse" not in without.stderr  # it is the same episode
    assert read_json(tmp_path / "run" / "manifest.json")["collapse"]["episodes"] == 1


@pytest.mark.parametrize("objective", ["ddpm", "mae"])
def test_a_method_whose_steps_generate_nothing_refuses_the_option(objective, tmp_path):
    result = driftkit("train", "--objective", objective, *TINY_DATA, "--fail-on-collapse", "--output", tmp_path / "x")
    assert result.exit_code == 2
    assert "generates no images" in result.stderr
    assert not (tmp_path / "x").exists()
