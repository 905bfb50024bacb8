"""The scoring stage: what an evaluation records, where it goes, and what is refused."""

import json
import sys
from types import ModuleType

import pytest
import torch

from driftkit.artifacts.files import write_json
from driftkit.artifacts.images import write_samples
from driftkit.errors import MissingError, RefusedError, UsageError
from driftkit.stages.fid import Sampling, evaluate
from tests.evaluation.fakes import FakePack, add_samples, make_run, random_images, tiny_extractor


@pytest.fixture
def packs(monkeypatch):
    """Data specs that `open_dataset` knows; a test may add to them."""
    known = {"real": FakePack(random_images(60, 50))}

    def open_dataset(spec, *, image_size=None, limit=None, **_):
        if spec not in known:
            raise MissingError(f"{spec}: no such data")
        pack = known[spec]
        if image_size is not None and image_size != pack.image_size:
            resized = torch.nn.functional.interpolate(pack.images.float(), size=(image_size, image_size))
            return FakePack(resized.to(torch.uint8), digest="01" * 32)
        return pack

    module = ModuleType("driftkit.datasets.sources")
    module.open_dataset = open_dataset
    monkeypatch.setitem(sys.modules, "driftkit.datasets.sources", module)
    return known


@pytest.fixture
def sampled(monkeypatch):
    """Requests that reached the sampling stage, which gives random images."""
    requests = []

    def generate(run, *, num_images, seed=0, device=None, batch_size=0, advance=None, **wanted):
        requests.append({"num_images": num_images, "seed": seed, **wanted})
        info = {
            "num_images": num_images, "image_size": 8, "seed": seed, "sampler": wanted.get("sampler") or "one-step",
            "nfe": wanted.get("nfe") or 1, "weights": wanted["weights"], "step": 30, "method": "drift",
            "encoder": "outputs/mae", "run": str(run.path), "sampler_options": {},
        }  # fmt: skip
        return random_images(num_images, seed), info

    module = ModuleType("driftkit.stages.sample")
    module.generate = generate
    monkeypatch.setitem(sys.modules, "driftkit.stages.sample", module)
    return requests


def test_run_is_sampled_and_its_evaluation_records_what_the_number_depends_on(tmp_path, packs, sampled):
    run = make_run(tmp_path / "drift")
    made = evaluate(run.path, "real", features=tiny_extractor(), num_images=40, sampling=Sampling(seed=3))
    assert sampled == [{"num_images": 40, "seed": 3, "weights": "ema"}]
    document = made.document
    assert made.path.parent == run.path / "evaluations"
    assert made.path.name == "encoder-tiny-abababab-one-step-1-ema-step30-n40-seed3-cdcdcdcd.json"
    assert json.loads(made.path.read_text()) == document
    assert document["name"] == "fid@40"
    assert set(document["metrics"]) == {"fid", "kid_mean", "kid_std", "precision", "recall", "density", "coverage"}
    assert document["extractor"] == {
        "name": "encoder:tiny", "version": "1", "weights_digest": "ab" * 32, "resize": "4x4 mean", "dim": 12,
    }  # fmt: skip
    assert document["reference"] == {
        "spec": "real", "digest": "cd" * 32, "count": 60, "image_size": 8, "is_training_data": True,
        "from_cache": False,
    }  # fmt: skip
    assert {key: document[key] for key in ("run", "seed", "nfe", "sampler", "weights", "step", "num_images")} == {
        "run": "drift", "seed": 3, "nfe": 1, "sampler": "one-step", "weights": "ema", "step": 30, "num_images": 40,
    }  # fmt: skip
    assert document["floor"]["num_images"] == 30
    assert document["own_teacher"] is False
    assert any("few" in w for w in document["warnings"])
    assert any("floor" in w for w in document["warnings"])


