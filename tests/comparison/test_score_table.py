"""Score tables that never mix evaluators."""

import csv
import io
from pathlib import Path

import pytest

from driftkit.comparison.charts import all_charts
from driftkit.comparison.run_summary import summarise
from driftkit.comparison.score_table import (
    evaluator_key,
    nfe_budgets,
    record_fields,
    score_records,
    score_tables,
    to_csv,
    training_budgets,
)
from driftkit.comparison.speed import Speed
from driftkit.encoders.lineage import Lineage
from driftkit.scoring.evaluation_record import EvaluationRecord
from driftkit.storage.records import WeightsOrigin
from tests.scoring.fakes import KIN, evaluation, evaluation_record, make_run


@pytest.mark.parametrize(
    "change",
    [
        {"extractor": {"name": "inception"}},
        {"extractor": {"weights_digest": "other"}},
        {"extractor": {"resize": "other"}},
        {"reference": {"digest": "other"}},
        {"num_images": 999},
    ],
    ids=["extractor", "weights", "resize", "reference", "count"],
)
def test_other_evaluators_get_a_table_of_their_own(change):
    document = evaluation(6.0)
    for key, value in change.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    first, second = evaluation_record(5.0), EvaluationRecord.of(document, Path("b.json"))
    assert evaluator_key(first) != evaluator_key(second)
    tables = score_tables([("a", first), ("b", second)])
    assert [len(t.rows) for t in tables] == [1, 1]


def test_rows_are_sorted_by_score_and_seeds_are_averaged():
    documents = [("a", evaluation_record(8.0, seed=s)) for s in (0, 1)] + [("a", evaluation_record(11.0, seed=2))]
    (table,) = score_tables([*documents, ("b", evaluation_record(5.0))])
    assert [r.run for r in table.rows] == ["b", "a"]
    row = table.rows[1]
    assert row.metrics["fid"] == pytest.approx(9.0)
    assert row.spread["fid"] == pytest.approx(3**0.5)
    assert row.scores == [8.0, 8.0, 11.0]
    assert row.seeds == [0, 1, 2]
    assert table.rows[0].spread == {"kid_mean": 0.001}  # over its subsets, for want of seeds


def test_a_later_score_of_a_few_metrics_does_not_hide_the_whole_one():
    whole = evaluation_record(8.0)
    few = whole.model_copy(update={"selection": ["fid"], "metrics": {"fid": 8.0}, "created": "2099-01-01T00:00:00Z"})
    (table,) = score_tables([("a", whole), ("a", few)])
    (row,) = table.rows
    assert row.metrics.keys() == whole.metrics.keys()


def test_table_shows_the_last_step_and_history_all():
    (table,) = score_tables(
        [("a", evaluation_record(fid, step=step)) for step, fid in ((10, 9.0), (30, 4.0), (20, 6.0))]
    )
    assert [(r.step, r.metrics["fid"]) for r in table.rows] == [(30, 4.0)]
    assert [r.step for r in table.history] == [10, 20, 30]


def test_samplers_and_weights_are_rows_of_their_own():
    documents = [evaluation_record(1.0), evaluation_record(2.0, nfe=10), evaluation_record(3.0, weights="raw")]
    documents += [evaluation_record(4.0, options={"eta": 1.0}), evaluation_record(5.0, kinship=KIN, nfe=2)]
    documents += [evaluation_record(6.0, precision="bfloat16"), evaluation_record(1.0, precision="float32", seed=1)]
    (table,) = score_tables([("a", d) for d in documents])
    assert len(table.rows) == 5
    assert table.rows[4].sampler == "ddim bfloat16"
    assert table.rows[2].badges == ["raw weights", "small N"]
    assert table.rows[3].sampler == "ddim eta=1.0"
    (related,) = table.related
    assert related.badges == ["kin evaluator", "small N"]
    assert table.best("a").metrics["fid"] == 1.0


def test_an_evaluation_made_twice_is_no_second_seed():
    older, newer = evaluation_record(8.0, created="2026-01-01"), evaluation_record(9.0, created="2026-01-02")
    (table,) = score_tables([("a", newer), ("a", older)])
    assert table.rows[0].scores == [9.0]
    assert "fid" not in table.rows[0].spread


def test_runs_that_differ_in_their_seed_alone_share_a_group_row(tmp_path):
    runs = []
    for seed, batch in ((0, 4), (1, 4), (0, 8)):
        run = make_run(tmp_path / f"seed{seed}-{batch}")
        config = run.manifest().config
        run.update(config={**config, "seed": seed, "trainer": {**config["trainer"], "batch_size": batch}})
        runs.append(summarise(run, label=run.name))
    assert runs[0].group == runs[1].group != runs[2].group
    scores = zip(runs, (5.0, 7.0, 1.0), strict=True)
    (table,) = score_tables([(r.label, evaluation_record(fid)) for r, fid in scores], runs)
    (group,) = table.groups
    assert group.runs == ["seed0-4", "seed1-4"]
    assert (group.mean, group.sd) == (pytest.approx(6.0), pytest.approx(2**0.5))
    assert group.scores == [5.0, 7.0]


