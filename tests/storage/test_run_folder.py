"""A run lists what training wrote, in an order that a kill cannot make wrong, and loads nothing else."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from driftkit.errors import ArtifactError, NotFoundError, StorageError
from driftkit.storage import atomic
from driftkit.storage import run_folder as run_module
from driftkit.storage.files import read_json, write_json
from driftkit.storage.run_folder import Run


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "run")
    made.create(config={"a": 1}, origins={}, inputs={})
    return made


def save(run, step, value=1.0, more=None):
    tensors = {"w": torch.full((4,), value * step), "nan": torch.tensor(float("nan"))}
    state = {"step": step, "images_seen": step, "train_seconds": 0.0}
    weights = {"raw": tensors, "ema": tensors, **(more or {})}
    return run.save_checkpoint(step, weights=weights, optimizer={}, state=state, headers={})


def test_a_checkpoint_lists_its_files_as_sha256sum_reads_them(run):
    checkpoint = save(run, 2)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=checkpoint.path, capture_output=True, check=True)
    assert done.stdout.count(b": OK") == 4
    assert torch.isnan(checkpoint.weights("raw")["nan"])
    assert checkpoint.optimizer() == {}
    assert checkpoint.state().images_seen == 2


def test_weights_are_known_by_name(run):
    for step in (2, 4, 6):
        save(run, step, more={"ema-0.9995": {"w": torch.full((4,), -1.0)}})
    assert run.weights("ema-0.9995")[0]["w"][0] == -1
    assert run.weights("raw", 4)[0]["w"][0] == 4
    with pytest.raises(NotFoundError, match=r"no weights ema-0.5; it has ema, ema-0.9995, raw"):
        run.weights("ema-0.5")


@pytest.mark.parametrize("decays", [0.999, [0.999, 0.9995]])
def test_the_first_average_is_known_by_its_decay_too(decays, run):
    run.update(config={"trainer": {"ema_decay": decays}})
    save(run, 2, more={"ema-0.9995": {"w": torch.full((4,), -1.0)}})
    assert run.weights("ema-0.999")[0]["w"][0] == run.weights("ema")[0]["w"][0] == 2
    assert run.weights_paths("ema-0.999") == run.weights_paths("ema")
    assert [run.kept_name(name) for name in ("ema-0.999", "ema-0.9995", "raw")] == ["ema", "ema-0.9995", "raw"]
    with pytest.raises(NotFoundError, match=r"it has ema, ema-0.9995, raw \(ema is ema-0.999\)"):
        run.weights("ema-0.5")


def test_an_average_of_checkpoints_is_the_plain_mean_of_their_raw_weights(run):
    for step in (2, 4, 7):
        save(run, step)
    weights, checkpoint = run.weights("average:2")
    assert (weights["w"][0], weights["w"].dtype, checkpoint.step) == (5.5, torch.float32, 7)
    assert run.weights("average:3")[0]["w"][0] == pytest.approx(13 / 3)
    assert run.weights("average:2", 4)[0]["w"][0] == 3
    assert [path.parent.name for path in run.weights_paths("average:2")] == ["step-00000004", "step-00000007"]
    with pytest.raises(NotFoundError, match=r"need 3 checkpoints up to step 4, it has 2; .*keep_every"):
        run.weights("average:3", 4)


def test_old_checkpoints_are_removed_but_for_those_that_are_kept(run):
    for step in (2, 4, 6):
        save(run, step)
    run.prune_checkpoints(keep_every=4)
    assert [c.step for c in run.checkpoints()] == [4, 6]


@pytest.mark.parametrize("name", ["ema.safetensors", "state.json", "SHA256SUMS"])
def test_a_checkpoint_with_a_damaged_or_absent_file_is_not_loaded(run, name):
    checkpoint = save(run, 2)
    content = bytearray((checkpoint.path / name).read_bytes())
    content[20] ^= 1
    (checkpoint.path / name).write_bytes(content)
    with pytest.raises(ArtifactError):
        checkpoint.weights("ema")
    (checkpoint.path / name).unlink()
    with pytest.raises(NotFoundError):
        checkpoint.weights("ema")


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

        def fileno(self):
            return self.file.fileno()

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


def test_rewinding_drops_what_will_be_written_again(run):
    for step in (2, 4):
        run.append_metrics({"step": step})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 5, "lo')
    Run(run.path).rewind_metrics(2)
    assert run.metrics_path.read_text() == '{"step": 2}\n'


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


def test_a_manifest_comes_back_with_its_updates(run):
    run.update(state="done", step=4, images_seen=16)
    manifest = Run.open(run.path).manifest()
    assert (manifest.config, manifest.state, manifest.step, manifest.images_seen) == ({"a": 1}, "done", 4, 16)
    with pytest.raises(AssertionError):
        run.update(stat="done")


@pytest.mark.parametrize("change", [{"kind": "pack"}, {"format_version": 2}, {"step": "many"}, {"config": None}])
def test_a_manifest_of_another_kind_or_version_is_refused(run, change):
    write_json(run.manifest_path, {**read_json(run.manifest_path), **change})
    with pytest.raises(ArtifactError):
        Run.open(run.path)


def test_what_a_config_must_hold_is_read_or_missed_by_name(run):
    run.update(config={"objective": {"name": "ddpm"}, "data": {"image_size": 0}})
    assert run.objective == "ddpm"
    for read in (lambda: run.image_size, lambda: run.config_section("model")):
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            read()
