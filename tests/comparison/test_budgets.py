"""Scores at equal cost."""

import pytest

from driftkit.comparison.run_summary import summarise
from driftkit.comparison.score_table import nfe_budgets, score_tables, training_budgets
from tests.scoring.fakes import evaluation_record, make_run


@pytest.fixture
def scored(tmp_path):
    """a: 30 steps in 12.5 s, scored at 10, 20 and 30; b: 20 steps in 40 s, scored at its end; c: never trained."""
    runs = [
        summarise(make_run(tmp_path / "a"), label="a"),
        summarise(make_run(tmp_path / "b", steps=20, train_seconds=40.0), label="b"),
        summarise(make_run(tmp_path / "c", steps=0, train_seconds=0.0), label="c"),
    ]
    documents = [("a", evaluation_record(fid, step=step)) for step, fid in ((10, 9.0), (20, 6.0), (30, 4.0))]
    documents += [("b", evaluation_record(5.0, step=20)), ("c", evaluation_record(60.0, step=0))]
    (table,) = score_tables(documents, runs)
    return table, runs


def test_every_run_is_taken_at_the_budget_that_all_of_them_reached(scored):
    by_cost = {b.cost: b for b in training_budgets(*scored)}
    assert (by_cost["step"].amount, by_cost["images"].amount) == (20, 80)
    assert {run: cell.score for run, cell in by_cost["step"].cells.items()} == {"a": 6.0, "b": 5.0, "c": 60.0}
    assert by_cost["step"].cells["a"].spent == 20


def test_a_run_without_a_checkpoint_within_the_budget_has_no_score(scored):
    seconds = next(b for b in training_budgets(*scored) if b.cost == "seconds")
    assert seconds.amount == 12.5
    assert seconds.cells["a"].score == 4.0
    assert seconds.cells["b"] is None


def test_one_run_has_nobody_to_share_a_budget_with(scored):
    table, runs = scored
    assert training_budgets(table, runs[:1]) == []


def test_nfe_budgets_hold_the_best_score_with_at_most_so_many_evaluations():
    documents = [("ddpm", evaluation_record(fid, nfe=nfe)) for nfe, fid in ((1, 90.0), (10, 8.0), (50, 9.0))]
    (table,) = score_tables([*documents, ("drift", evaluation_record(7.0, nfe=1, sampler="one-step"))])
    budgets = {b.amount: b.cells for b in nfe_budgets(table)}
    assert sorted(budgets) == [1, 10, 50]
    assert [budgets[n]["ddpm"].score for n in (1, 10, 50)] == [90.0, 8.0, 8.0]
    assert [budgets[n]["drift"].score for n in (1, 10, 50)] == [7.0, 7.0, 7.0]
