"""Temperatures that change during training."""

from driftkit.storage.run_folder import Run
from tests.conftest import driftkit, train_tiny


def records_of(folder, *more, steps=3):
    train_tiny(folder, "drift", "--set", "objective.taus=[0.1]", *more, steps=steps)
    return Run(folder).metrics()


def test_later_temperatures_hold_after_their_steps_and_in_a_resumed_run(tmp_path):
    later = ["--set", "objective.later_taus=[0.05,0.2]", "--set", "objective.later_from=2"]
    plain, changing = records_of(tmp_path / "plain"), records_of(tmp_path / "changing", *later)
    measured = [{key for key in r["health"] if key.startswith("effective_points")} for r in changing]
    assert measured == [
        {"effective_points/tau 0.1"},
        {"effective_points/tau 0.1"},
        {"effective_points/tau 0.05", "effective_points/tau 0.2"},
    ]
    assert [r["loss"] for r in plain[:2]] == [r["loss"] for r in changing[:2]]
    # By construction the loss of one temperature is 1, and of two lies between 2 and 4.
    assert plain[2]["loss"] < 1.01
    assert 1.99 < changing[2]["loss"] < 4.01
    records_of(tmp_path / "parts", *later, steps=2)
    assert records_of(tmp_path / "parts", *later)[2]["terms"] == changing[2]["terms"]


def test_later_temperatures_without_a_step_are_refused(tmp_path):
    result = driftkit("train", "--set", "objective.later_taus=[0.05]", "--output", tmp_path / "run")
    assert (result.exit_code, "later_from" in result.stderr) == (2, True)
