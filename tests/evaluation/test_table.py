"""Summaries of runs, and score tables that never mix evaluators."""

import pytest

from driftkit.artifacts.files import write_json
from driftkit.evaluation.table import (
    evaluator_key,
    format_count,
    format_score,
    format_seconds,
    read_evaluations,
    score_tables,
    summarise,
    thin,
    unique_labels,
)
from tests.evaluation.fakes import evaluation, make_run


def test_summary_of_a_drifting_run(tmp_path):
    summary = summarise(make_run(tmp_path / "drift"), label="drift")
    assert (summary.method, summary.encoder, summary.steps, summary.images_seen) == ("drift", "mae", 30, 120)
    assert summary.drift_norm == pytest.approx(1 / 30)
    assert [p["step"] for p in summary.curve] == [10, 20, 30]
    assert summary.warnings == []


def test_summary_bears_a_manifest_that_tells_nothing(tmp_path):
    run = make_run(tmp_path / "bare")
    write_json(run.manifest_path, {"format": 1, "kind": "run", "config": {"objective": "odd", "data": None}})
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


def test_curves_are_thinned_by_averaging():
    points = thin([{"step": i, "loss": float(i), "health": {}} for i in range(1, 1001)], most=100)
    assert len(points) == 100
    assert points[0] == {"step": 10.0, "images": None, "seconds": None, "loss": 5.5, "drift_norm": None}


def test_labels_are_told_apart_by_as_many_parents_as_it_takes(tmp_path):
    paths = [tmp_path / "a" / "drift", tmp_path / "b" / "drift", tmp_path / "ddpm"]
    assert unique_labels(paths) == ["a/drift", "b/drift", "ddpm"]


@pytest.mark.parametrize(
    "change",
    [
        {"extractor": {"name": "inception", "weights_digest": "ab", "resize": "r"}},
        {"extractor": {"name": "encoder:tiny", "weights_digest": "other", "resize": "r"}},
        {"extractor": {"name": "encoder:tiny", "weights_digest": "ab", "resize": "other"}},
        {"reference": {"spec": "real", "digest": "other"}},
        {"num_images": 999},
    ],
    ids=["extractor", "weights", "resize", "reference", "count"],
)
def test_other_evaluators_get_a_table_of_their_own(change):
    first, second = evaluation(5.0), {**evaluation(6.0), **change}
    assert evaluator_key(first) != evaluator_key(second)
    tables = score_tables([("a", first), ("b", second)])
    assert [len(t.rows) for t in tables] == [1, 1]


def test_rows_are_sorted_by_score_and_seeds_are_averaged():
    documents = [("a", evaluation(8.0, seed=s)) for s in (0, 1)] + [("a", evaluation(11.0, seed=2))]
    (table,) = score_tables([*documents, ("b", evaluation(5.0))])
    assert [r.run for r in table.rows] == ["b", "a"]
    row = table.rows[1]
    assert row.metrics["fid"] == pytest.approx(9.0)
    assert row.spread["fid"] == pytest.approx(3**0.5)
    assert row.fid_values == [8.0, 8.0, 11.0]
    assert row.seeds == [0, 1, 2]
    assert table.rows[0].spread == {}


def test_table_shows_the_last_step_and_history_all():
    (table,) = score_tables([("a", evaluation(fid, step=step)) for step, fid in ((10, 9.0), (30, 4.0), (20, 6.0))])
    assert [(r.step, r.metrics["fid"]) for r in table.rows] == [(30, 4.0)]
    assert [r.step for r in table.history] == [10, 20, 30]


def test_samplers_and_weights_are_rows_of_their_own():
    documents = [evaluation(1.0), evaluation(2.0, nfe=10), evaluation(3.0, weights="raw")]
    documents += [evaluation(4.0, sampler_options={"eta": 1.0}), evaluation(5.0, own_teacher=True, nfe=2)]
    (table,) = score_tables([("a", d) for d in documents])
    assert len(table.rows) == 5
    assert table.rows[2].badges == ["raw weights", "small N"]
    assert table.rows[3].sampler == "ddim eta=1.0"
    assert "judged by its own teacher" in table.rows[4].badges


def test_broken_and_foreign_evaluations_are_named_and_left_out(tmp_path):
    run = make_run(tmp_path / "drift")
    folder = run.path / "evaluations"
    write_json(folder / "good.json", evaluation(3.0))
    write_json(folder / "foreign.json", {"kind": "weather"})
    write_json(folder / "empty.json", {**evaluation(3.0), "metrics": {}})
    (folder / "cut.json").write_text('{"kind": "eval')
    found, problems = read_evaluations(run)
    assert [d["metrics"]["fid"] for d in found] == [3.0]
    assert len(problems) == 3
    assert all(any(name in p for p in problems) for name in ("foreign", "empty", "cut"))


def test_numbers_are_shown_for_people():
    assert [format_count(v) for v in (None, 12, 1234, 38_300_000)] == ["–", "12", "1,234", "38.3 M"]
    assert [format_seconds(v) for v in (None, 42.4, 600, 9000)] == ["–", "42 s", "10 min", "2.5 h"]
    assert [format_score(v) for v in (None, 0.0, 3.14159, 1234.5, 0.01234)] == [
        "–",
        "0.0000",
        "3.14",
        "1,234.5",
        "0.0123",
    ]