def test_warnings_of_the_run_stand_beside_its_score(tmp_path):
    run = make_run(tmp_path / "drift", encoder={"name": "mocov2", "random_weights": True}, state="interrupted")
    document = evaluation_record(5.0, reference={**evaluation(5.0)["reference"], "is_training_data": True})
    (table,) = score_tables([("drift", document)], [summarise(run, label="drift")])
    assert table.rows[0].badges == ["random weights", "against its training images", "small N", "not finished"]


def test_labels_that_trained_the_weights_it_began_with_are_those_of_the_run(tmp_path):
    for labels, badged in ((True, True), (False, False)):
        lineage = Lineage("ab", "unet", "unet", (), labels).describe()
        origin = WeightsOrigin(path="before", weights="ema", digest="ab", lineage=lineage)
        run = summarise(make_run(tmp_path / str(labels), initialised_from=origin), label="a")
        (table,) = score_tables([("a", evaluation_record(3.0))], [run])
        assert ("class-conditional" in table.rows[0].badges) is badged


def test_samples_of_some_classes_alone_win_no_budget(tmp_path):
    record = evaluation_record(1.0)
    some = record.model_copy(
        update={"sampling": record.sampling.model_copy(update={"classes": ("cat", "dog"), "asked_classes": ("cat",)})}
    )
    runs = [summarise(make_run(tmp_path / name), label=name) for name in "ab"]
    (table,) = score_tables([("a", some), ("a", evaluation_record(5.0)), ("b", evaluation_record(3.0))], runs)
    (alone,) = score_tables([("a", some)], runs)
    assert all_charts(runs, [alone], [], {"a": 0, "b": 1})[alone.key] == []
    for budget in (*training_budgets(table, runs), *nfe_budgets(table)):
        assert {name: cell.score for name, cell in budget.cells.items()} == {"a": 5.0, "b": 3.0}


def test_near_copies_of_training_images_are_a_badge():
    metrics = {"fid": 1.0, "nearest_ratio": 0.4, "near_share": 0.2}
    (table,) = score_tables([("a", evaluation_record(1.0, metrics=metrics)), ("b", evaluation_record(2.0))])
    assert [r.badges for r in table.rows] == [["small N", "near copies of training images"], ["small N"]]


def test_near_copies_found_by_one_evaluator_are_a_badge_of_the_same_images_everywhere():
    """Copies are searched with the first extractor of a command alone."""
    found = evaluation_record(1.0, metrics={"fid": 1.0, "near_share": 0.2})
    extractor = {**evaluation(1.0)["extractor"], "name": "inception", "weights_digest": "ef"}
    others = [evaluation_record(2.0, extractor=extractor, **changes) for changes in ({}, {"seed": 1, "nfe": 10})]
    tables = score_tables([("a", record) for record in (found, *others)])
    badges = {(t.extractor.name, r.nfe): "near copies of training images" in r.badges for t in tables for r in t.rows}
    assert badges == {("encoder:tiny", 50): True, ("inception", 50): True, ("inception", 10): False}


def test_a_flat_record_holds_score_cost_and_evaluator_of_a_row(tmp_path):
    runs = [summarise(make_run(tmp_path / name), label=name) for name in ("a", "unscored")]
    tables = score_tables([("a", evaluation_record(3.0, seed=s, nfe=50)) for s in (0, 1)], runs)
    first, second = score_records(tables, runs, [Speed("a", "ddim", 50, 5, 8.5, 1.9, 1.0)])
    assert tuple(first) == tuple(second) == record_fields()
    assert (first["run"], first["fid"], first["fid_values"], first["floor"]) == ("a", 3.0, "3 3", 1.5)
    assert (first["images_per_second"], first["speed_scaled"], first["train_seconds"]) == (8.5, True, 12.5)
    assert (second["run"], second["fid"], second["parameters"]) == ("unscored", None, 1_234_567)


def test_csv_keeps_hostile_names_in_their_cell():
    names = ['a,"b"\n<script>', "=cmd()", "@x"]
    records = [dict.fromkeys(record_fields()) | {"run": name, "fid": -1.5} for name in names]
    lines = list(csv.DictReader(io.StringIO(to_csv(records))))
    assert [line["run"] for line in lines] == [names[0], "'=cmd()", "'@x"]
    assert {line["fid"] for line in lines} == {"-1.5"}
