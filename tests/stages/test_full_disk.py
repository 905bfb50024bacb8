"""Disks that fill up, turn read-only or limit files: one line, code 4, nothing half-written, the last good one kept.

The disk is a small tmpfs, which only root may mount; elsewhere those tests are skipped, and a limit on the size of
files stands for the disk.
"""

import contextlib
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from driftkit.datasets import packs
from driftkit.stages.verify import verify
from driftkit.storage.run_folder import Run
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, train_tiny

TRAIN = ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--checkpoint-every", 2]
KEPT = ["--set", "trainer.keep_every=2"]


@pytest.fixture
def disk(tmp_path):
    """A folder with a disk of its own of 1,300 kB: one checkpoint of 850 kB fits, two do not."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    line = [mount or "mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", str(place)]
    if mount is None or subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def files_no_larger_than(count):
    """The system refuses to let a file grow beyond that; Python ignores the signal that goes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(place, leave=0):
    """Leave so many bytes free."""
    with contextlib.suppress(OSError), open(place / "fill", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with open(place / "fill", "r+b") as file:
        file.truncate(max(0, (place / "fill").stat().st_size - leave))


def refused(result, *says):
    """One line on stderr next to progress, and code 4."""
    assert result.exit_code == 4, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for word in says:
        assert word in errors[0]
    return errors[0]


def left(place):
    """Names in a folder of which nobody should be left: those of temporaries and locks."""
    return [str(p) for p in place.rglob(".*")]


@pytest.mark.slow
def test_a_training_whose_checkpoint_finds_no_room_keeps_the_last_one(disk):
    """As its own process, as people start it."""
    words = [str(w) for w in (*TRAIN, *KEPT, "--steps", 8, "--output", disk / "run")]
    done = subprocess.run([sys.executable, "-m", "driftkit", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "the checkpoint of step 4 needs" in done.stderr
    assert "the checkpoint of step 2 is kept" in done.stderr
    assert left(disk) == []
    run = Run.open(disk / "run")
    assert [c.step for c in run.checkpoints()] == [2]
    assert run.manifest().state == "failed"
    found = verify([disk])
    assert (found.problems, found.checked["checkpoint"]) == ([], 1)
    resumed = driftkit(*TRAIN, *KEPT, "--steps", 8, "--output", disk / "run")
    refused(resumed, "one checkpoint needs")  # told at once now


def test_a_training_goes_on_once_there_is_room(disk):
    train_tiny(disk / "run", "ddpm", "--checkpoint-every", 2, *KEPT, steps=2)
    fill(disk)
    refused(driftkit(*TRAIN, *KEPT, "--steps", 3, "--output", disk / "run"), "No space left on device")
    (disk / "fill").unlink()
    shutil.move(disk / "run", disk.parent / "roomy")
    assert "resumed from step 2" in train_tiny(disk.parent / "roomy", "ddpm", *KEPT, steps=3).stderr
    assert verify([disk.parent / "roomy"]).problems == []


@pytest.mark.parametrize("room", [0, 4096, 16384])
def test_metrics_and_pictures_that_find_no_room_stop_a_training(disk, room, monkeypatch):
    """Wherever the disk fills up, here right behind the first step."""
    real = Run.append_metrics

    def then_full(self, record):
        real(self, record)
        if not (disk / "fill").exists():
            fill(disk, leave=room)

    monkeypatch.setattr(Run, "append_metrics", then_full)
    result = driftkit(*TRAIN, *KEPT, "--set", "trainer.log_every=1", "--steps", 200, "--output", disk / "run")
    refused(result, "disk/run")
    assert left(disk / "run") == []
    records = Run(disk / "run").metrics()
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    assert verify([disk / "run"]).problems == []


@pytest.mark.parametrize("words", [
    ["data", "shapes?image_size=16&count=3000", "--output", "disk/pack"],
    ["sample", "run", "-n", "4000", "--nfe", "1", "--output", "disk/samples.safetensors"],
    ["fid", "run", "-r", "data", "--extractor", "encoder:mae", "-n", "16", "--nfe", "1", "--output", "disk/score.json"],
    ["compare", "run", "--output", "disk/report"],
    ["export", "run", "--output", "disk/export"],
])  # fmt: skip
def test_every_command_that_writes_tells_of_a_full_disk(disk, words, monkeypatch):
    train_tiny(Path("run"), "ddpm", steps=1)
    if words[0] == "fid":
        train_tiny(Path("mae"), "mae", steps=1)
        words = [TINY_DATA[1] if w == "data" else w for w in words]
    fill(disk, leave=8192 if words[0] != "compare" else 16384)
    if words[0] == "data":
        refused(driftkit(*words), "a pack of 3,000 images of 16x16 px needs 2.3 MB and")
        monkeypatch.setattr(packs, "require_free", lambda *_: None)  # as where others fill the disk meanwhile
    refused(driftkit(*words), "disk/", "No space left on device")
    whole = {"score.nearest.png"}  # written before the score that it belongs to
    assert {p.name for p in disk.rglob("*") if p.is_file()} - whole == {"fill"}
    assert verify([Path("run"), Path("data")]).problems == []


def test_a_disk_that_turned_read_only_is_told(disk):
    train_tiny(disk / "run", "ddpm", *KEPT, steps=1)
    before = verify([disk]).document()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for words in (
        [*TRAIN, *KEPT, "--steps", 3, "--output", disk / "run"],
        ["sample", disk / "run", "-n", 4, "--nfe", 1],
        ["data", "shapes?image_size=8&count=8", "--output", disk / "pack"],
        ["compare", disk / "run", "--output", disk / "report"],
    ):
        refused(driftkit(*words), "ead-only file system")
    assert verify([disk]).document() == before


def test_a_limit_on_files_stops_a_training_and_the_last_checkpoint_stays():
    train_tiny(Path("run"), "ddpm", "--checkpoint-every", 2, *KEPT, steps=2)
    with files_no_larger_than(200_000):
        result = driftkit(*TRAIN, *KEPT, "--steps", 4, "--output", "run")
    refused(
        result,
        "checkpoints/step-00000004/raw.safetensors was not written (File too large",
        "the checkpoint of step 2 is kept",
    )
    assert left(Path("run")) == []
    assert [c.step for c in Run.open(Path("run")).checkpoints()] == [2]
    assert verify([Path("run")]).problems == []
    assert "resumed from step 2" in train_tiny(Path("run"), "ddpm", *KEPT, steps=4).stderr


@pytest.mark.parametrize("words", [
    ["data", "shapes?image_size=16&count=300", "--output", "out/pack"],
    ["sample", "run", "-n", "600", "--nfe", "1", "--output", "out/samples.safetensors"],
])  # fmt: skip
def test_a_limit_on_files_is_told_and_leaves_nothing(words):
    train_tiny(Path("run"), "ddpm", steps=1)
    with files_no_larger_than(50_000):
        refused(driftkit(*words), "File too large")
    assert not list(Path("out").rglob("*"))


def test_a_training_that_no_checkpoint_of_fits_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr("driftkit.storage.atomic.free_bytes", lambda target: 500_000)
    result = driftkit(*TRAIN, "--steps", 4, "--output", "run")
    refused(result, "one checkpoint needs", "0.5 MB are free")
    assert not Path("run").exists()
