"""The sentences that open the report say no more than the numbers bear."""

import pytest

from driftkit.evaluation.speed import Speed
from driftkit.evaluation.summary import summarise
from driftkit.evaluation.table import score_tables
from driftkit.evaluation.verdict import cautions, findings
from tests.evaluation.fakes import evaluation, make_run


def table_of(**scores):
    documents = [(run, evaluation(fid, seed=seed, nfe=nfe, sampler="one-step" if nfe == 1 else "ddim"))
                 for run, (nfe, values) in scores.items() for seed, fid in enumerate(values)]  # fmt: skip
    return score_tables(documents)[0]


def test_the_best_is_named_with_its_floor_and_speed():
    table = table_of(a=(1, [3.0]), b=(1, [6.0]))
    first, second = findings(table, [Speed("a", "one-step", 1, 1, 437.0, 0.1, 1.0)])
    for words in ("a scores best", "fid@100 3.00", "437 images/s", "score 1.50", "2 times less"):
        assert words in first
    assert "it is not known how much" in second


@pytest.mark.parametrize(
    ("rival", "says"), [([10.4, 9.8], "too close to order"), ([20.0, 20.2], "standard deviations of the noise behind")]
)
def test_order_is_claimed_only_beyond_the_noise(rival, says):
    assert says in findings(table_of(a=(1, [9.9, 10.1]), b=(1, rival)), [])[1]


def test_many_steps_that_pass_one_evaluation_are_named_with_their_price():
    documents = [("ddpm", evaluation(fid, nfe=nfe)) for nfe, fid in ((1, 90.0), (10, 4.5), (50, 2.0))]
    (table,) = score_tables([("drift", evaluation(5.0, nfe=1, sampler="one-step")), *documents])
    assert "ddpm passes the best score of one evaluation (drift, 5.00) from 10 NFE on" in findings(table, [])[-1]


def test_many_steps_that_never_get_there_are_said_so():
    assert "At no NFE that was scored" in findings(table_of(drift=(1, [5.0]), ddpm=(50, [7.0])), [])[-1]


def test_cautions_name_what_a_reader_would_hold_against_the_numbers(tmp_path):
    runs = [summarise(make_run(tmp_path / "a", encoder={"name": "e", "random_weights": True}), label="a"),
            summarise(make_run(tmp_path / "b", parameters=9, images_seen=5), label="b")]  # fmt: skip
    (table,) = score_tables([("a", evaluation(3.0, own_teacher=True)), ("b", evaluation(4.0, weights="raw"))], runs)
    text = " ".join(cautions(table, runs))
    expected = ("few images", "no published evaluator", "trained with, which flatters them: a", "random weights: a",
                "for b", "of one seed", "differ in parameters", "differ in training lengths")  # fmt: skip
    for words in expected:
        assert words in text


def test_nothing_is_held_against_sound_numbers(tmp_path):
    runs = [summarise(make_run(tmp_path / name), label=name) for name in "ab"]
    judge = {**evaluation(1.0)["extractor"], "name": "inception"}
    documents = [
        (name, evaluation(fid, seed=seed, num_images=50_000, extractor=judge))
        for name, fid in (("a", 3.0), ("b", 9.0))
        for seed in (0, 1)
    ]
    (table,) = score_tables(documents, runs)
    assert cautions(table, runs) == []
