"""Pairs of runs are ranked where all independent evaluators say so; sample sets like the demo's are not."""

from dataclasses import replace

import pytest
import torch

from driftkit.comparison.agreement import leader_of, pairs_of
from driftkit.comparison.score_table import score_tables
from driftkit.datasets.shapes import ShapesOptions, draw_shapes
from driftkit.encoders.lineage import Lineage
from driftkit.scoring.evaluator import ScoringOptions, evaluate, open_evaluator
from driftkit.scoring.image_set import ScoringExecution
from driftkit.storage.files import write_json
from driftkit.storage.images import write_samples
from tests.comparison.comparing import compare_runs
from tests.comparison.test_conclusions import by, conditional
from tests.scoring.fakes import KIN, evaluation, evaluation_record, make_pack, make_run, tiny_extractor

MAE = Lineage("c0", "mae_resnet", "mae_resnet", ("shapes (1234)",), False)


def pairs(documents):
    tables = score_tables(documents)
    return pairs_of(tables, sorted({run for run, _ in documents}))


def test_all_that_tell_two_runs_apart_have_to_agree():
    agreed = [("a", by("x", 1.6)), ("b", by("x", 3.0)), ("a", by("y", 2.0)), ("b", by("y", 2.5))]
    (pair,) = pairs(agreed)
    assert (pair.verdict, pair.better, pair.worse) == ("ranked", "a", "b")
    (pair,) = pairs([*agreed, ("a", by("z", 9.0)), ("b", by("z", 8.0))])
    assert (pair.verdict, pair.better, pair.worse) == ("disputed", None, None)


def test_evaluators_that_cannot_tell_two_runs_apart_have_no_vote():
    chance = [("a", by("y", fid, seed=seed)) for seed, fid in enumerate((8.0, 10.0))]
    chance += [("b", by("y", fid, seed=seed)) for seed, fid in enumerate((7.9, 10.0))]
    floor = [("a", by("z", 1.55)), ("b", by("z", 1.52))]
    (pair,) = pairs([("a", by("x", 2.0)), ("b", by("x", 3.0)), *chance, *floor])
    assert (pair.verdict, pair.better) == ("ranked", "a")
    assert {o.evaluator: o.better for o in pair.opinions} == {"x": "a", "y": None, "z": None}
    (pair,) = pairs([*chance, *floor])
    assert pair.verdict == "tied"


def test_only_independent_scores_count():
    (pair,) = pairs([("a", evaluation_record(1.6, kinship=KIN)), ("b", evaluation_record(3.0))])
    assert pair.verdict == "unknown"


def test_runs_that_learned_from_labels_are_not_ranked_against_those_that_did_not():
    scored = [("a", conditional(2.0)), ("b", evaluation_record(9.0)), ("c", conditional(5.0))]
    verdicts = {(pair.first, pair.second): (pair.verdict, pair.better) for pair in pairs(scored)}
    assert verdicts == {("a", "b"): ("unequal", None), ("a", "c"): ("ranked", "a"), ("b", "c"): ("unequal", None)}
    assert leader_of(pairs(scored)) is None


def test_samples_of_some_classes_alone_have_no_vote():
    some, whole = conditional(1.0, asked_classes=("cat",)), conditional(5.0, asked_classes=("all",))
    (pair,) = pairs([("a", some), ("b", whole)])
    assert (pair.verdict, pair.opinions) == ("unknown", ())
    (pair,) = pairs([("a", some), ("a", conditional(9.0)), ("b", whole)])
    assert (pair.verdict, pair.better, pair.opinions[0].first) == ("ranked", "b", 9.0)


@pytest.mark.parametrize(("scores", "leader"), [((2.0, 3.0, 4.0), "a"), ((4.0, 3.0, 2.0), "c")])
def test_the_leader_is_ranked_above_every_other_run(scores, leader):
    assert leader_of(pairs([(run, by("x", fid)) for run, fid in zip("abc", scores, strict=True)])) == leader
    disputed = [(run, by("x", fid)) for run, fid in zip("abc", scores, strict=True)]
    disputed += [(run, by("y", fid)) for run, fid in zip("abc", reversed(scores), strict=True)]
    assert leader_of(pairs(disputed)) is None


def shapes(split, count):
    options = ShapesOptions(
        split=split, image_size=16, count=count, palette="primary", background="black", classes=3, jitter=0.05
    )
    return draw_shapes(options).images


