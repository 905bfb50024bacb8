"""The sentences that open the report say no more than the numbers bear."""

from driftkit.comparison.agreement import pairs_of, scored_runs
from driftkit.comparison.conclusions import cautions, findings
from driftkit.comparison.run_summary import summarise
from driftkit.comparison.score_table import score_tables
from driftkit.comparison.speed import Speed
from tests.scoring.fakes import KIN, evaluation, evaluation_record, make_run

RELATED = {"degree": "related", "reason": "trained on the training encoder's images"}


def by(name, fid, **changes):
    """An evaluation by the evaluator of that name."""
    extractor = {**evaluation(1.0)["extractor"], "name": name, "weights_digest": name}
    return evaluation_record(fid, extractor=extractor, **changes)


def conditional(fid, **sampling):
    """An evaluation of a class-conditional run."""
    record = evaluation_record(fid)
    asked = {"classes": ("cat", "dog"), "guidance": 1.0, **sampling}
    return record.model_copy(update={"sampling": record.sampling.model_copy(update=asked)})


def documents_of(**scores):
    return [(run, evaluation_record(fid, seed=seed, nfe=nfe, sampler="one-step" if nfe == 1 else "ddim"))
            for run, (nfe, values) in scores.items() for seed, fid in enumerate(values)]  # fmt: skip


def said(documents, speeds=(), **more):
    tables = score_tables(documents)
    return findings(tables, pairs_of(tables, scored_runs(tables)), list(speeds), **more)


def warned(documents, runs=()):
    tables = score_tables(documents, runs)
    return cautions(tables, pairs_of(tables, scored_runs(tables)), runs)


def test_the_first_is_named_with_its_evaluator_floor_and_speed():
    speeds = [Speed("a", "one-step", 1, 1, 437.0, 0.1, 1.0)]
    first, score, second = said(documents_of(a=(1, [3.0]), b=(1, [6.0])), speeds)
    assert first == "a ranks first by encoder:tiny."
    for words in ("a scores fid@100 3.00", "437 images/s", "score 1.50", "2 times less"):
        assert words in score
    assert "it is not known how much" in second


def test_a_single_run_has_a_score_and_no_rank():
    (sentence,) = said(documents_of(a=(1, [3.0])))
    assert sentence.startswith("a scores fid@100 3.00")
    assert "first" not in sentence


def test_order_is_claimed_only_beyond_the_noise():
    assert "standard deviations of the noise behind" in said(documents_of(a=(1, [9.9, 10.1]), b=(1, [20.0, 20.2])))[2]
    (close,) = said(documents_of(a=(1, [9.9, 10.1]), b=(1, [10.4, 9.8])))
    assert close == "Too close to order: a and b."


def test_many_steps_that_pass_one_evaluation_are_named_with_their_price():
    documents = [("ddpm", evaluation_record(fid, nfe=nfe)) for nfe, fid in ((1, 90.0), (10, 4.5), (50, 2.0))]
    sentences = said([("drift", evaluation_record(5.0, nfe=1, sampler="one-step")), *documents])
    assert "ddpm passes the best score of one evaluation (drift, 5.00 by encoder:tiny) from 10 NFE on" in sentences[-1]


def test_many_steps_that_never_get_there_are_said_so():
    assert (
        "No sampler of many steps reaches what drift gives"
        in said(documents_of(drift=(1, [5.0]), ddpm=(50, [7.0])))[-1]
    )


def test_kin_evaluators_rank_nothing_and_the_command_that_would_is_named():
    documents = [("drift", evaluation_record(1.0, kinship=KIN, nfe=1)), ("ddpm", evaluation_record(9.0))]
    unknown, advice = said(documents, advice="driftkit compare drift ddpm --extractor x")
    assert unknown.startswith(
        "Not ranked, since no evaluator that is independent of both has scored them: ddpm and drift"
    )
    assert advice == "This makes such a score: driftkit compare drift ddpm --extractor x"
    assert any("ranks nothing that involves drift: the training encoder itself" in c for c in warned(documents))


def test_kin_evaluators_have_no_voice_and_related_ones_that_of_a_second():
    far = [("drift", by("far", 20.0, nfe=1)), ("ddpm", by("far", 4.0))]
    near = {
        degree["degree"]: [("drift", by("near", 1.0, kinship=degree, nfe=1)), ("ddpm", by("near", 9.0))]
        for degree in (KIN, RELATED)
    }
    sentences = said([*near["kin"], *far])
    assert sentences[0].startswith("ddpm ranks first by far")
    assert not any("near" in s for s in sentences)
    contradicted = said([*near["related"], *far])
    assert (
        "near (shapes and objects; related to the training) puts drift above ddpm, 1.00 against 9.00." in contradicted
    )
    further = [("drift", by("further", 30.0, nfe=1)), ("ddpm", by("further", 5.0))]
    assert said([*near["related"], *far, *further])[0].startswith("ddpm ranks first by both far and further")


