"""The scoring stage: what an evaluation records, where it goes, and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from driftkit.config.sampling_config import SamplingConfig
from driftkit.encoders.lineage import Lineage
from driftkit.errors import ArtifactError, NotFoundError, RefusedError, UsageError
from driftkit.metrics.registry import select_metrics
from driftkit.metrics.survey import PROPERTIES
from driftkit.scoring.evaluation_record import EvaluationRecord
from driftkit.scoring.evaluator import ScoringOptions, evaluate, open_evaluator
from driftkit.scoring.image_set import ScoringExecution
from driftkit.scoring.series import evaluate_checkpoints, evaluate_repeats
from driftkit.storage.files import write_json, write_tensors
from driftkit.storage.images import write_samples
from driftkit.storage.records import WeightsOrigin
from driftkit.training.conditions import SampleConditions
from tests.metrics.test_survey import as_jpeg, natural
from tests.scoring.fakes import SIZE, add_samples, make_pack, make_run, random_images, score, tiny_extractor


@pytest.fixture
def real(tmp_path):
    """The SPEC of 60 real images."""
    return str(make_pack(tmp_path / "real.safetensors", random_images(60, 50)).path)


@pytest.fixture
def sampled(monkeypatch):
    """Requests that reached the sampling stage, which gives random images that are functions of seed and number."""
    requests = []

    def generate(run, sampling, *, num_images, first_image=0, device=None, batch_size=0, advance=None):
        requests.append({"num_images": num_images, **sampling.model_dump()})
        step, seed = sampling.step or 30, sampling.seed
        info = {
            "num_images": num_images, "image_size": SIZE, "seed": seed, "sampler": sampling.sampler or "one-step",
            "nfe": sampling.nfe or 1, "weights": sampling.weights, "step": step, "method": "drift",
            "encoder": "outputs/mae", "run": str(run.path), "sampler_options": {},
        }  # fmt: skip
        return random_images(first_image + num_images, seed + 1000 * step)[first_image:], info

    module = ModuleType("driftkit.training.sampling")
    module.generate, module.conditions_of = generate, lambda run, sampling: SampleConditions()
    monkeypatch.setitem(sys.modules, "driftkit.training.sampling", module)
    return requests


def trained(path, *steps, **manifest):
    """A run with checkpoints of these steps; their weights are one number each."""
    run = make_run(path, **manifest)
    for step in steps or (30,):
        weights = {"w": torch.tensor([float(step)])}
        state = {"step": step, "images_seen": 4 * step, "train_seconds": float(step)}
        run.save_checkpoint(step, weights={"raw": weights, "ema": weights}, optimizer={}, state=state, headers={})
    return run


def test_run_is_sampled_and_its_evaluation_records_what_the_number_depends_on(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    evaluation = score(run.path, real, num_images=40, sampling=SamplingConfig(seed=3))
    assert sampled == [
        {"num_images": 40, "seed": 3, "weights": "ema", "precision": "float32", "sampler": None, "nfe": None,
         "step": None, "classes": None, "guidance": None}
    ]  # fmt: skip
    record = evaluation.record
    digest = record.reference.digest
    assert evaluation.path.parent == run.path / "evaluations"
    assert evaluation.path.name == f"encoder-tiny-abababab-one-step-1-ema-step30-n40-seed3-{digest[:8]}.json"
    assert EvaluationRecord.read(evaluation.path) == record
    assert (record.name, record.num_images, record.run) == ("fid@40", 40, "drift")
    assert set(record.metrics) >= {"fid", "kid_mean", "kid_std", "precision", "recall", "density", "coverage"}
    assert record.extractor == tiny_extractor().info
    assert record.extractor.model_dump(exclude={"lineage"}) == {
        "name": "encoder:tiny", "version": "1", "weights_digest": "ab" * 32, "resize": "4x4 mean", "dim": 12,
        "precision": "float32 (IEEE)",
    }  # fmt: skip
    assert record.reference.model_dump() == {
        "spec": real, "digest": digest, "count": 60, "image_size": 8, "is_training_data": False,
    }  # fmt: skip
    assert record.sampling.model_dump(exclude={"precision"}) == {
        "method": "drift", "encoder": "outputs/mae", "sampler": "one-step", "nfe": 1, "options": {}, "weights": "ema",
        "classes": (), "asked_classes": None, "guidance": None, "step": 30, "seed": 3,
    }  # fmt: skip
    assert record.floor.num_images == 30
    assert set(record.metrics) <= set(record.floor.metrics)
    assert record.kinship.degree == "related"  # this run does not say what its encoder was made of
    assert set(record.appearance) == set(PROPERTIES)
    for words in ("few", "floor", "training images were not searched"):
        assert any(words in warning for warning in record.warnings)


def test_metrics_that_were_not_selected_are_not_computed(tmp_path, real, sampled):
    options = ScoringOptions(select_metrics(["kid"]))
    record = score(trained(tmp_path / "drift").path, real, num_images=40, options=options).record
    assert set(record.metrics) == set(record.floor.metrics) == {"fid", "kid_mean", "kid_std"}
    assert record.memorization is None


def test_batch_size_does_not_change_scores(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    executions = [ScoringExecution(batch_size, cache=False) for batch_size in (3, 64)]
    scores = [score(run.path, real, num_images=40, execution=execution).record.metrics for execution in executions]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_kin_of_the_training_encoder_are_labelled(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    lineage = Lineage("ef" * 32, "tiny", "tiny family", ("photos",))
    run.update(encoder={"weights_digest": "ef" * 32, "lineage": [lineage.describe()]})
    kin = score(run.path, real, extractor=replace(tiny_extractor(), lineage=lineage), num_images=40).record
    assert kin.kinship.degree == "kin"
    assert any("no independent evaluator" in w for w in kin.warnings)
    other = replace(tiny_extractor(), lineage=Lineage("aa", "other", "other family", ("paintings",)))
    assert score(run.path, real, extractor=other, num_images=40).record.kinship.degree == "independent"


def test_several_evaluators_share_one_pass_over_the_images(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    evaluators = [open_evaluator(real, extractor=one) for one in (tiny_extractor(), "pixels")]
    made = evaluate(evaluators, run.path, num_images=40)
    assert len(sampled) == 1
    assert [one.record.extractor.name for one in made] == ["encoder:tiny", "pixels"]
    assert all(EvaluationRecord.read(one.path) == one.record for one in made)
    named = evaluate(evaluators, run.path, num_images=40, output=tmp_path / "score.json")
    assert [one.path.name for one in named] == ["score-encoder-tiny-abababab.json", "score-pixels-none.json"]
    assert named[1].record.metrics == made[1].record.metrics


def test_what_one_evaluator_refuses_the_others_still_score(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    blind = replace(
        tiny_extractor("encoder:blind", digest="bb" * 32), embed=lambda images: (images[:, :, 0, 0] * 0.0, None), dim=3
    )
    evaluators = [
        open_evaluator(real, extractor=one, execution=ScoringExecution(cache=False))
        for one in (blind, tiny_extractor())
    ]
    with pytest.raises(RefusedError):
        evaluate(evaluators, run.path, num_images=40)
    (written,) = (run.path / "evaluations").glob("*.json")
    assert "encoder-tiny-abababab" in written.name


def test_samples_in_a_run_are_scored_into_the_run(tmp_path, real):
    run = make_run(tmp_path / "ddpm", "ddpm")
    made = score(add_samples(run, 24, seed=5), real)
    assert made.path.parent == run.path / "evaluations"
    assert made.record.num_images == 24
    assert made.record.sampling.sampler == "ddim"
    assert made.record.sampling.seed == 5


def test_samples_elsewhere_find_the_run_they_name(tmp_path, real):
    run = make_run(tmp_path / "ddpm", "ddpm")
    info = {"num_images": 12, "run": str(run.path), "sampler": "ddim", "nfe": 5, "weights": "raw", "step": 3, "seed": 0}
    write_samples(tmp_path / "else" / "where.safetensors", random_images(12), info)
    assert score(tmp_path / "else" / "where.safetensors", real).path.parent == run.path / "evaluations"


def test_samples_of_an_absent_run_are_scored_beside_themselves(tmp_path, real):
    write_samples(tmp_path / "lone.safetensors", random_images(14), {"num_images": 14, "run": "/nowhere"})
    made = score(tmp_path / "lone.safetensors", real, num_images=12)
    digest = made.record.reference.digest[:8]
    assert made.path == tmp_path / f"lone.encoder-tiny-abababab.n12.{digest}.evaluation.json"
    assert made.record.run is None
    assert made.record.num_images == 12


def test_plain_images_are_scored_and_reference_against_itself_is_noticed(tmp_path, real):
    made = score(tmp_path / "real.safetensors", real, output=tmp_path / "out.json")
    assert made.path == tmp_path / "out.json"
    assert made.record.metrics["fid"] == pytest.approx(0, abs=1e-9)
    assert any("same images" in w for w in made.record.warnings)
    assert any("60 of 60 generated images are, pixel by pixel" in w for w in made.record.warnings)


def test_a_part_of_sorted_images_is_a_random_part(tmp_path, real):
    images = random_images(80, 3).sort(dim=0).values  # bright ones last
    make_pack(tmp_path / "sorted.safetensors", images)
    part = score(tmp_path / "sorted.safetensors", str(tmp_path / "sorted.safetensors"), num_images=40)
    first = score(tmp_path / "real.safetensors", str(tmp_path / "sorted.safetensors"))
    assert part.record.metrics["fid"] < first.record.metrics["fid"] / 3


def test_sampling_options_are_refused_for_images_that_are_there_already(tmp_path, real):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    with pytest.raises(UsageError, match="`nfe`"):
        score(path, real, sampling=SamplingConfig(nfe=5))
    with pytest.raises(UsageError, match="holds 16"):
        score(path, real, num_images=17)


def test_other_sizes_are_refused_before_sampling_unless_the_reference_is_resized(tmp_path, sampled):
    large = make_pack(tmp_path / "large.safetensors", random_images(40, size=16))
    run = trained(tmp_path / "drift")
    with pytest.raises(RefusedError, match="`image_size` 8"):
        score(run.path, str(large.path), num_images=20)
    assert sampled == []
    make_pack(tmp_path / "wide.safetensors", random_images(20, size=16))
    make_pack(tmp_path / "small.safetensors", random_images(20))
    with pytest.raises(RefusedError, match="16 pixels wide and the reference 8"):
        score(tmp_path / "wide.safetensors", str(tmp_path / "small.safetensors"))


def test_reference_is_resized_where_that_is_asked_for(tmp_path, sampled):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(random_images(40, size=16)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    run = trained(tmp_path / "drift")
    made = score(run.path, str(folder), num_images=20, image_size=8)
    assert made.record.reference.image_size == 8


def test_training_images_of_another_size_are_not_searched(tmp_path, real):
    training = make_pack(tmp_path / "training.safetensors", random_images(40, size=16))
    run = make_run(tmp_path / "drift")
    data = {"spec": str(training.path), "image_size": 16}
    run.update(config={**run.manifest().config, "data": data}, inputs={"data": {**data, "digest": training.digest}})
    record = score(add_samples(run), real).record
    assert any("not searched" in w and "16 pixels wide, the generated images 8" in w for w in record.warnings)
    assert record.memorization is None


def test_collapsed_samples_are_refused_and_nothing_is_written(tmp_path, real):
    path = tmp_path / "same.safetensors"
    write_samples(path, random_images(1).repeat(12, 1, 1, 1), {"num_images": 12})
    with pytest.raises(RefusedError, match="identical"):
        score(path, real)
    assert not list(tmp_path.glob("same*.evaluation.json"))
    made = score(path, real, options=ScoringOptions(allow_collapsed=True))
    assert any("`allow_collapsed`" in w for w in made.record.warnings)


def test_float_samples_are_scored_in_range_and_refused_otherwise(tmp_path, real):
    images = random_images(12).float() / 127.5 - 1
    write_tensors(tmp_path / "float.safetensors", {"images": images})
    write_samples(tmp_path / "uint8.safetensors", random_images(12), {"num_images": 12})
    ours, theirs = (score(tmp_path / f"{name}.safetensors", real).record for name in ("float", "uint8"))
    assert ours.metrics["fid"] == theirs.metrics["fid"]
    assert any("8 bits" in w for w in ours.warnings)
    images[4, 0, 0, 0] = torch.nan
    write_tensors(tmp_path / "broken.safetensors", {"images": images})
    with pytest.raises(RefusedError, match="1 of 12"):
        score(tmp_path / "broken.safetensors", real)


def test_samples_kept_as_jpeg_are_refused_against_lossless_images(tmp_path):
    for name, images, kind in (("made", as_jpeg(natural(30, 32)), "jpg"), ("real", natural(30, 32, seed=1), "png")):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i}.{kind}", quality=60)
    with pytest.raises(RefusedError, match="stored as JPEG"):
        score(tmp_path / "made", str(tmp_path / "real"))
    made = score(tmp_path / "made", str(tmp_path / "real"), options=ScoringOptions(allow_jpeg=True))
    assert made.record.compression.generated_formats == {"jpeg": 30}
    assert any("compression" in w for w in made.record.warnings)


def test_missing_target_and_reference(tmp_path, real):
    with pytest.raises(ArtifactError, match="found nothing"):
        score(tmp_path / "nowhere", real)
    write_json(tmp_path / "pack.json", {"kind": "pack"})
    with pytest.raises(ArtifactError, match="no such file"):
        score(tmp_path, "unreal")


def test_second_call_on_a_reference_skips_its_forward_pass_and_gets_the_same_digits(tmp_path, real):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"), 24)
    tasks, lines = [], []

    def execution(**more):
        def report(task, done, total):
            tasks.extend([task] if done else [])

        return ScoringExecution(report=report, notify=lines.append, **more)

    first, second = (score(path, real, execution=execution()).record for _ in range(2))
    assert tasks.count("reference, encoder:tiny") == 1
    assert tasks.count("encoder:tiny") == 2
    assert len(lines) == 1
    assert "60 images from" in lines[0]
    changing = {"created", "seconds", "seconds_by_part"}
    assert first.model_dump(exclude=changing) == second.model_dump(exclude=changing)
    score(path, real, execution=execution(cache=False))
    assert tasks.count("reference, encoder:tiny") == 2


def test_training_images_as_samples_are_flagged_and_new_ones_are_not(tmp_path):
    training = make_pack(tmp_path / "training.safetensors", random_images(300, 1))
    reference = make_pack(tmp_path / "held-out.safetensors", random_images(300, 2))
    run = make_run(tmp_path / "drift")
    manifest = run.manifest()
    config = {**manifest.config, "data": {"spec": str(training.path), "image_size": SIZE}}
    run.update(config=config, inputs={"data": {"spec": str(training.path), "digest": training.digest}})
    for name, images in (("copies", training.images[:100]), ("new", random_images(100, 3))):
        info = {"num_images": 100, "run": str(run.path), "sampler": "one-step", "nfe": 1, "weights": "ema", "seed": 0}
        write_samples(tmp_path / f"{name}.safetensors", images, info)
    near = training.images[:100].clone()
    near[:, :, 0, 0] ^= 1
    write_samples(tmp_path / "near.safetensors", near, {"num_images": 100, "run": str(run.path)})
    copies, new, almost = (
        score(tmp_path / f"{name}.safetensors", str(reference.path), output=tmp_path / f"{name}.json").record
        for name in ("copies", "new", "near")
    )
    assert copies.memorization.exact_copies == 100
    assert copies.metrics["nearest_ratio"] == 0
    assert copies.metrics["near_share"] == 1
    assert copies.training.among == "training images"
    assert copies.memorization.baseline.of == "held-out images"
    assert [w.generated == w.training for w in copies.memorization.worst] == [True] * 16
    assert any("pixel by pixel" in w for w in copies.warnings)
    assert almost.memorization.exact_copies == 0
    assert any("memorization" in w for w in almost.warnings)
    assert new.metrics["nearest_ratio"] == pytest.approx(1, abs=0.2)
    assert new.metrics["near_share"] < 0.05
    assert not any("memorization" in w for w in new.warnings)
    with Image.open(tmp_path / copies.training.picture) as picture:
        assert picture.width > picture.height


def test_a_reference_of_one_image_is_refused(tmp_path):
    one = make_pack(tmp_path / "one.safetensors", random_images(1))
    with pytest.raises(RefusedError, match=r"reference .*one\.safetensors: a score needs at least 10 images, got 1"):
        open_evaluator(str(one.path), extractor=tiny_extractor())


def test_samples_of_another_run_are_not_those_of_the_run_in_its_place(tmp_path, real):
    """Neither of the folder that they were put into, nor of the run that now has the name of theirs."""
    makers = {name: make_run(tmp_path / name).manifest().id for name in ("maker", "other")}
    info = {"num_images": 40, "run": str(tmp_path / "maker"), "sampler": "one-step", "nfe": 1, "weights": "ema"}
    for run_id, expected in ((makers["maker"], "maker"), (makers["other"], "other"), ("gone", None)):
        path = tmp_path / "other" / "samples" / f"{run_id}.safetensors"
        write_samples(path, random_images(40, 3), {**info, "seed": 0, "request": {"run id": run_id}})
        assert score(path, real, output=tmp_path / f"{run_id}.json").record.run == expected


def test_images_that_trained_the_weights_it_began_with_are_its_training_images_too(tmp_path):
    first = make_pack(tmp_path / "first.safetensors", random_images(60, 1))
    second = make_pack(tmp_path / "second.safetensors", random_images(60, 2))
    write_samples(tmp_path / "made.safetensors", random_images(40, 3), {"num_images": 40, "run": str(tmp_path / "run")})

    def scored(reference, seen):
        lineage = Lineage("ab", "unet", "unet", seen, False).describe()
        origin = WeightsOrigin(path="outputs/before", weights="ema", digest="ab", lineage=lineage)
        config = {"data": {"spec": str(second.path), "image_size": SIZE}}
        run = make_run(tmp_path / "run")
        inputs = {"data": {"spec": str(second.path), "digest": second.digest}}
        run.update(config={**run.manifest().config, **config}, inputs=inputs, initialised_from=origin)
        record = score(tmp_path / "made.safetensors", str(reference.path)).record
        return record.reference.is_training_data, [w for w in record.warnings if "initialised from" in w]

    before = (f"images {first.digest[:12]}",)
    on_first, (warning,) = scored(first, before)
    assert on_first
    assert f"outputs/before: images {first.digest[:12]}" in warning
    assert scored(second, (f"images {second.digest[:12]}",)) == (True, [])
    other, warnings = scored(first, None)
    assert (other, len(warnings)) == (False, 1)


def test_pairs_show_each_generated_image_above_its_nearest_training_image(tmp_path):
    images = random_images(40, 1)
    make_pack(tmp_path / "training.safetensors", images)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:20]
    write_samples(tmp_path / "copies.safetensors", images[order], {"num_images": 20})
    made = score(tmp_path / "copies.safetensors", str(tmp_path / "training.safetensors"))
    with Image.open(made.path.with_name(made.record.training.picture)) as picture:
        pixels = torch.tensor(list(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = pixels.view(picture.height, picture.width, 3)
    tile = (pixels.shape[0] - 2) // 4
    rows = [pixels[2 + i * tile : i * tile + tile] for i in range(4)]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])
    assert not torch.equal(rows[0], rows[2])
    assert made.record.training.among.startswith("reference images")


def test_labels_give_class_histograms_and_distances(tmp_path):
    labels = torch.arange(120) % 3
    tinted = random_images(120, 1)
    for c in range(3):
        tinted[labels == c, c] = tinted[labels == c, c] // 4
    reference = make_pack(tmp_path / "real.safetensors", tinted, labels, ("r", "g", "b"))
    skewed = torch.cat([tinted[labels == 0], tinted[labels == 1][:20]])
    make_pack(tmp_path / "made.safetensors", skewed, torch.tensor([0] * 40 + [1] * 20), ("r", "g", "b"))
    record = score(tmp_path / "made.safetensors", str(reference.path)).record
    classes = record.per_class
    assert classes.by == "labels"
    assert classes.generated == [40, 20, 0]
    assert classes.reference == [40, 40, 40]
    assert classes.reference_entropy == pytest.approx(1.0986, abs=1e-3)
    assert record.metrics["class_entropy"] == pytest.approx(0.6365, abs=1e-3)
    assert classes.fd["r"] == pytest.approx(0, abs=1e-9)
    assert classes.fd["b"] is None
    assert any("falls into: b" in w for w in record.warnings)


def test_repeats_take_disjoint_seeds_and_tell_all_values(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    evaluator = open_evaluator(real, extractor=tiny_extractor())
    made = evaluate_repeats([evaluator], run.path, 3, num_images=20, sampling=SamplingConfig(seed=5))[0]
    assert [r["seed"] for r in sampled] == [5, 6, 7]
    values = [json.loads(Path(p).read_text())["metrics"]["fid"] for p in made.record.evaluations]
    assert len(set(values)) == 3
    summary = made.record.spread["fid"]
    assert summary.values == values
    assert summary.mean == made.record.metrics["fid"] == pytest.approx(sum(values) / 3)
    assert summary.sd == pytest.approx(float(torch.tensor(values).std()), rel=1e-5)
    assert made.record.seeds == [5, 6, 7]
    assert made.path.parent == run.path / "evaluations" / "repeats"
    assert sorted(p.name for p in (run.path / "evaluations").glob("*.json")) == sorted(
        p.split("/")[-1] for p in made.record.evaluations
    )
    with pytest.raises(UsageError, match="at least 2"):
        evaluate_repeats([evaluator], run.path, 1)


def test_repeats_of_images_are_disjoint_parts(tmp_path, real):
    path = tmp_path / "many.safetensors"
    write_samples(path, random_images(50, 9), {"num_images": 50})
    evaluator = open_evaluator(real, extractor=tiny_extractor())
    made = evaluate_repeats([evaluator], path, 2, num_images=25)[0]
    assert len(set(made.record.spread["fid"].values)) == 2
    evaluate_repeats([evaluator], path, 2, num_images=20)
    evaluate_repeats([evaluator], path, 3, num_images=15)
    assert len(list(tmp_path.glob("many*.evaluation.json"))) == 2 + 2 + 3  # none replaces one of others
    with pytest.raises(UsageError, match="holds 50"):
        evaluate_repeats([evaluator], path, 3, num_images=20)


def test_all_checkpoints_give_a_curve_and_are_not_scored_twice(tmp_path, real, sampled):
    run = trained(tmp_path / "drift", 10, 20, 30)
    evaluator = open_evaluator(real, extractor=tiny_extractor())
    first = evaluate_checkpoints([evaluator], run.path, num_images=20)[0]
    assert [r["step"] for r in sampled] == [10, 20, 30]
    again = evaluate_checkpoints([open_evaluator(real, extractor=tiny_extractor())], run.path, num_images=20)[0]
    assert len(sampled) == 3
    assert first.record.points == again.record.points
    assert [p.step for p in first.record.points] == [10, 20, 30]
    assert [p.images_seen for p in first.record.points] == [40, 80, 120]
    with Image.open(first.path.with_suffix(".png")) as figure:
        assert figure.width > 400
    weights = {"w": torch.tensor([99.0])}
    state = {"step": 20, "images_seen": 80, "train_seconds": 20.0}
    run.save_checkpoint(20, weights={"raw": weights, "ema": weights}, optimizer={}, state=state, headers={})
    evaluate_checkpoints([evaluator], run.path, num_images=20)
    assert [r["step"] for r in sampled] == [10, 20, 30, 20]
    with pytest.raises(UsageError, match="`step`"):
        evaluate_checkpoints([evaluator], run.path, sampling=SamplingConfig(step=10))
    with pytest.raises(UsageError, match="no run"):
        evaluate_checkpoints([evaluator], tmp_path / "real.safetensors")
    with pytest.raises(NotFoundError, match="holds no checkpoint yet"):
        evaluate_checkpoints([evaluator], make_run(tmp_path / "new").path)


def test_checkpoints_that_cannot_be_scored_are_points_with_a_reason(tmp_path, real, sampled, monkeypatch):
    run = trained(tmp_path / "drift", 10, 20)
    generate = sys.modules["driftkit.training.sampling"].generate

    def collapsed_at_first(run, sampling, **wanted):
        images, info = generate(run, sampling, **wanted)
        return (images[:1].repeat(len(images), 1, 1, 1) if sampling.step == 10 else images), info

    monkeypatch.setattr(sys.modules["driftkit.training.sampling"], "generate", collapsed_at_first)
    evaluator = open_evaluator(real, extractor=tiny_extractor())
    early, late = evaluate_checkpoints([evaluator], run.path, num_images=20)[0].record.points
    assert early.metrics is None
    assert "identical" in early.refused
    assert late.metrics["fid"] > 0
