"""What is read of runs: summaries, labels, costs at a step, differences of their configs."""

import pytest

from driftkit.comparison.run_summary import differences, equality_notes, summarise, thin, unique_labels
from driftkit.storage.files import write_json
from tests.scoring.fakes import make_run


def test_summary_of_a_drifting_run(tmp_path):
    summary = summarise(make_run(tmp_path / "drift"), label="drift")
    assert (summary.method, summary.encoder, summary.steps, summary.images_seen) == ("drift", "mae", 30, 120)
    assert summary.drift_norm == pytest.approx(1 / 30)
    assert [p["step"] for p in summary.curve] == [10, 20, 30]
    assert summary.warnings == []


def test_summary_bears_a_manifest_that_tells_nothing(tmp_path):
    run = make_run(tmp_path / "bare")
    write_json(run.manifest_path, {"kind": "run", "format_version": 1, "id": "1", "created": "",
                                    "config": {"objective": "odd", "data": None}})  # fmt: skip
    run.metrics_path.write_text('{"step": "x", "loss": null, "health": 3}\n')
    summary = summarise(run, label="bare")
    assert summary.method == "unknown"
    assert summary.parameters is None
    assert summary.loss is None


def test_random_weights_and_unfinished_training_are_warned_about(tmp_path):
    run = make_run(tmp_path / "drift", encoder={"name": "mocov2", "random_weights": True}, state="interrupted")
    summary = summarise(run, label="drift")
    assert summary.random_weights
    assert "random weights" in summary.warnings[0]
    assert "interrupted" in summary.warnings[1]


def test_scores_on_the_way_are_read_with_what_made_them(tmp_path):
    run = make_run(tmp_path / "drift")
    assert summarise(run, label="drift").scored_by is None
    config = run.manifest().config
    how = {"every": 10, "features": "inception", "num_images": 500, "reference": "photos.zip"}
    run.update(config={**config, "evaluation": how})
    run.append_metrics({"step": 40, "health": {"fid@500": 3.5}})
    summary = summarise(run, label="drift")
    assert summary.scored_by == "fid@500 by inception against photos.zip"
    assert [p["score"] for p in summary.curve] == [None, None, None, 3.5]


def test_curves_are_thinned_by_averaging():
    points = thin([{"step": i, "loss": float(i), "health": {}} for i in range(1, 1001)], most=100)
    assert len(points) == 100
    assert points[0] == {
        "step": 10.0, "images": None, "seconds": None, "loss": 5.5, "drift_norm": None, "spread": None, "score": None
    }  # fmt: skip


def test_labels_are_told_apart_by_as_many_parents_as_it_takes(tmp_path):
    paths = [tmp_path / "a" / "drift", tmp_path / "b" / "drift", tmp_path / "ddpm"]
    assert unique_labels(paths) == ["a/drift", "b/drift", "ddpm"]


def test_cost_at_a_step_is_read_off_the_metrics(tmp_path):
    summary = summarise(make_run(tmp_path / "drift"), label="drift")
    assert summary.cost_at(0, "seconds") == 0.0
    assert summary.cost_at(15, "step") == 15.0
    assert summary.cost_at(15, "seconds") == pytest.approx(6.0)  # between the records at 10 and at 20
    assert summary.cost_at(5, "images") == pytest.approx(20.0)
    assert summary.cost_at(30, "seconds") == 12.5  # the manifest's own total
    assert summary.cost_at(31, "seconds") is None


def test_config_keys_that_differ_are_listed_run_by_run(tmp_path):
    first = summarise(make_run(tmp_path / "a"), label="a")
    second = summarise(make_run(tmp_path / "b", "ddpm", steps=20), label="b")
    assert differences([first, second]) == {
        "objective.name": ["drift", "ddpm"],
        "objective.encoder": ["outputs/mae", None],
        "trainer.steps": [30, 20],
    }
    assert differences([first]) == {}


def test_inequalities_are_sentences(tmp_path):
    runs = [summarise(make_run(tmp_path / name, **more), label=name) for name, more in (
        ("a", {}), ("b", {"parameters": 5}), ("c", {"device": "H100"}))]  # fmt: skip
    text = " ".join(equality_notes(runs))
    assert "sizes of network" in text
    assert "training times are those of different machines" in text
    assert "image sizes" not in text
    assert equality_notes(runs[:1]) == []