def test_batch_size_does_not_change_scores(tmp_path, packs, sampled):
    run = make_run(tmp_path / "drift")
    scores = [
        evaluate(run.path, "real", features=tiny_extractor(), num_images=40, batch_size=size).document["metrics"]
        for size in (3, 64)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_own_teacher_is_labelled(tmp_path, packs, sampled):
    run = make_run(tmp_path / "drift")
    assert evaluate(
        run.path, "real", features=tiny_extractor(digest="ef" * 32), num_images=40
    ).document["own_teacher"]  # fmt: skip
    run.update(encoder={"weights_digest": "random"})
    assert not evaluate(
        run.path, "real", features=tiny_extractor(digest="random"), num_images=40
    ).document["own_teacher"]  # fmt: skip


def test_samples_in_a_run_are_scored_into_the_run(tmp_path, packs):
    run = make_run(tmp_path / "ddpm", "ddpm")
    made = evaluate(add_samples(run, 24, seed=5), "real", features=tiny_extractor())
    assert made.path.parent == run.path / "evaluations"
    assert made.document["num_images"] == 24
    assert made.document["sampler"] == "ddim"
    assert made.document["seed"] == 5


def test_samples_elsewhere_find_the_run_they_name(tmp_path, packs):
    run = make_run(tmp_path / "ddpm", "ddpm")
    info = {"num_images": 9, "run": str(run.path), "sampler": "ddim", "nfe": 5, "weights": "raw", "step": 30, "seed": 0}
    write_samples(tmp_path / "else" / "where.safetensors", random_images(9), info)
    made = evaluate(tmp_path / "else" / "where.safetensors", "real", features=tiny_extractor())
    assert made.path.parent == run.path / "evaluations"


def test_samples_of_an_absent_run_are_scored_beside_themselves(tmp_path, packs):
    write_samples(tmp_path / "lone.safetensors", random_images(9), {"num_images": 9, "run": "/nowhere"})
    made = evaluate(tmp_path / "lone.safetensors", "real", features=tiny_extractor(), num_images=8)
    assert made.path == tmp_path / "lone.evaluation.json"
    assert made.document["run"] is None
    assert made.document["num_images"] == 8


def test_plain_images_are_scored_and_reference_against_itself_is_noticed(tmp_path, packs):
    folder = tmp_path / "images"
    folder.mkdir()
    packs[str(folder)] = packs["real"]
    made = evaluate(folder, "real", features=tiny_extractor(), output=tmp_path / "out.json")
    assert made.path == tmp_path / "out.json"
    assert made.document["metrics"]["fid"] == pytest.approx(0, abs=1e-9)
    assert any("same images" in w for w in made.document["warnings"])


def test_sampling_options_are_refused_for_images_that_are_there_already(tmp_path, packs):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    with pytest.raises(UsageError, match="--nfe"):
        evaluate(path, "real", features=tiny_extractor(), sampling=Sampling(nfe=5))
    with pytest.raises(UsageError, match="holds 16"):
        evaluate(path, "real", features=tiny_extractor(), num_images=17)


def test_other_sizes_are_refused_before_sampling_unless_the_reference_is_resized(tmp_path, packs, sampled):
    packs["large"] = FakePack(random_images(40, size=16))
    run = make_run(tmp_path / "drift")
    with pytest.raises(RefusedError, match="--image-size 8"):
        evaluate(run.path, "large", features=tiny_extractor(), num_images=20)
    assert sampled == []
    made = evaluate(run.path, "large", features=tiny_extractor(), num_images=20, image_size=8)
    assert made.document["reference"]["image_size"] == 8


def test_collapsed_samples_are_refused_and_nothing_is_written(tmp_path, packs):
    path = tmp_path / "same.safetensors"
    write_samples(path, random_images(1).repeat(12, 1, 1, 1), {"num_images": 12})
    with pytest.raises(RefusedError, match="identical"):
        evaluate(path, "real", features=tiny_extractor())
    assert not (tmp_path / "same.evaluation.json").exists()


def test_missing_target_and_reference(tmp_path, packs):
    with pytest.raises(MissingError, match="found nothing"):
        evaluate(tmp_path / "nowhere", "real", features=tiny_extractor())
    write_json(tmp_path / "pack.json", {"kind": "pack"})
    with pytest.raises(MissingError, match="no such data"):
        evaluate(tmp_path, "unreal", features=tiny_extractor())


def test_repeats_sample_with_other_seeds_and_record_mean_sd_and_every_value(tmp_path, packs, sampled):
    run = make_run(tmp_path / "drift")
    made = evaluate(run.path, "real", features=tiny_extractor(), num_images=40, sampling=Sampling(seed=5), repeats=3)
    assert [request["seed"] for request in sampled] == [5, 6, 7]
    repeats, metrics = made.document["repeats"], made.document["metrics"]
    assert repeats["seeds"] == [5, 6, 7]
    fid = repeats["metrics"]["fid"]
    singles = [
        evaluate(run.path, "real", features=tiny_extractor(), num_images=40, sampling=Sampling(seed=seed)).document
        for seed in (5, 6, 7)
    ]
    assert fid["values"] == pytest.approx([single["metrics"]["fid"] for single in singles], rel=1e-12)
    assert len(set(fid["values"])) == 3
    assert fid["mean"] == metrics["fid"] == pytest.approx(sum(fid["values"]) / 3)
    assert fid["sd"] == pytest.approx(torch.tensor(fid["values"], dtype=torch.float64).std().item())
    assert "seed5x3" in made.path.name


def test_repeats_of_images_that_are_there_already_are_refused(tmp_path, packs):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    with pytest.raises(UsageError, match="--repeats 2"):
        evaluate(path, "real", features=tiny_extractor(), repeats=2)
    with pytest.raises(UsageError, match="at least 1"):
        evaluate(path, "real", features=tiny_extractor(), repeats=0)


def test_second_call_takes_the_reference_from_the_cache_and_says_so(tmp_path, packs, capsys):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    seen = []

    def score(**options):
        done = lambda what, count, total: seen.append(what)  # noqa: E731
        return evaluate(path, "real", features=tiny_extractor(), report=done, **options).document

    first = score()
    assert "reference" in seen
    assert "cache" not in capsys.readouterr().err
    seen.clear()
    second = score()
    assert "reference" not in seen
    assert "features of 60 images taken from" in capsys.readouterr().err
    assert second["reference"]["from_cache"] is True
    assert second["metrics"] == first["metrics"]
    assert second["floor"] == first["floor"]
    assert score(use_cache=False)["reference"]["from_cache"] is False
    assert "reference" in seen
