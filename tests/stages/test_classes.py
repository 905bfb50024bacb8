"""Labels all the way: a class-conditional run is trained, sampled by class, scored, compared and exported."""

import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from driftkit.metrics.base import FeatureStats
from driftkit.scoring.evaluator import shared_classes
from driftkit.storage.checksums import file_record
from driftkit.storage.files import read_json, read_tensors, write_tensors
from driftkit.storage.images import read_samples, write_samples
from driftkit.storage.run_folder import Run
from tests.conftest import document, driftkit, first_is_fast, replace_weights, train_tiny
from tests.scoring.fakes import make_pack, random_images, score

SHAPES = "shapes?image_size=8&count=300&classes=3"
NAMES = ["circle", "square", "triangle"]
CONDITIONAL = ("--class-conditional", "--data", SHAPES)


def done(*words):
    return document(*words, "--device", "cpu")


def columns_of(path, size=66):
    """Rows and columns of a grid."""
    with Image.open(path) as picture:
        return picture.height // size, picture.width // size


@pytest.mark.parametrize("objective", first_is_fast("ddpm", "flow"))
def test_labels_go_from_training_to_samples_scores_tables_and_graphs(objective, tmp_path):
    run, plain = tmp_path / "run", tmp_path / "plain"
    train_tiny(run, objective, *CONDITIONAL)
    train_tiny(plain, objective, "--data", SHAPES)
    manifest = read_json(run / "manifest.json")
    assert [known["name"] for known in manifest["classes"]] == NAMES
    assert manifest["config"]["model"]["num_classes"] == 3
    assert manifest["config"]["objective"]["label_dropout"] == 0.1
    assert columns_of(run / "samples" / "step-00000002.png") == (3, 8)
    assert columns_of(plain / "samples" / "step-00000002.png") == (8, 8)

    made = done("sample", run, "-n", 7, "--class", "square,triangle", "--class", "0", "--guidance", 2, "--nfe", 4)
    samples = read_samples(tmp_path / made["samples"])
    assert samples.labels.tolist() == [1, 2, 0, 1, 2, 0, 1]
    assert (made["nfe"], made["guidance"], made["classes"]) == (4, 2.0, NAMES)
    assert made["asked_classes"] == ["square", "triangle", "circle"]
    assert columns_of(samples.path.with_suffix(".png"))[0] == 3
    assert "guidance2" in samples.path.name
    even = read_samples(tmp_path / done("sample", run, "-n", 30, "--nfe", 2)["samples"])
    assert torch.bincount(even.labels).tolist() == pytest.approx([10, 10, 10], abs=2)
    assert even.record.guidance == 1.0
    assert read_samples(tmp_path / done("sample", plain, "-n", 2, "--nfe", 2)["samples"]).labels is None

    line = ["-r", SHAPES, "--extractor", "pixels", "-n", 48, "--nfe", 4, "--allow-collapsed"]
    scores = [done("fid", run, *line, "--guidance", scale) for scale in (1, 2)] + [done("fid", plain, *line)]
    assert [s["sampling"]["guidance"] for s in scores] == [1.0, 2.0, None]
    assert [s["sampling"]["nfe"] for s in scores] == [4, 4, 4]
    assert scores[1]["per_class"]["by"] == "labels"
    assert scores[1]["per_class"]["generated"] == pytest.approx([16] * 3, abs=2)
    assert len({s["evaluation"] for s in scores}) == 3

    report = tmp_path / "report"
    compared = driftkit("compare", run, plain, "--no-speed", "--no-neighbours", "--output", report)
    assert compared.exit_code == 0, compared.output
    document = read_json(report / "compare.json")
    rows = {(r["run"], r["sampler"].partition(" ")[2]): r["badges"] for r in document["score_tables"][0]["rows"]}
    assert set(rows) == {("run", ""), ("run", "guidance=2"), ("plain", "")}
    assert all(("class-conditional" in badges) == (name == "run") for (name, _), badges in rows.items())
    assert any("Class-conditional runs (run) learned from labels" in sentence for sentence in document["cautions"])
    assert "a row per class: circle, square, triangle" in (report / "report.html").read_text()

    exported = done_export(run)
    assert list(exported["inputs"]) == ["x_t", "t", "labels"]
    assert exported["classes"] == NAMES
    assert list(done_export(plain)["inputs"]) == ["x_t", "t"]


