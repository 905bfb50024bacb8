"""The scoring stage: what an evaluation records, where it goes, and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from driftkit.encoders.lineage import Lineage
from driftkit.errors import ArtifactError, RefusedError, UsageError
from driftkit.metrics.appearance import PROPERTIES
from driftkit.scoring.evaluator import Judging, Sampling, evaluate, evaluate_with, open_judge
from driftkit.scoring.series import evaluate_checkpoints, evaluate_repeats
from driftkit.storage.files import read_json, write_json, write_tensors
from driftkit.storage.images import write_samples
from tests.metrics.test_survey import as_jpeg, natural
from tests.scoring.fakes import SIZE, add_samples, make_pack, make_run, random_images, tiny_extractor


@pytest.fixture
def real(tmp_path):
    """The SPEC of 60 real images."""
    return str(make_pack(tmp_path / "real.safetensors", random_images(60, 50)).path)


@pytest.fixture
def sampled(monkeypatch):
    """Requests that reached the sampling stage, which gives random images that are functions of seed and number."""
    requests = []

    def generate(run, *, num_images, first_image=0, seed=0, device=None, batch_size=0, advance=None, **wanted):
        requests.append({"num_images": num_images, "seed": seed, **wanted})
        step = wanted.get("step") or 30
        info = {
            "num_images": num_images, "image_size": SIZE, "seed": seed, "sampler": wanted.get("sampler") or "one-step",
            "nfe": wanted.get("nfe") or 1, "weights": wanted["weights"], "step": step, "method": "drift",
            "encoder": "outputs/mae", "run": str(run.path), "sampler_options": {},
        }  # fmt: skip
        return random_images(first_image + num_images, seed + 1000 * step)[first_image:], info

    module = ModuleType("driftkit.training.sampling")
    module.generate = generate
    monkeypatch.setitem(sys.modules, "driftkit.training.sampling", module)
    return requests


def trained(path, *steps, **manifest):
    """A run with checkpoints of these steps; their weights are one number each."""
    run = make_run(path, **manifest)
    for step in steps or (30,):
        weights = {"w": torch.tensor([float(step)])}
        state = {"step": step, "images_seen": 4 * step, "train_seconds": float(step)}
        run.save_checkpoint(step, raw=weights, ema=weights, optimizer={}, state=state, header={})
    return run


def score(target, reference, **more):
    return evaluate(target, reference, **{"features": tiny_extractor(), **more})


def test_run_is_sampled_and_its_evaluation_records_what_the_number_depends_on(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    made = score(run.path, real, num_images=40, sampling=Sampling(seed=3))
    assert sampled == [{"num_images": 40, "seed": 3, "weights": "ema", "precision": "float32"}]
    document = made.document
    digest = document["reference"]["digest"]
    assert made.path.parent == run.path / "evaluations"
    assert made.path.name == f"encoder-tiny-abababab-one-step-1-ema-step30-n40-seed3-{digest[:8]}.json"
    assert read_json(made.path) == document
    assert document["name"] == "fid@40"
    assert set(document["metrics"]) == {"fid", "kid_mean", "kid_std", "precision", "recall", "density", "coverage"}
    assert document["extractor"] == {
        "name": "encoder:tiny", "version": "1", "weights_digest": "ab" * 32, "resize": "4x4 mean", "dim": 12,
        "precision": "float32 (IEEE)",
        "lineage": tiny_extractor().lineage.describe(),
    }  # fmt: skip
    assert document["reference"] == {
        "spec": real, "digest": digest, "count": 60, "image_size": 8, "is_training_data": False,
    }  # fmt: skip
    assert {key: document[key] for key in ("run", "seed", "nfe", "sampler", "weights", "step", "num_images")} == {
        "run": "drift", "seed": 3, "nfe": 1, "sampler": "one-step", "weights": "ema", "step": 30, "num_images": 40,
    }  # fmt: skip
    assert document["floor"]["num_images"] == 30
    assert set(document["metrics"]) <= set(document["floor"])
    assert document["kinship"]["degree"] == "related"  # this run does not say what its encoder was made of
    assert set(document["appearance"]) == set(PROPERTIES)
    assert any("few" in w for w in document["warnings"])
    assert any("floor" in w for w in document["warnings"])
    assert any("training images were not looked for" in w for w in document["warnings"])


def test_batch_size_does_not_change_scores(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    scores = [score(run.path, real, num_images=40, batch_size=n, cache=False).document["metrics"] for n in (3, 64)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_kin_of_the_training_encoder_are_labelled(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    lineage = Lineage("ef" * 32, "tiny", "tiny family", ("photos",))
    run.update(encoder={"weights_digest": "ef" * 32, "lineage": [lineage.describe()]})
    kin = score(run.path, real, features=replace(tiny_extractor(), lineage=lineage), num_images=40).document
    assert kin["kinship"]["degree"] == "kin"
    assert any("no independent evaluator" in w for w in kin["warnings"])
    other = replace(tiny_extractor(), lineage=Lineage("aa", "other", "other family", ("paintings",)))
    assert score(run.path, real, features=other, num_images=40).document["kinship"]["degree"] == "independent"


def test_several_evaluators_share_one_pass_over_the_images(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    judges = [open_judge(real, features=one) for one in (tiny_extractor(), "pixels")]
    made = evaluate_with(judges, run.path, num_images=40)
    assert len(sampled) == 1
    assert [one.document["extractor"]["name"] for one in made] == ["encoder:tiny", "pixels"]
    assert all(read_json(one.path) == one.document for one in made)
    named = evaluate_with(judges, run.path, num_images=40, output=tmp_path / "score.json")
    assert [one.path.name for one in named] == ["score-encoder-tiny-abababab.json", "score-pixels-none.json"]
    assert named[1].document["metrics"] == made[1].document["metrics"]


def test_what_one_evaluator_refuses_the_others_still_score(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    blind = replace(
        tiny_extractor("encoder:blind", digest="bb" * 32), embed=lambda images: (images[:, :, 0, 0] * 0.0, None), dim=3
    )
    judges = [open_judge(real, features=one, cache=False) for one in (blind, tiny_extractor())]
    with pytest.raises(RefusedError):
        evaluate_with(judges, run.path, num_images=40)
    (written,) = (run.path / "evaluations").glob("*.json")
    assert "encoder-tiny-abababab" in written.name


def test_samples_in_a_run_are_scored_into_the_run(tmp_path, real):
    run = make_run(tmp_path / "ddpm", "ddpm")
    made = score(add_samples(run, 24, seed=5), real)
    assert made.path.parent == run.path / "evaluations"
    assert made.document["num_images"] == 24
    assert made.document["sampler"] == "ddim"
    assert made.document["seed"] == 5


def test_samples_elsewhere_find_the_run_they_name(tmp_path, real):
    run = make_run(tmp_path / "ddpm", "ddpm")
    info = {"num_images": 12, "run": str(run.path), "sampler": "ddim", "nfe": 5, "weights": "raw", "step": 3, "seed": 0}
    write_samples(tmp_path / "else" / "where.safetensors", random_images(12), info)
    assert score(tmp_path / "else" / "where.safetensors", real).path.parent == run.path / "evaluations"


def test_samples_of_an_absent_run_are_scored_beside_themselves(tmp_path, real):
    write_samples(tmp_path / "lone.safetensors", random_images(14), {"num_images": 14, "run": "/nowhere"})
    made = score(tmp_path / "lone.safetensors", real, num_images=12)
    assert made.path == tmp_path / "lone.encoder-tiny-abababab.evaluation.json"
    assert made.document["run"] is None
    assert made.document["num_images"] == 12


def test_plain_images_are_scored_and_reference_against_itself_is_noticed(tmp_path, real):
    made = score(tmp_path / "real.safetensors", real, output=tmp_path / "out.json")
    assert made.path == tmp_path / "out.json"
    assert made.document["metrics"]["fid"] == pytest.approx(0, abs=1e-9)
    assert any("same images" in w for w in made.document["warnings"])
    assert any("60 of 60 generated images are, pixel by pixel" in w for w in made.document["warnings"])


def test_a_part_of_sorted_images_is_a_random_part(tmp_path, real):
    images = random_images(80, 3).sort(dim=0).values  # bright ones last
    make_pack(tmp_path / "sorted.safetensors", images)
    part = score(tmp_path / "sorted.safetensors", str(tmp_path / "sorted.safetensors"), num_images=40)
    first = score(tmp_path / "real.safetensors", str(tmp_path / "sorted.safetensors"))
    assert part.document["metrics"]["fid"] < first.document["metrics"]["fid"] / 3


def test_sampling_options_are_refused_for_images_that_are_there_already(tmp_path, real):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    with pytest.raises(UsageError, match="--nfe"):
        score(path, real, sampling=Sampling(nfe=5))
    with pytest.raises(UsageError, match="holds 16"):
        score(path, real, num_images=17)


def test_other_sizes_are_refused_before_sampling_unless_the_reference_is_resized(tmp_path, sampled):
    large = make_pack(tmp_path / "large.safetensors", random_images(40, size=16))
    run = trained(tmp_path / "drift")
    with pytest.raises(RefusedError, match="--image-size 8"):
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
    assert made.document["reference"]["image_size"] == 8


def test_collapsed_samples_are_refused_and_nothing_is_written(tmp_path, real):
    path = tmp_path / "same.safetensors"
    write_samples(path, random_images(1).repeat(12, 1, 1, 1), {"num_images": 12})
    with pytest.raises(RefusedError, match="identical"):
        score(path, real)
    assert not (tmp_path / "same.encoder-tiny-abababab.evaluation.json").exists()
    made = score(path, real, allow_collapsed=True)
    assert any("--allow-collapsed" in w for w in made.document["warnings"])


def test_float_samples_are_scored_in_range_and_refused_otherwise(tmp_path, real):
    images = random_images(12).float() / 127.5 - 1
    write_tensors(tmp_path / "float.safetensors", {"images": images})
    write_samples(tmp_path / "uint8.safetensors", random_images(12), {"num_images": 12})
    ours, theirs = (score(tmp_path / f"{name}.safetensors", real).document for name in ("float", "uint8"))
    assert ours["metrics"]["fid"] == theirs["metrics"]["fid"]
    assert any("8 bits" in w for w in ours["warnings"])
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
    made = score(tmp_path / "made", str(tmp_path / "real"), judging=Judging(allow_jpeg=True))
    assert made.document["compression"]["generated_formats"] == {"jpeg": 30}
    assert any("compression" in w for w in made.document["warnings"])


def test_missing_target_and_reference(tmp_path, real):
    with pytest.raises(ArtifactError, match="found nothing"):
        score(tmp_path / "nowhere", real)
    write_json(tmp_path / "pack.json", {"kind": "pack"})
    with pytest.raises(ArtifactError, match="no such file"):
        score(tmp_path, "unreal")


def test_second_call_on_a_reference_skips_its_forward_pass_and_gets_the_same_digits(tmp_path, real):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"), 24)
    seen, told = [], []
    first, second = (
        score(path, real, report=lambda what, done, total: seen.append(what), tell=told.append).document
        for _ in range(2)
    )
    assert seen.count("reference, encoder:tiny") == 1
    assert seen.count("encoder:tiny") == 2
    assert len(told) == 1
    assert "60 images from" in told[0]
    for key in ("metrics", "floor", "memorisation", "classes", "compression", "reference"):
        assert first[key] == second[key]
    score(path, real, cache=False, report=lambda what, done, total: seen.append(what))
    assert seen.count("reference, encoder:tiny") == 2


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
        score(tmp_path / f"{name}.safetensors", str(reference.path), output=tmp_path / f"{name}.json").document
        for name in ("copies", "new", "near")
    )
    assert copies["memorisation"]["exact_copies"] == 100
    assert copies["metrics"]["nearest_ratio"] == 0
    assert copies["metrics"]["near_share"] == 1
    assert copies["memorisation"]["among"] == "training images"
    assert copies["memorisation"]["baseline"]["of"] == "held-out images"
    assert [w["generated"] == w["training"] for w in copies["memorisation"]["worst"]] == [True] * 16
    assert any("pixel by pixel" in w for w in copies["warnings"])
    assert almost["memorisation"]["exact_copies"] == 0
    assert any("memorization" in w for w in almost["warnings"])
    assert new["metrics"]["nearest_ratio"] == pytest.approx(1, abs=0.2)
    assert new["metrics"]["near_share"] < 0.05
    assert not any("memorization" in w for w in new["warnings"])
    with Image.open(tmp_path / copies["memorisation"]["picture"]) as picture:
        assert picture.width > picture.height


def test_pairs_show_each_generated_image_above_its_nearest_training_image(tmp_path):
    images = random_images(40, 1)
    make_pack(tmp_path / "training.safetensors", images)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:20]
    write_samples(tmp_path / "copies.safetensors", images[order], {"num_images": 20})
    made = score(tmp_path / "copies.safetensors", str(tmp_path / "training.safetensors"))
    with Image.open(made.path.with_name(made.document["memorisation"]["picture"])) as picture:
        pixels = torch.tensor(list(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = pixels.view(picture.height, picture.width, 3)
    tile = (pixels.shape[0] - 2) // 4
    rows = [pixels[2 + i * tile : i * tile + tile] for i in range(4)]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])
    assert not torch.equal(rows[0], rows[2])
    assert made.document["memorisation"]["among"].startswith("reference images")


def test_labels_give_class_histograms_and_distances(tmp_path):
    labels = torch.arange(120) % 3
    tinted = random_images(120, 1)
    for c in range(3):
        tinted[labels == c, c] = tinted[labels == c, c] // 4
    reference = make_pack(tmp_path / "real.safetensors", tinted, labels, ("r", "g", "b"))
    skewed = torch.cat([tinted[labels == 0], tinted[labels == 1][:20]])
    make_pack(tmp_path / "made.safetensors", skewed, torch.tensor([0] * 40 + [1] * 20), ("r", "g", "b"))
    document = score(tmp_path / "made.safetensors", str(reference.path)).document
    classes = document["classes"]
    assert classes["by"] == "labels"
    assert classes["generated"] == [40, 20, 0]
    assert classes["reference"] == [40, 40, 40]
    assert classes["reference_entropy"] == pytest.approx(1.0986, abs=1e-3)
    assert document["metrics"]["class_entropy"] == pytest.approx(0.6365, abs=1e-3)
    assert classes["fd"]["r"] == pytest.approx(0, abs=1e-9)
    assert classes["fd"]["b"] is None
    assert any("falls into: b" in w for w in document["warnings"])


def test_repeats_take_disjoint_seeds_and_tell_all_values(tmp_path, real, sampled):
    run = trained(tmp_path / "drift")
    judge = open_judge(real, features=tiny_extractor())
    made = evaluate_repeats([judge], run.path, 3, num_images=20, sampling=Sampling(seed=5))[0]
    assert [r["seed"] for r in sampled] == [5, 6, 7]
    values = [json.loads(Path(p).read_text())["metrics"]["fid"] for p in made.document["evaluations"]]
    assert len(set(values)) == 3
    summary = made.document["repeats"]["metrics"]["fid"]
    assert summary["values"] == values
    assert summary["mean"] == made.document["metrics"]["fid"] == pytest.approx(sum(values) / 3)
    assert summary["sd"] == pytest.approx(float(torch.tensor(values).std()), rel=1e-5)
    assert made.document["repeats"]["seeds"] == [5, 6, 7]
    assert made.path.parent == run.path / "evaluations" / "repeats"
    assert sorted(p.name for p in (run.path / "evaluations").glob("*.json")) == sorted(
        p.split("/")[-1] for p in made.document["evaluations"]
    )
    with pytest.raises(UsageError, match="at least 2"):
        evaluate_repeats([judge], run.path, 1)


def test_repeats_of_images_are_disjoint_parts(tmp_path, real):
    path = tmp_path / "many.safetensors"
    write_samples(path, random_images(50, 9), {"num_images": 50})
    judge = open_judge(real, features=tiny_extractor())
    made = evaluate_repeats([judge], path, 2, num_images=25)[0]
    assert len(set(made.document["repeats"]["metrics"]["fid"]["values"])) == 2
    with pytest.raises(UsageError, match="holds 50"):
        evaluate_repeats([judge], path, 3, num_images=20)


def test_all_checkpoints_give_a_curve_and_are_not_scored_twice(tmp_path, real, sampled):
    run = trained(tmp_path / "drift", 10, 20, 30)
    judge = open_judge(real, features=tiny_extractor())
    first = evaluate_checkpoints([judge], run.path, num_images=20)[0]
    assert [r["step"] for r in sampled] == [10, 20, 30]
    again = evaluate_checkpoints([open_judge(real, features=tiny_extractor())], run.path, num_images=20)[0]
    assert len(sampled) == 3
    assert first.document["points"] == again.document["points"]
    assert [p["step"] for p in first.document["points"]] == [10, 20, 30]
    assert [p["images_seen"] for p in first.document["points"]] == [40, 80, 120]
    with Image.open(first.path.with_suffix(".png")) as figure:
        assert figure.width > 400
    weights = {"w": torch.tensor([99.0])}
    run.save_checkpoint(20, raw=weights, ema=weights, optimizer={}, state={"step": 20}, header={})
    evaluate_checkpoints([judge], run.path, num_images=20)
    assert [r["step"] for r in sampled] == [10, 20, 30, 20]
    with pytest.raises(UsageError, match="--step"):
        evaluate_checkpoints([judge], run.path, sampling=Sampling(step=10))
    with pytest.raises(UsageError, match="no run"):
        evaluate_checkpoints([judge], tmp_path / "real.safetensors")


def test_checkpoints_that_cannot_be_scored_are_points_with_a_reason(tmp_path, real, sampled, monkeypatch):
    run = trained(tmp_path / "drift", 10, 20)
    generate = sys.modules["driftkit.training.sampling"].generate

    def collapsed_at_first(run, **wanted):
        images, info = generate(run, **wanted)
        return (images[:1].repeat(len(images), 1, 1, 1) if wanted["step"] == 10 else images), info

    monkeypatch.setattr(sys.modules["driftkit.training.sampling"], "generate", collapsed_at_first)
    judge = open_judge(real, features=tiny_extractor())
    early, late = evaluate_checkpoints([judge], run.path, num_images=20)[0].document["points"]
    assert early["metrics"] is None
    assert "identical" in early["refused"]
    assert late["metrics"]["fid"] > 0