def looks(**distances):
    return {key: {"generated": value, "real": 0.0, "distance": value} for key, value in distances.items()}


def test_independent_evaluators_that_disagree_rank_nothing_and_say_about_what():
    drift, ddpm = looks(background=0.01, edges=0.3), looks(background=0.09, edges=0.05)
    scores = {"lite": (59.0, 28.0), "pixels": (2.7, 7.3)}
    documents = [("drift", by(name, first, appearance=drift)) for name, (first, _) in scores.items()]
    documents += [("ddpm", by(name, second, appearance=ddpm)) for name, (_, second) in scores.items()]
    sentence = " ".join(said(documents))
    for words in (
        "are not ranked: evaluators disagree.",
        "lite (shapes and objects) puts ddpm above drift, 28.00 against 59.00.",
        "pixels (colours, background and layout) puts drift above ddpm, 2.70 against 7.30.",
        "drift is nearer to real images in brightness of the border: ddpm 0.090, drift 0.010, real 0.000.",
        "ddpm is nearer to real images in sharpness of edges: ddpm 0.050, drift",
    ):
        assert words in sentence
    assert "ranks first" not in sentence


def test_what_is_agreed_on_is_said_beside_a_dispute():
    scores = {"a": (3.0, 8.0), "b": (5.0, 6.0), "untrained": (90.0, 80.0)}
    documents = [(run, by(name, fid)) for run, both in scores.items() for name, fid in zip("xy", both, strict=True)]
    dispute, *sides, agreed = said(documents)
    assert dispute == "a and b are not ranked: evaluators disagree."
    assert [side.split(" ")[0] for side in sides] == ["x", "y"]
    assert agreed == "What every independent evaluator agrees on: a above untrained, b above untrained."


def test_scores_of_one_evaluator_that_order_otherwise_are_flagged():
    high = {**evaluation(1.0)["metrics"], "fid": 9.0, "recall": 0.9}
    documents = [("a", evaluation_record(3.0)), ("b", evaluation_record(9.0, metrics=high))]
    assert any("Recall of encoder:tiny orders a and b the other way round" in c for c in warned(documents))


def test_what_learned_from_labels_is_not_ranked_against_what_did_not():
    unequal, agreed = said([("a", conditional(2.0)), ("b", evaluation_record(9.0)), ("c", conditional(5.0))])
    assert unequal == "Not ranked, since one learned from labels and the other did not: a and b, c and b."
    assert agreed == "What every independent evaluator agrees on: a above c."


def test_a_guidance_scale_chosen_by_the_score_is_said_to_be():
    documents = [("a", conditional(2.0 + scale, guidance=scale)) for scale in (1.0, 1.5, 2.0)]
    documents += [("a", conditional(1.0, guidance=3.0, asked_classes=("cat",))), ("b", conditional(9.0))]
    (caution,) = [c for c in warned(documents) if "guidance" in c]
    assert caution.endswith("which flatters a (best of 3 guidance scales).")
    assert said(documents)[1].startswith("a scores fid@100 3.00")
    assert not any("guidance" in c for c in warned([("a", conditional(2.0)), ("b", evaluation_record(9.0))]))


def test_cautions_name_what_a_reader_would_hold_against_the_numbers(tmp_path):
    runs = [summarise(make_run(tmp_path / "a", encoder={"name": "e", "random_weights": True}), label="a"),
            summarise(make_run(tmp_path / "b", parameters=9, images_seen=5), label="b"),
            summarise(make_run(tmp_path / "c"), label="c")]  # fmt: skip
    documents = [
        ("a", evaluation_record(3.0)),
        ("b", evaluation_record(4.0, weights="raw")),
        ("c", evaluation_record(5.0, kinship=KIN)),
    ]
    text = " ".join(warned(documents, runs))
    expected = ("few images", "one independent evaluator alone", "ranks nothing that involves c", "random weights: a",
                "for b", "of one seed", "differ in parameters", "differ in training lengths")  # fmt: skip
    for words in expected:
        assert words in text


def test_nothing_is_held_against_sound_numbers(tmp_path):
    runs = [summarise(make_run(tmp_path / name), label=name) for name in "ab"]
    documents = [
        (name, by(evaluator, fid + seed / 10, seed=seed, num_images=50_000))
        for evaluator in ("inception", "dinov2", "pixels")
        for name, fid in (("a", 3.0), ("b", 9.0))
        for seed in (0, 1)
    ]
    better = {"precision": 0.9, "recall": 0.9, "kid_mean": 0.001}
    documents = [
        (name, r.model_copy(update={"metrics": {**r.metrics, **better}}) if name == "a" else r) for name, r in documents
    ]
    assert warned(documents, runs) == []
