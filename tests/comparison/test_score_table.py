"""Score tables that never mix evaluators."""

import pytest

from driftkit.comparison.run_summary import summarise
from driftkit.comparison.score_table import evaluator_key, read_evaluations, score_tables
from driftkit.storage.files import write_json
from tests.scoring.fakes import KIN, evaluation, make_run


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
    assert table.rows[0].spread == {"kid_mean": 0.001}  # over its subsets, for want of seeds


def test_table_shows_the_last_step_and_history_all():
    (table,) = score_tables([("a", evaluation(fid, step=step)) for step, fid in ((10, 9.0), (30, 4.0), (20, 6.0))])
    assert [(r.step, r.metrics["fid"]) for r in table.rows] == [(30, 4.0)]
    assert [r.step for r in table.history] == [10, 20, 30]


def test_samplers_and_weights_are_rows_of_their_own():
    documents = [evaluation(1.0), evaluation(2.0, nfe=10), evaluation(3.0, weights="raw")]
    documents += [evaluation(4.0, sampler_options={"eta": 1.0}), evaluation(5.0, kinship=KIN, nfe=2)]
    (table,) = score_tables([("a", d) for d in documents])
    assert len(table.rows) == 4
    assert table.rows[2].badges == ["raw weights", "small N"]
    assert table.rows[3].sampler == "ddim eta=1.0"
    (apart,) = table.apart
    assert apart.badges == ["kin evaluator", "small N"]
    assert table.best("a").metrics["fid"] == 1.0


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


def test_an_evaluation_made_twice_is_no_second_seed():
    older, newer = evaluation(8.0, created="2026-01-01"), evaluation(9.0, created="2026-01-02")
    (table,) = score_tables([("a", newer), ("a", older)])
    assert table.rows[0].fid_values == [9.0]
    assert "fid" not in table.rows[0].spread


def test_repeats_of_one_evaluation_give_mean_spread_and_all_values():
    repeats = {"seeds": [0, 1, 2], "metrics": {"fid": {"mean": 9.0, "sd": 1.0, "values": [8.0, 9.0, 10.0]}}}
    for document in (
        evaluation(9.0, repeats=repeats),
        evaluation(9.0, repeats={"fid": {"values": [8.0, 9.0, 10.0]}, "seeds": [0, 1, 2]}),
    ):
        (table,) = score_tables([("a", document)])
        row = table.rows[0]
        assert (row.metrics["fid"], row.spread["fid"]) == (pytest.approx(9.0), pytest.approx(1.0))
        assert row.fid_values == [8.0, 9.0, 10.0]
        assert row.seeds == [0, 1, 2]


def test_runs_that_differ_in_their_seed_alone_share_a_group_row(tmp_path):
    runs = []
    for seed, batch in ((0, 4), (1, 4), (0, 8)):
        run = make_run(tmp_path / f"seed{seed}-{batch}")
        config = run.manifest().config
        run.update(config={**config, "seed": seed, "trainer": {**config["trainer"], "batch_size": batch}})
        runs.append(summarise(run, label=run.name))
    assert runs[0].group == runs[1].group != runs[2].group
    scores = zip(runs, (5.0, 7.0, 1.0), strict=True)
    (table,) = score_tables([(r.label, evaluation(fid)) for r, fid in scores], runs)
    (group,) = table.groups
    assert group.runs == ["seed0-4", "seed1-4"]
    assert (group.fid_mean, group.fid_sd) == (pytest.approx(6.0), pytest.approx(2**0.5))
    assert group.fid_values == [5.0, 7.0]


def test_warnings_of_the_run_stand_beside_its_score(tmp_path):
    run = make_run(tmp_path / "drift", encoder={"name": "mocov2", "random_weights": True}, state="interrupted")
    document = evaluation(5.0, reference={**evaluation(5.0)["reference"], "is_training_data": True})
    (table,) = score_tables([("drift", document)], [summarise(run, label="drift")])
    assert table.rows[0].badges == ["random weights", "against its training images", "small N", "not finished"]


def test_near_copies_of_training_images_are_a_badge():
    metrics = {"fid": 1.0, "nearest_ratio": 0.4, "near_share": 0.2}
    (table,) = score_tables([("a", evaluation(1.0, metrics=metrics)), ("b", evaluation(2.0))])
    assert [r.badges for r in table.rows] == [["small N", "near copies of training images"], ["small N"]]
