"""A run lists what training wrote, in an order that a kill cannot make wrong, and loads nothing else."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from driftkit.errors import ArtifactError, StorageError
from driftkit.storage import atomic
from driftkit.storage import run_folder as run_module
from driftkit.storage.files import read_json, sha256_file
from driftkit.storage.run_folder import Run


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "run")
    made.create(config={"a": 1}, origins={}, inputs={})
    return made


def save(run, step, value=1.0):
    tensors = {"w": torch.full((4,), value * step), "nan": torch.tensor(float("nan"))}
    state = {"step": step, "images_seen": step, "train_seconds": 0.0}
    return run.save_checkpoint(step, raw=tensors, ema=tensors, optimizer={}, state=state, header={"step": step})


def products(run):
    return set(run.manifest()["products"])


def test_checkpoints_and_metrics_are_listed_with_their_digests(run):
    checkpoint = save(run, 2)
    run.append_metrics({"step": 2})
    run.update(state="running")
    assert products(run) == {"checkpoints/step-00000002", "metrics.jsonl"}
    assert run.manifest()["products"]["metrics.jsonl"]["sha256"] == sha256_file(run.metrics_path)
    raw = checkpoint.path / "raw.safetensors"
    assert checkpoint.files()["raw.safetensors"] == {"sha256": sha256_file(raw), "bytes": raw.stat().st_size}
    assert torch.isnan(checkpoint.weights("raw")["nan"])
    assert checkpoint.optimizer() == {}


def test_old_checkpoints_are_forgotten_before_they_are_removed(run, monkeypatch):
    for step in (2, 4):
        save(run, step)
        run.update()
    seen = []
    monkeypatch.setattr(run_module, "remove_folder", lambda path: seen.append((path.name, products(run))))
    save(run, 6)
    run.prune_checkpoints(keep_every=4)
    assert seen == [("step-00000002", {"checkpoints/step-00000004", "checkpoints/step-00000006"})]


def test_an_old_checkpoint_stays_when_the_new_one_does_not_read_back(run, monkeypatch):
    save(run, 2)
    real = run_module.write_tensors

    def failing_disk(path, tensors, **more):
        real(path, tensors, **more)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(run_module, "write_tensors", failing_disk)
    with pytest.raises(StorageError, match=r"does not read back .* the checkpoint of step 2 is kept"):
        save(run, 4)
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-00000002"]
    assert run.checkpoint().weights("ema")["w"].tolist() == [2.0] * 4


def test_a_disk_without_room_is_told_before_anything_is_written(run, monkeypatch):
    monkeypatch.setattr(atomic, "free_bytes", lambda target: 10)
    with pytest.raises(StorageError, match=r"checkpoint of step 2 needs .*; there is no earlier checkpoint"):
        save(run, 2)
    assert not (run.path / "checkpoints").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("moment", ["fsync", "replace", "mkdir"])
def test_a_checkpoint_that_the_disk_refuses_leaves_nothing_and_the_last_one(run, monkeypatch, number, moment):
    save(run, 2)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, refuse)
        with pytest.raises(StorageError, match="the checkpoint of step 2 is kept"):
            save(run, 4)
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-00000002"]
    assert run.checkpoint().weights("raw")["w"].tolist() == [2.0] * 4


def test_half_a_line_of_metrics_goes_when_the_disk_is_full(run, monkeypatch):
    run.append_metrics({"step": 1})
    before = run.metrics_path.read_bytes()

    class Full:
        """A file on a disk with room for eight more bytes."""

        def __init__(self, path):
            self.file, self.room = Path(path).open("ab", buffering=0), 8  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written, self.room = self.file.write(content[: self.room]), 0
            return written

        def truncate(self, size):
            self.file.truncate(size)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "open", lambda path, *_, **__: Full(path), raising=False)
        with pytest.raises(StorageError, match=r"metrics\.jsonl was not written"):
            run.append_metrics({"step": 2, "loss": 0.125})
    assert run.metrics_path.read_bytes() == before
    run.append_metrics({"step": 2})
    assert [r["step"] for r in run.metrics()] == [1, 2]


def test_rewinding_forgets_what_will_be_written_again_before_it_goes(run):
    for step in (2, 4):
        run.append_metrics({"step": step})
        grid = run.path / "samples" / f"step-{step:08d}.png"
        grid.parent.mkdir(exist_ok=True)
        grid.write_bytes(b"x")
        run.wrote(grid)
        save(run, step)
        run.update()
    shutil.rmtree(run.path / "checkpoints" / "step-00000004")
    again = Run(run.path)
    again.rewind_metrics(2)
    assert products(again) == {"samples/step-00000002.png", "checkpoints/step-00000002"}
    assert [r["step"] for r in again.metrics()] == [2]
    again.update()
    assert "metrics.jsonl" in products(again)


def test_a_checkpoint_written_right_before_a_kill_is_listed_by_the_next_training(run):
    save(run, 2)
    assert products(run) == set()
    again = Run(run.path)
    again.rewind_metrics(2)
    again.update()
    assert products(again) == {"checkpoints/step-00000002", "metrics.jsonl"}


def test_a_checkpoint_of_another_run_or_step_is_not_loaded(run, tmp_path):
    save(run, 2)
    other = Run(tmp_path / "other")
    other.create(config={}, origins={}, inputs={})
    shutil.copytree(run.path / "checkpoints", other.path / "checkpoints")
    with pytest.raises(ArtifactError, match="of another run"):
        other.checkpoint().weights("ema")
    os.rename(run.path / "checkpoints" / "step-00000002", run.path / "checkpoints" / "step-00000009")
    with pytest.raises(ArtifactError, match="of step 2"):
        run.checkpoint().weights("ema")


def test_a_manifest_that_was_changed_is_not_opened(run):
    assert Run.open(run.path).manifest()["config"] == {"a": 1}
    text = run.manifest_path.read_text()
    run.manifest_path.write_text(text.replace('"a": 1', '"a": 2'))
    with pytest.raises(ArtifactError, match=r'fit its seal.*remove the line "seal"'):
        Run.open(run.path)
    lines = [line for line in text.replace('"a": 1', '"a": 2').splitlines() if '"seal"' not in line]
    run.manifest_path.write_text("\n".join(lines).replace("},\n}", "}\n}").replace('",\n}', '"\n}'))
    assert Run.open(run.path).manifest()["config"] == {"a": 2}
    assert "seal" not in read_json(run.manifest_path)


def test_a_grid_drawn_right_before_a_kill_is_listed_by_the_next_training(run):
    save(run, 4)
    run.update(step=4)
    for step in (3, 6):
        grid = run.path / "samples" / f"step-{step:08d}.png"
        grid.parent.mkdir(exist_ok=True)
        grid.write_bytes(b"picture")
    again = Run(run.path)
    again.rewind_metrics(4)
    again.update(state="running")
    listed = {name for name in products(run) if name.startswith("samples")}
    assert listed == {"samples/step-00000003.png"}, "step 6 will be drawn again"