def blobs(images):
    """The right colours in the right places on the right ground, without any shape."""
    soft = torch.nn.functional.avg_pool2d(images.float(), 5, stride=1, padding=2)
    return (1.2 * soft).clamp(0, 255).round().to(torch.uint8)


def crisp_on_grey(images):
    """Every edge where it belongs, on a ground that is grey instead of black."""
    return images.clamp(min=48)


@pytest.mark.slow
def test_sample_sets_like_those_of_the_demo_are_not_ranked(tmp_path):
    """The kin of the training encoder and the pixels prefer the blobs, an ImageNet network the shapes."""
    real = str(make_pack(tmp_path / "real.safetensors", shapes("test", 240)).path)
    made = shapes("train", 240)
    encoder = {"name": "outputs/mae", "weights_digest": "c0", "lineage": [MAE.describe()]}
    runs = {"drift": make_run(tmp_path / "drift", encoder=encoder), "ddpm": make_run(tmp_path / "ddpm", "ddpm")}
    for name, images in (("drift", blobs(made)), ("ddpm", crisp_on_grey(made))):
        nfe, sampler = (1, "one-step") if name == "drift" else (50, "ddim")
        record = {"num_images": 240, "image_size": 16, "seed": 0, "sampler": sampler, "nfe": nfe, "weights": "ema",
                  "step": 30, "method": name, "run": str(runs[name].path), "sampler_options": {}}  # fmt: skip
        write_samples(runs[name].path / "samples" / "made.safetensors", images, record)
    kin = replace(tiny_extractor(), lineage=replace(MAE, weights="c1"))
    setup = {"options": ScoringOptions().without_memorization(), "execution": ScoringExecution(cache=False)}
    evaluators = [open_evaluator(real, extractor=e, **setup) for e in ("efficientnet-lite2", "pixels", kin)]
    for run in runs.values():
        evaluate(evaluators, run.path / "samples" / "made.safetensors")
    result = compare_runs([run.path for run in runs.values()], tmp_path / "report")
    (pair,) = result.record.pairs
    assert pair.verdict == "disputed"
    assert {o.evaluator: o.better for o in pair.opinions} == {"efficientnet-lite2": "ddpm", "pixels": "drift"}
    findings = " ".join(result.record.findings)
    for words in ("disagree", "pixels (colours", "efficientnet-lite2 (shapes"):
        assert words in findings
    for words in (
        "drift is nearer to real",
        "brightness of the border",
        "ddpm is nearer to real",
        "sharpness of edges",
    ):
        assert words in findings
    assert not any("ranks first" in s or "best" in s for s in result.record.findings)
    related = [(t.extractor.name, row.run) for t in result.record.score_tables for row in t.related]
    assert related == [("encoder:tiny", "drift")]
    page = result.report.read_text()
    assert page.index('id="samples"') < page.index('id="scores"') < page.index("What the numbers say")
    assert "Shown apart, ranks nothing" in page


def test_a_comparison_without_an_independent_evaluator_names_the_command_that_makes_one(tmp_path):
    encoder = {"name": "outputs/mae", "weights_digest": "c0", "lineage": [MAE.describe()]}
    make_run(tmp_path / "ddpm", "ddpm")
    make_run(tmp_path / "drift", encoder=encoder)
    for name, kinship in (("drift", KIN), ("ddpm", evaluation(1.0)["kinship"])):
        write_json(tmp_path / name / "evaluations" / "a.json", evaluation(3.0, kinship=kinship))
    findings = " ".join(compare_runs([tmp_path / "drift", tmp_path / "ddpm"], tmp_path / "report").record.findings)
    assert "Not ranked" in findings
    assert "--extractor efficientnet-lite2" in findings
    lite = Lineage("a0", "tf_efficientnet_lite0", "efficientnet", ("ImageNet-1k",), True)
    make_run(tmp_path / "lite", encoder={**encoder, "lineage": [lite.describe()]})
    write_json(tmp_path / "lite" / "evaluations" / "a.json", evaluation(3.0, kinship=KIN))
    findings = " ".join(compare_runs([tmp_path / "lite", tmp_path / "ddpm"], tmp_path / "report").record.findings)
    assert "driftkit train --objective classifier" in findings
    assert "encoder:outputs/classifier" in findings
