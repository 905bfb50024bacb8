"""`driftkit fid` as typed: its document, its text, its errors."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from driftkit.cli.app import app
from driftkit.storage.files import read_json
from tests.conftest import TINY_DATA, driftkit, train_tiny
from tests.scoring.fakes import add_samples, make_pack, make_run, random_images, tiny_extractor

TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Runs the command with a tiny extractor; `real` is a reference."""
    make_pack(tmp_path / "real.safetensors", random_images(60, 50))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("driftkit.scoring.evaluator.load_extractor", lambda name, **_: tiny_extractor())
    return lambda *words: CliRunner().invoke(app, ["fid", *map(str, words)])


def test_json_is_one_document_and_the_evaluation_lies_in_the_run(invoke, tmp_path):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = invoke(path, "--reference", "real", "--extractor", "encoder:tiny", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["name"] == "fid@16"
    assert document["metrics"]["fid"] > 0
    written = read_json(Path(document["evaluation"]))
    assert written == {key: value for key, value in document.items() if key != "evaluation"}


def test_text_shows_score_floor_and_warnings(invoke, tmp_path):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = invoke(path, "--reference", "real", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    for word in ("fid@16", "KID", "Precision", "Coverage", "real images get (16 each)", "warning:", "encoder:tiny"):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 100


def test_second_call_says_where_the_reference_comes_from(invoke, tmp_path):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    first, second = (invoke(path, "-r", "real", "--device", "cpu") for _ in range(2))
    assert "features of 60 images from" not in first.stderr
    assert "features of 60 images from" in second.stderr
    assert first.stdout == second.stdout
    assert "features of" not in invoke(path, "-r", "real", "--device", "cpu", "--no-cache").stderr


def test_settings_come_from_options_assignments_and_a_file(invoke, tmp_path):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    (tmp_path / "fid.toml").write_text('reference = "real"\nmetrics = "fid,kid"\n')
    result = invoke(path, "--config", "fid.toml", "--set", "num_images=12", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["name"] == "fid@12"
    assert set(document["metrics"]) == {"fid", "kid_mean", "kid_std"}
    options = invoke(path, "-r", "real", "--metrics", "fid,kid", "-n", 12, "--device", "cpu", "--json")
    assert json.loads(options.stdout)["metrics"] == document["metrics"]


def test_written_statistics_are_a_reference(invoke, tmp_path):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    first = invoke(path, "-r", "real", "--write-statistics", "s.safetensors", "--json", "--device", "cpu")
    second = invoke(path, "-r", "s.safetensors", "--json", "--device", "cpu")
    assert second.exit_code == 0, second.stderr
    assert json.loads(second.stdout)["metrics"]["kid_mean"] == json.loads(first.stdout)["metrics"]["kid_mean"]


def array_files():
    """Forty images in the forms in which other programs keep them, by what names them."""
    images = random_images(40, 7)
    channels_last = images.permute(0, 2, 3, 1).numpy()
    np.savez("a.npz", channels_last, np.arange(40) % 4)
    np.save("f.npy", channels_last.astype(np.float32) / 255)
    save_file({"images": images}, "a.safetensors")
    save_file({"x": images, "y": torch.arange(40) % 4}, "b.safetensors")
    return "a.npz", "f.npy?range=0,1", "a.safetensors", "b.safetensors"


def test_arrays_are_scored_like_the_pack_of_the_same_images(invoke, tmp_path):
    names = array_files()
    make_pack(tmp_path / "made.safetensors", random_images(40, 7))
    scores = []
    for name in ("made.safetensors", *names):
        result = invoke(name, "-r", "real", "--json", "--metrics", "fid", "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        scores.append(json.loads(result.stdout)["metrics"]["fid"])
    assert scores == [scores[0]] * 5


def test_arrays_are_a_reference_like_the_pack_of_the_same_images(invoke, tmp_path):
    array_files()
    make_pack(tmp_path / "made.safetensors", random_images(40, 7))
    first = invoke("real.safetensors", "-r", "made", "--json", "--metrics", "fid", "--device", "cpu")
    for name in ("a.npz", "f.npy?range=0,1", "b.safetensors"):
        result = invoke("real.safetensors", "-r", name, "--json", "--metrics", "fid", "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["metrics"] == json.loads(first.stdout)["metrics"]
        assert json.loads(result.stdout)["reference"]["spec"] == name


def test_a_folder_called_as_a_source_is_a_target(invoke, tmp_path):
    (tmp_path / "cifar100").mkdir()
    for i, image in enumerate(random_images(12)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "cifar100" / f"{i}.png")
    result = invoke("cifar100", "-r", "real", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["num_images"] == 12


def write_pngs(folder, images):
    """A PNG of each image."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")


def test_a_size_resizes_the_reference_and_never_the_images_to_score(invoke, tmp_path):
    write_pngs(tmp_path / "samples", random_images(12))
    write_pngs(tmp_path / "photos", random_images(20, 1, size=16))
    refused = invoke("samples", "-r", "photos", "--image-size", 32, "--device", "cpu")
    assert refused.exit_code == 5
    assert "8 pixels wide and the reference 32" in refused.stderr
    assert refused.stderr.strip().count("\n") == 0
    assert not list((tmp_path / "data").glob("samples-32px*"))
    scored = invoke("samples", "-r", "photos", "--image-size", 8, "--device", "cpu", "--json")
    assert scored.exit_code == 0, scored.stderr
    assert json.loads(scored.stdout)["reference"]["image_size"] == 8


@pytest.mark.parametrize(
    ("target", "reference", "says"),
    [
        ("real.safetensors", "broken.npz", "broken.npz is not a readable .npz file"),
        ("real.safetensors", "broken.safetensors", "broken.safetensors: a header of"),
        ("real.safetensors", "features.npz", "holds pool_3 float64 [20, 4], features and no images"),
        ("real.safetensors", "photos", "photos"),
        ("broken.npz", "real", "broken.npz is not a readable .npz file"),
        ("broken.safetensors", "real", "broken.safetensors: a header of"),
        ("features.npz", "real", "or for a reference `mu` [D] and `sigma` [D, D]"),
        ("photos", "real", "photos"),
        ("f.npy", "real", "f.npy?range=-1,1 or f.npy?range=0,1"),
    ],
)
def test_no_feature_is_computed_where_target_or_reference_is_broken(
    invoke, tmp_path, monkeypatch, target, reference, says
):
    np.savez(tmp_path / "features.npz", pool_3=np.zeros((20, 4)))
    np.save(tmp_path / "f.npy", np.zeros((20, 8, 8, 3), np.float32))
    for name in ("broken.npz", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(b"no image")
    calls = []
    extractor = replace(tiny_extractor(), embed=calls.append)
    monkeypatch.setattr("driftkit.scoring.evaluator.load_extractor", lambda name, **_: extractor)
    before = sorted(p.name for p in tmp_path.iterdir())
    result = invoke(target, "-r", reference, "--device", "cpu")
    assert (result.exit_code, calls) == (3, [])
    assert says in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert {p.name for p in tmp_path.iterdir()} <= {*before, "data", "cache"}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["absent", "-r", "real"], 3, "found nothing"),
        (["absent.npy?range=0,1", "-r", "real"], 3, "found nothing"),
        (["{samples}"], 2, "--reference"),
        (["{samples}", "-r", "unreal"], 3, "unreal"),
        (["{samples}", "-r", "real", "--nfe", "3"], 2, "--nfe"),
        (["{samples}", "-r", "real", "--weights", "best"], 2, "ema, ema-DECAY, raw"),
        (["{samples}", "-r", "real", "--num-images", "99"], 2, "holds 16"),
        (["{samples}", "-r", "real", "--num-images", "9"], 5, "at least 10"),
        (["{samples}", "-r", "real", "--batch-size", "0"], 2, "--batch-size"),
        (["{samples}", "-r", "real", "--output", "x.txt"], 2, ".json"),
        (["{samples}", "-r", "real", "--image-size", "2"], 2, "--image-size"),
        (["{samples}", "-r", "real", "--device", "tpu"], 2, "auto, cpu or cuda"),
        (["{samples}", "-r", "real", "--repeats", "1"], 2, "--repeats"),
        (["{samples}", "-r", "real", "--repeats", "9", "-n", "10"], 2, "holds 16"),
        (["{samples}", "-r", "real", "--all-checkpoints"], 2, "no run"),
        (["{samples}", "-r", "real", "--all-checkpoints", "--repeats", "2"], 2, "exclude"),
        (["{samples}", "-r", "real", "--write-statistics", "x"], 2, ".safetensors"),
        (["{samples}", "-r", "real", "--metrics", "fid,kidd"], 2, "kidd"),
        (["{samples}", "-r", "real", "--set", "metrix=1"], 2, "metrix"),
    ],
)
def test_errors_are_one_line_with_their_code(invoke, tmp_path, words, code, says):
    samples = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = invoke(*(w.format(samples=samples) for w in words), *([] if "--device" in words else ["--device", "cpu"]))
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert result.stdout == ""


def test_unknown_extractors_are_a_usage_error(invoke, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    samples = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = CliRunner().invoke(app, ["fid", str(samples), "-r", "real", "--extractor", "incepton", "--device", "cpu"])
    assert result.exit_code == 2
    assert "expected inception, dinov2, clip, efficientnet-lite0" in result.stderr


@pytest.fixture
def runs(tmp_path):
    """A trained drifting run with its checkpoints, and a MAE that scores."""
    train_tiny(tmp_path / "encoder", "mae", "--set", "objective.finetune_from=0")
    train_tiny(tmp_path / "drift", "drift", "--checkpoint-every", "1", "--set", "trainer.keep_every=1")
    return ["-r", TINY_DATA[1], "--extractor", f"encoder:{tmp_path / 'encoder'}", "-n", "48", "--device", "cpu"]


def test_a_real_run_is_scored_with_everything_there_is(tmp_path, runs):
    result = driftkit("fid", tmp_path / "drift", *runs, "--json", "--allow-collapsed")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["training"]["among"] == "training images"
    assert document["reference"]["is_training_data"] is True
    assert (Path(document["evaluation"]).parent / document["training"]["picture"]).is_file()
    assert document["per_class"]["by"] == "predictions"
    skipped = driftkit("fid", tmp_path / "drift", *runs, "--json", "--allow-collapsed", "--no-memorization")
    assert json.loads(skipped.stdout)["memorization"] is None


def test_repeats_and_curves_are_printed(tmp_path, runs):
    repeats = driftkit("fid", tmp_path / "drift", *runs, "--allow-collapsed", "--repeats", "2")
    assert repeats.exit_code == 0, repeats.stderr
    assert "over 2 disjoint sets" in repeats.stdout
    curve = driftkit("fid", tmp_path / "drift", *runs, "--allow-collapsed", "--all-checkpoints")
    assert curve.exit_code == 0, curve.stderr
    assert re.search(r"│ 1 .*\n.*│ 2 ", curve.stdout)
    assert max(map(len, curve.stdout.splitlines()[:-1])) <= 100
    again = driftkit("fid", tmp_path / "drift", *runs, "--allow-collapsed", "--all-checkpoints", "--json")
    assert again.stderr.count("evaluated before") == 2
    assert (tmp_path / "drift/evaluations/curves").is_dir()


@pytest.mark.slow
def test_two_processes_give_the_number_of_one(tmp_path, runs):
    """Real processes over gloo; sampling and features are shared, rank 0 alone prints and writes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    documents = []
    for launcher in ([sys.executable], TWO_PROCESSES):
        line = [*launcher, "-m", "driftkit", "fid", str(tmp_path / "drift"), *runs, "--json", "--allow-collapsed",
                "--no-cache", "--batch-size", "10", "--output", str(tmp_path / f"{len(documents)}.json")]  # fmt: skip
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(done.stdout))
    one, two = documents
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    for key in ("floor", "per_class", "memorization", "compression"):
        assert one[key] == two[key], key
    pictures = [Path(d["evaluation"]).with_name(d["training"]["picture"]).read_bytes() for d in documents]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_a_refusal_of_one_process_ends_both(tmp_path, runs):
    words = [w if w != "48" else "4" for w in runs]
    line = [*TWO_PROCESSES, "-m", "driftkit", "fid", str(tmp_path / "drift"), *words, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "at least 10 images, got 4" in done.stderr
    assert done.stdout == ""


def test_a_run_is_sampled_in_float32_unless_a_precision_is_given(invoke, tmp_path):
    words = ["--precision", "bfloat16", "--set", "trainer.learning_rate=0.01"]
    train_tiny(tmp_path / "run", "ddpm", *words, steps=4)
    line = [tmp_path / "run", "-r", "real", "-n", 16, "--nfe", 2, "--weights", "raw", "--allow-collapsed", "--json"]
    found = {}
    for precision in (None, "float32", "bfloat16", "auto"):
        result = invoke(*line, "--device", "cpu", *(["--precision", precision] if precision else []))
        assert result.exit_code == 0, result.stderr
        found[precision] = json.loads(result.stdout)
    used = {precision: document["sampling"]["precision"] for precision, document in found.items()}
    assert used == {None: "float32", "float32": "float32", "bfloat16": "bfloat16", "auto": "float32"}
    assert found[None]["identity"] == found["float32"]["identity"] != found["bfloat16"]["identity"]
    assert found[None]["evaluation"] == found["float32"]["evaluation"] != found["bfloat16"]["evaluation"]
    assert found[None]["metrics"]["fid"] != found["bfloat16"]["metrics"]["fid"]
    refused = invoke(*line, "--precision", "fp8")
    assert (refused.exit_code, "auto" in refused.stderr) == (2, True)


def test_images_that_are_there_have_no_precision_to_choose(invoke, tmp_path):
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    result = invoke(path, "-r", "real", "--precision", "float32")
    assert result.exit_code == 2
    assert "--precision: " in result.stderr


def test_no_evaluator_writes_over_what_is_no_evaluation(invoke, tmp_path):
    """Each of several evaluators has a file of its own, of which none was named on the command line."""
    path = add_samples(make_run(tmp_path / "ddpm", "ddpm"))
    mine = tmp_path / "score-encoder-tiny-abababab.json"
    mine.write_text('{"kind": "notes"}')
    words = ["-r", "real", "--extractor", "one", "--extractor", "other", "--output", tmp_path / "score.json"]
    result = invoke(path, *words, "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert "got the record of a notes; give another name" in result.stderr
    assert mine.read_text() == '{"kind": "notes"}'
