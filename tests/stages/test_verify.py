"""Everything driftkit writes verifies; every kind of damage is named, and nothing is changed by looking."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from driftkit.comparison.report import ComparisonRecord
from driftkit.errors import ArtifactError
from driftkit.stages import verify as verifying
from driftkit.stages.verify import verify
from driftkit.storage.files import read_json, sha256, write_bytes, write_json
from driftkit.storage.lock import locked_folder
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import load_network
from tests.conftest import TINY_UNET, done, driftkit, train_tiny

LAST = "run/checkpoints/step-00000004"
RECORD = "run/samples/ddim-nfe2-ema-step4-seed0-n16.json"
SAMPLES = "run/samples/ddim-nfe2-ema-step4-seed0-n16.safetensors"


def drop_line(path, word):
    lines = Path(path).read_text().splitlines(keepends=True)
    Path(path).write_text("".join(line for line in lines if word not in line))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with two checkpoints, samples and a score, an encoder, a pack, kept statistics and a feature cache."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.chdir(folder)
        patch.setenv("DRIFTKIT_DATA_DIR", "data")
        patch.setenv("DRIFTKIT_CACHE", "cache")
        every = ["--checkpoint-every", 2, "--set", "trainer.keep_every=2"]
        train_tiny(Path("run"), "ddpm", *every, steps=4)
        train_tiny(Path("mae"), "mae")
        train_tiny(Path("drift"), "drift", "--encoder", "mae", "--cache-features")
        done("sample", "run", "-n", 16, "--nfe", 2)
        done("fid", SAMPLES, "-r", "shapes?image_size=8&count=64", "--extractor", "encoder:mae", "--device", "cpu")
    return folder


@pytest.fixture
def world(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def only(pattern):
    (path,) = Path().glob(pattern)
    return path


def flip(path, at=0.7):
    """Turn one bit of a file."""
    content = bytearray(Path(path).read_bytes())
    content[int(len(content) * at)] ^= 4
    Path(path).write_bytes(content)


def edit(path, **changes):
    """Change a document as driftkit itself would write it."""
    write_json(Path(path), {**read_json(Path(path)), **changes})


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def test_all_that_was_written_verifies_and_stays_as_it_is(world):
    before = snapshot(world)
    found = verify([world])
    assert found.problems == []
    assert found.notes == []
    assert found.checked["checkpoint"] == 4
    assert {"run", "metrics", "picture", "samples", "evaluation", "encoder", "pack", "statistics",
            "feature cache", "feature cache file"} <= found.checked.keys()  # fmt: skip
    assert snapshot(world) == before


def damaged_weights():
    flip(f"{LAST}/ema.safetensors")


def cut_off_optimizer():
    os.truncate(f"{LAST}/optimizer.safetensors", 500)


def raw_in_place_of_ema():
    shutil.copy(f"{LAST}/raw.safetensors", f"{LAST}/ema.safetensors")


def ema_of_an_earlier_step():
    shutil.copy("run/checkpoints/step-00000002/ema.safetensors", f"{LAST}/ema.safetensors")


def checkpoint_of_an_earlier_step():
    shutil.rmtree(LAST)
    shutil.copytree("run/checkpoints/step-00000002", LAST)


def checkpoint_of_another_run():
    shutil.rmtree("mae/checkpoints/step-00000002")
    shutil.copytree("run/checkpoints/step-00000002", "mae/checkpoints/step-00000002")


def checkpoint_gone():
    shutil.rmtree(LAST)


def file_of_a_checkpoint_gone():
    os.unlink(f"{LAST}/raw.safetensors")


def state_edited():
    path = Path(f"{LAST}/state.json")
    path.write_text(path.read_text().replace('"images_seen": 16', '"images_seen": 17'))


def manifest_edited():
    path = Path("run/manifest.json")
    path.write_text(path.read_text().replace('"base_channels": 8', '"base_channels": 9'))


def manifest_no_json():
    os.truncate("run/manifest.json", 300)


DAMAGE = [
    (damaged_weights, f"{LAST}/ema.safetensors", "damaged"),
    (cut_off_optimizer, f"{LAST}/optimizer.safetensors", "damaged"),
    (raw_in_place_of_ema, f"{LAST}/ema.safetensors", "swapped"),
    (ema_of_an_earlier_step, f"{LAST}/ema.safetensors", "swapped"),
    (checkpoint_of_an_earlier_step, LAST, "swapped"),
    (checkpoint_of_another_run, "mae/checkpoints/step-00000002", "swapped"),
    (checkpoint_gone, LAST, "missing"),
    (file_of_a_checkpoint_gone, f"{LAST}/raw.safetensors", "missing"),
    (lambda: os.unlink(f"{LAST}/SHA256SUMS"), f"{LAST}/SHA256SUMS", "missing"),
    (lambda: os.truncate(f"{LAST}/SHA256SUMS", 100), f"{LAST}/SHA256SUMS", "damaged"),
    (lambda: drop_line(f"{LAST}/SHA256SUMS", "ema.safetensors"), f"{LAST}/SHA256SUMS", "damaged"),
    (state_edited, f"{LAST}/state.json", "damaged"),
    (manifest_edited, "run/manifest.json", "damaged"),
    (manifest_no_json, "run/manifest.json", "damaged"),
    (lambda: edit("run/manifest.json", step="many"), "run/manifest.json", "damaged"),
    (lambda: edit("run/manifest.json", format_version=2), "run/manifest.json", "future"),
    (lambda: flip("run/metrics.jsonl", 0), "run/metrics.jsonl", "damaged"),
    (lambda: os.unlink("run/metrics.jsonl"), "run/metrics.jsonl", "missing"),
    (lambda: flip("run/samples/step-00000002.png"), "run/samples/step-00000002.png", "damaged"),
    (lambda: flip(SAMPLES), SAMPLES, "damaged"),
    (lambda: os.truncate(SAMPLES, 2000), SAMPLES, "damaged"),
    (lambda: os.unlink(SAMPLES), SAMPLES, "missing"),
    (lambda: edit(RECORD, format_version=9), SAMPLES, "damaged"),
    (lambda: flip(Path(SAMPLES).with_suffix(".png")), str(Path(SAMPLES).with_suffix(".png")), "damaged"),
    (lambda: os.truncate(only("run/evaluations/*.json"), 500), "run/evaluations/*.json", "damaged"),
    (lambda: flip("mae/encoder.safetensors"), "mae/encoder.safetensors", "damaged"),
    (lambda: flip(only("data/*.safetensors")), "data/*.safetensors", "damaged"),
    (lambda: os.truncate(only("data/*.safetensors"), 2000), "data/*.safetensors", "damaged"),
    (lambda: os.truncate(only("data/*.json"), 200), "data/*.safetensors", "damaged"),
    (lambda: flip(only("cache/statistics/*.safetensors")), "cache/statistics/*.safetensors", "damaged"),
    (lambda: flip(only("cache/features/*/shard-*")), "cache/features/*/shard-*", "damaged"),
    (lambda: flip(only("cache/features/*/offset*"), 0.9), "cache/features/*", "damaged"),
    (lambda: edit(only("cache/features/*/card.json"), count=3), "cache/features/*", "damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "where", "kind"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_named_with_its_file_and_a_fix(world, damage, where, kind):
    damage()
    found = verify([Path("run"), Path("mae"), Path("data"), Path("cache")])
    (problem,) = found.problems
    assert Path(problem.path).match(where)
    assert problem.kind == kind
    assert problem.fix


@pytest.mark.parametrize("name", ["ema", "raw", "optimizer"])
def test_no_bit_of_a_checkpoint_turns_unnoticed(world, name):
    path = Path(f"{LAST}/{name}.safetensors")
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 12)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert [p.path for p in verify([Path("run")]).problems] == [str(path)], place


def test_links_that_lead_back_and_pipes_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(".")
    (tmp_path / "c").mkdir()  # and two that lead to each other
    (tmp_path / "d").mkdir()
    (tmp_path / "c" / "to d").symlink_to("../d")
    (tmp_path / "d" / "to c").symlink_to("../c")
    os.mkfifo(tmp_path / "x.png")
    result = driftkit("verify", tmp_path, "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert [Path(note["path"]).name for note in document["notes"]] == ["a", "b", "to c", "to d"]
    assert "no plain file" in document["problems"][0]["problem"]


@pytest.mark.parametrize("damage", [damaged_weights, raw_in_place_of_ema, checkpoint_of_an_earlier_step, state_edited,
                                    cut_off_optimizer])  # fmt: skip
def test_what_is_damaged_is_not_loaded(world, damage):
    damage()
    with pytest.raises(ArtifactError):
        checkpoint = Run.open(Path("run")).checkpoint()
        (load_network(Run.open(Path("run"))), checkpoint.optimizer())
    resumed = driftkit("train", "--objective", "ddpm", "--output", "run", "--steps", 5)
    assert resumed.exit_code in (2, 3)


def test_a_damaged_pack_is_not_trained_on(world):
    flip(only("data/*.safetensors"))
    result = driftkit("train", "--data", only("data/*.safetensors"), "--encoder", "pixel", "--output", "new")
    assert result.exit_code == 3
    assert "is damaged" in result.stderr
    assert not Path("new").exists()


def test_damaged_samples_are_not_scored(world):
    flip(SAMPLES)
    result = driftkit("fid", SAMPLES, "-r", "shapes?image_size=8&count=64", "--extractor", "encoder:mae")
    assert result.exit_code == 3
    assert "is damaged" in result.stderr


def test_damaged_features_stop_the_training_that_uses_them(world, monkeypatch):
    monkeypatch.setenv("DRIFTKIT_CACHE", "cache")
    monkeypatch.setenv("DRIFTKIT_DATA_DIR", "data")
    shard = only("cache/features/*/shard-*")
    content = bytearray(shard.read_bytes())
    for place in range(len(content) // 2, len(content), 64):  # the first batch need not use any one image
        content[place] ^= 4
    shard.write_bytes(content)
    line = ["train", "--encoder", "mae", "--cache-features", "--data", "shapes?image_size=8&count=64"]
    tiny = [*TINY_UNET, "--batch-size", 32, "--device", "cpu"]
    result = driftkit(*line, *tiny, "--steps", 1, "--output", "new")
    assert result.exit_code == 3
    assert f"{shard.name} is damaged" in result.stderr


def test_what_a_killed_process_leaves_is_a_note(world):
    checkpoints = Path("run/checkpoints")
    (checkpoints / ".step-00000006.elsewhere-7-abcdef.partial").mkdir()
    Path(RECORD).unlink()
    only("data/*.json").unlink()
    only("cache/features/*/shard-*").unlink()
    with open("run/metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    found = verify([Path("run"), Path("data"), Path("cache")])
    assert found.problems == []
    assert sorted(n.kind for n in found.notes) == ["leftover", *["unfinished"] * 4]


def test_a_run_that_is_being_written_is_said_to_be(world):
    with locked_folder(Path("run")):
        notes = verify([Path("run")]).notes
    assert [n.kind for n in notes] == ["in use"]
    assert f"process {os.getpid()}" in notes[0].note


def test_a_checkpoint_pruned_while_one_looks_is_no_problem(world, monkeypatch):
    real, calls = verifying.checkpoints_in, []

    def train_meanwhile(*arguments):
        saved = real(*arguments)
        calls.append(saved)
        if len(calls) == 1:
            shutil.rmtree("run/checkpoints/step-00000002")
        return saved

    monkeypatch.setattr(verifying, "checkpoints_in", train_meanwhile)
    assert verify([Path("run")]).problems == []
    assert [len(saved) for saved in calls] == [2, 1]


def test_files_of_others_are_named_and_counted(world):
    (Path("run") / "notes.txt").write_text("")
    (Path("run") / "thoughts.txt").write_text("")
    found = verify([Path("run")])
    assert found.problems == []
    assert [(n.kind, n.path) for n in found.notes] == [("unknown", "run")]
    assert "notes.txt, thoughts.txt" in found.notes[0].note


def test_single_files_and_checkpoints_can_be_named(world):
    found = verify([Path(LAST), Path(SAMPLES), only("data/*.safetensors"), Path("mae/encoder.safetensors")])
    assert found.problems == []
    assert found.notes == []
    assert {"checkpoint", "samples", "pack", "encoder"} <= found.checked.keys()
    flip(f"{LAST}/raw.safetensors")
    assert [p.path for p in verify([Path(LAST)]).problems] == [f"{LAST}/raw.safetensors"]


def test_the_files_of_a_comparison_are_compared_with_its_record(tmp_path):
    write_bytes(Path("out/report.html"), b"<html>")
    files = {"report.html": {"sha256": sha256(b"<html>"), "bytes": 6}}
    ComparisonRecord(driftkit="0", created="now", runs=[], files=files).write(Path("out/compare.json"))
    assert verify([Path("out")]).notes == []
    assert verify([Path("out")]).checked["file of a comparison"] == 1
    Path("out/report.html").write_text("<hxml>")
    assert [p.path for p in verify([Path("out")]).problems] == ["out/report.html"]


def test_listed_files_of_subfolders_and_the_readme_of_a_folder_are_known():
    for name in ("out/figures/scores.svg", "out/figures/other.svg", "data/README.md"):
        write_bytes(Path(name), b"<svg>")
    files = {"figures/scores.svg": {"sha256": sha256(b"<svg>"), "bytes": 5}}
    ComparisonRecord(driftkit="0", created="now", runs=[], files=files).write(Path("out/compare.json"))
    found = verify([Path("out"), Path("data")])
    assert [(n.path, n.note) for n in found.notes] == [("out/figures", "files that are not driftkit's: other.svg")]
    assert found.problems == []