def done_export(run):
    result = driftkit("export", run, "--format", "torchscript", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("objective", first_is_fast("flow", "ddpm"))
def test_a_resumed_class_conditional_run_has_the_weights_of_an_uninterrupted_one(objective, tmp_path):
    train_tiny(tmp_path / "whole", objective, *CONDITIONAL, steps=4)
    for steps in (2, 4):
        train_tiny(tmp_path / "parts", objective, *CONDITIONAL, steps=steps)
    whole, parts = (Run.open(tmp_path / name).checkpoint().weights("raw") for name in ("whole", "parts"))
    assert "condition_embedding.labels.weight" in whole
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def coloured(count, seed):
    """Images whose class is their colour, uint8 [count, 3, 8, 8], and labels."""
    labels = torch.arange(count) % 3
    shifts = torch.eye(3)[labels].view(-1, 3, 1, 1) * 100
    return (random_images(count, seed).float() / 3 + shifts).to(torch.uint8), labels


def test_agreement_is_the_share_of_samples_that_a_classifier_puts_into_the_asked_class(tmp_path):
    images, labels = coloured(240, 0)
    make_pack(tmp_path / "real.safetensors", images, labels, ("r", "g", "b"))
    generated, truth = coloured(60, 1)
    asked = torch.where(torch.arange(60) < 15, (truth + 1) % 3, truth)
    info = {"num_images": 60, "classes": ("r", "g", "b"), "sampler": "ddim", "nfe": 5, "guidance": 1.0}
    write_samples(tmp_path / "made.safetensors", generated, info, asked)
    record = score(tmp_path / "made.safetensors", str(tmp_path / "real.safetensors")).record
    assert record.metrics["class_agreement"] == pytest.approx(0.75, abs=0.04)
    assert record.metrics["classifier_accuracy"] == record.real_metrics["class_agreement"] > 0.95
    assert (record.per_class.by, record.per_class.classifier) == ("labels", "linear")
    first = score(tmp_path / "made.safetensors", str(tmp_path / "real.safetensors"), num_images=15).record
    assert first.metrics["class_agreement"] < 0.2  # the first samples, in their order


def test_labels_follow_the_names_of_classes_into_a_reference_that_orders_them_differently():
    rows = torch.zeros(3, 2)
    generated = FeatureStats.of_rows(rows, labels=torch.tensor([0, 1, 1]))
    classes, same = shared_classes(("b", "a"), generated, ("a", "b", "c"))
    assert (classes, same.labels.tolist()) == (("a", "b", "c"), [1, 0, 0])
    assert shared_classes(("b", "x"), generated, ("a", "b"))[0] == ()
    assert shared_classes((), generated, ("a", "b"))[0] == ("a", "b")
    classes, same = shared_classes(("x", "b", "a"), replace(generated, labels=generated.labels + 1), ("a", "b"))
    assert (classes, same.labels.tolist()) == (("a", "b"), [1, 0, 0]), "no image is of x"


def test_scores_say_where_samples_and_reference_are_not_of_the_same_classes(tmp_path):
    images, labels = coloured(240, 0)
    real, two = (str(tmp_path / f"{name}.safetensors") for name in ("real", "two"))
    make_pack(tmp_path / "real.safetensors", images, labels, ("r", "g", "b"))
    make_pack(tmp_path / "two.safetensors", images[labels < 2], labels[labels < 2], ("r", "g"))
    generated, truth = coloured(60, 1)
    info = {"num_images": 60, "classes": ("x", "r", "g", "b"), "sampler": "ddim", "nfe": 5, "guidance": 1.0}
    names = {"asked_classes": ("r", "g")}
    for name, chosen, more in (("all", truth >= 0, {}), ("some", truth < 2, names)):
        count = int(chosen.sum())
        sampled = {**info, **more, "num_images": count}
        write_samples(tmp_path / f"{name}.safetensors", generated[chosen], sampled, truth[chosen] + 1)

    def scored(name, reference):
        record = score(tmp_path / f"{name}.safetensors", reference).record
        return record.metrics.get("class_agreement"), " ".join(record.warnings)

    agreement, warnings = scored("some", two)
    assert (agreement > 0.95, "were sampled" in warnings) == (True, False)
    agreement, warnings = scored("some", real)
    assert agreement > 0.95
    assert "only r, g were sampled, against a reference of 3 classes" in warnings
    agreement, warnings = scored("all", two)
    assert (agreement, "the reference lacks classes" in warnings) == (None, True)
    assert "were sampled" not in scored("all", real)[1]


def test_labels_that_are_none_of_the_record_are_refused(tmp_path):
    path = tmp_path / "made.safetensors"
    info = {"num_images": 4, "classes": ("a", "b")}
    for labels in (torch.tensor([0, 1, 2, 0]), torch.tensor([0, -1, 0, 0]), torch.zeros(3, dtype=torch.int64),
                   torch.zeros(4)):  # fmt: skip
        write_samples(path, random_images(4), info)
        images = read_tensors(path)[0]["images"]
        write_samples(path, images, info, torch.zeros(4, dtype=torch.int64))
        write_tensors(path, {"images": images, "labels": labels})
        forged = read_json(path.with_suffix(".json"))
        path.with_suffix(".json").write_text(json.dumps({**forged, **file_record(path)}))
        result = driftkit("fid", path, "-r", "shapes?image_size=8&count=20", "--extractor", "pixels")
        assert result.exit_code == 3, result.output
        assert "expected `labels` as int64" in result.stderr


def test_scores_during_training_ask_for_the_classes(tmp_path):
    more = ("--eval-every", "2", "--set", "evaluation.extractor=pixels", "--set", "evaluation.num_images=12")
    train_tiny(tmp_path / "run", "flow", *CONDITIONAL, *more)
    assert (tmp_path / "run" / "manifest.json").is_file()


def test_a_drifting_run_trained_with_guidance_takes_label_scale_and_style_in_one_evaluation(tmp_path):
    run = tmp_path / "run"
    more = ("--guidance-max", 3, "--unconditional", 2, "--groups", 2, "--set", "model.style_tokens=2")
    train_tiny(run, "drift", *CONDITIONAL, *more)
    assert columns_of(run / "samples" / "step-00000002.png") == (3, 8)
    guided = done("sample", run, "-n", 6, "--class", "all", "--guidance", 2.5)
    assert (guided["nfe"], guided["guidance"], guided["asked_classes"]) == (1, 2.5, ["all"])
    assert done("sample", run, "-n", 6)["guidance"] == 1.0
    for scale in (3.5, 0.5):
        result = driftkit("sample", run, "--guidance", scale)
        assert (result.exit_code, "scales of 1 to 3" in result.stderr) == (2, True)
    exported = done_export(run)
    assert {name: value["dtype"] for name, value in exported["inputs"].items()} == {
        "noise": "float32", "labels": "int64", "guidance": "float32", "style": "int64",
    }  # fmt: skip
    line = ["-r", SHAPES, "--extractor", "pixels", "-n", 48, "--allow-collapsed"]
    for scale in (1, 2):
        assert done("fid", run, *line, "--guidance", scale)["sampling"]["nfe"] == 1
    compared = driftkit("compare", run, "--no-neighbours", "--speed-seconds", 1, "--output", tmp_path / "report")
    assert compared.exit_code == 0, compared.output
    document = read_json(tmp_path / "report" / "compare.json")
    assert [r["sampler"] for r in document["speed"]["results"]] == ["one-step"]  # a scale costs nothing


@pytest.mark.parametrize("format", first_is_fast("onnx", "torchscript"))
@pytest.mark.parametrize("objective", first_is_fast("drift", "flow"))
def test_a_conditional_graph_is_the_network_and_the_code_on_its_card_runs(objective, format, tmp_path, monkeypatch):
    scales = ("--guidance-max", 3, "--unconditional", 2, "--groups", 2, "--set", "model.style_tokens=2")
    train_tiny(tmp_path / "run", objective, *CONDITIONAL, *(scales if objective == "drift" else ()))
    run = Run.open(tmp_path / "run")
    weights = run.checkpoint().weights("ema")
    noisy = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in weights.items()}
    replace_weights(run.path, "ema", noisy)
    result = driftkit("export", run.path, "--format", format, "--json")
    assert result.exit_code == 0, result.output  # the graph was compared with the network, at labels -1 to 2
    folder = run.path / "exports" / format
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    names = {}
    exec(block, names)
    assert tuple(names["images" if objective == "drift" else "v"].shape) == (16, 3, 8, 8)
