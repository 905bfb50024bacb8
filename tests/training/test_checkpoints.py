"""Training goes on while a checkpoint is written, and nothing that was promised of checkpoints changes with that."""

import json
import os
import signal
import threading
import time
from functools import partial

import pytest
import torch

from driftkit.errors import StorageError
from driftkit.stages.verify import verify
from driftkit.storage.files import read_json
from driftkit.storage.run_folder import Run
from driftkit.training import hooks
from driftkit.training.checkpoints import Checkpoints, CheckpointWriter
from driftkit.training.monitors import CollapseWatch
from driftkit.training.trainer import Trainer
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, train_tiny

WAIT_S = 30.0
CPU = torch.device("cpu")


def command(run, steps, *more):
    return ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--sample-every", 0, "--steps", steps,
            "--output", run, *more]  # fmt: skip


class Gate:
    """Holds `Run.save_checkpoint` up until it is opened, and takes down what happened."""

    def __init__(self, monkeypatch):
        self.opened, self.begun, self.events = threading.Event(), threading.Event(), []
        save, step = Run.save_checkpoint, Trainer.train_step

        def saving(run, number, **tensors):
            self.begun.set()
            assert self.opened.wait(WAIT_S)
            assert threading.current_thread() is not threading.main_thread()
            made = save(run, number, **tensors)
            self.events.append(f"saved {number}")
            return made

        def stepping(trainer):
            outcome = step(trainer)
            self.events.append(f"step {trainer.step}")
            return outcome

        monkeypatch.setattr(Run, "save_checkpoint", saving)
        monkeypatch.setattr(Trainer, "train_step", stepping)


@pytest.mark.slow
def test_training_goes_on_to_the_next_checkpoint_and_what_is_saved_is_the_step_itself(tmp_path, monkeypatch):
    for steps in (2, 4):
        train_tiny(tmp_path / str(steps), "ddpm", steps=steps)
    gate = Gate(monkeypatch)
    # It opens when four steps are done: the checkpoint of step 2 is written from what step 2 was.
    record = Run.append_metrics

    def appending(run, values):
        record(run, values)
        if values["step"] == 4:
            assert gate.begun.is_set()
            assert not Run(run.path).checkpoints()
            gate.opened.set()

    monkeypatch.setattr(Run, "append_metrics", appending)
    done = driftkit(*command(tmp_path / "run", 4, "--checkpoint-every", 2, "--set", "trainer.keep_every=2"))
    assert done.exit_code == 0, done.output
    assert gate.events == ["step 1", "step 2", "step 3", "step 4", "saved 2", "saved 4"]
    run = Run(tmp_path / "run")
    assert [c.step for c in run.checkpoints()] == [2, 4]
    for checkpoint in run.checkpoints():
        alone = Run(tmp_path / str(checkpoint.step)).checkpoint()
        for read in (lambda c: c.weights("raw"), lambda c: c.weights("ema"), lambda c: c.optimizer()):
            want = read(alone)
            assert all(torch.equal(value, want[name]) for name, value in read(checkpoint).items())
    assert not verify([run.path]).problems


def test_a_disk_that_takes_no_more_ends_the_training_at_the_next_step(tmp_path, monkeypatch):
    train_tiny(tmp_path / "run", "ddpm", steps=1)
    third = threading.Event()

    def failing(run, number, **tensors):
        assert third.wait(WAIT_S)
        raise StorageError("the disk is full")

    step = Trainer.train_step
    steps = []

    def stepping(trainer):
        outcome = step(trainer)
        steps.append(trainer.step)
        if trainer.step == 3:  # of the checkpoint of step 2
            third.set()
            while not trainer.hooks[-1].writer._writing.done():
                time.sleep(0.001)
        return outcome

    monkeypatch.setattr(Run, "save_checkpoint", failing)
    monkeypatch.setattr(Trainer, "train_step", stepping)
    done = driftkit(*command(tmp_path / "run", 9, "--checkpoint-every", 2))
    assert done.exit_code == 4, done.output
    assert "the disk is full" in done.stderr
    assert steps == [2, 3]
    assert Run(tmp_path / "run").checkpoint().step == 1
    assert read_json(tmp_path / "run" / "manifest.json")["state"] == "failed"


def test_a_last_checkpoint_that_is_not_written_is_no_training_that_is_done(tmp_path, monkeypatch):
    def failing(run, number, **tensors):
        raise StorageError("the disk is full")

    monkeypatch.setattr(Run, "save_checkpoint", failing)
    done = driftkit(*command(tmp_path / "run", 3))
    assert done.exit_code == 4, done.output
    assert read_json(tmp_path / "run" / "manifest.json")["state"] == "failed"


def test_state_is_saved_before_it_is_said(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    step = Trainer.train_step

    def asked(trainer):
        outcome = step(trainer)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.3, gate.opened.set).start()
        return outcome

    monkeypatch.setattr(Trainer, "train_step", asked)
    at_end = Checkpoints.at_end

    def awaited(checkpoints, trainer):
        at_end(checkpoints, trainer)
        gate.events.append(f"on disk {Run(checkpoints.run.path).checkpoint().step}")

    monkeypatch.setattr(Checkpoints, "at_end", awaited)
    done = driftkit(*command(tmp_path / "run", 9))
    assert done.exit_code == 143, done.output
    assert "stopped at step 3, state saved" in done.stderr
    assert gate.events == ["step 1", "step 2", "step 3", "saved 3", "on disk 3"]


def test_collapse_stops_with_its_step_on_disk(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    threading.Timer(0.5, gate.opened.set).start()
    line = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--sample-every", 0, "--steps", 9,
            "--output", tmp_path / "run", "--fail-on-collapse", "--set", "trainer.collapse_patience=2", "--set",
            "trainer.collapse_spread=0.999"]  # fmt: skip
    done = driftkit(*line)
    assert done.exit_code == 5, done.output
    assert "stopped at step 3, state saved" in done.stderr
    assert Run(tmp_path / "run").checkpoint().step == 3


def run_in(folder):
    run = Run(folder / "run")
    run.path.mkdir()
    run.create(config={}, origins={}, inputs={})
    return run


def parts(value):
    held = {"a": torch.full((2, 3), value), "b": torch.tensor(value)}
    return {"raw": held, "ema": held, "optimizer": held}


def save(writer, run, step):
    """Save one number as the state of a step, the way `Checkpoints` does."""
    checkpoints = Checkpoints(run, every=1, keep_every=0, header={}, collapse=CollapseWatch(threshold=0, patience=0))
    state = {"step": step, "images_seen": step, "train_seconds": 0.0}
    writer.save(parts(float(step)), partial(checkpoints._write, state=state, headers={}, manifest={"step": step}))


def test_memory_is_taken_once(tmp_path):
    run = run_in(tmp_path)
    with CheckpointWriter(CPU) as writer:
        writer.prepare(parts(1.0))
        writer.wait()
        places = {name: copy.data_ptr() for name, copy in writer._copies.items()}
        assert len(places) == 6
        for step in (1, 2):
            save(writer, run, step)
            writer.wait()
        assert {name: copy.data_ptr() for name, copy in writer._copies.items()} == places
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())
    assert [c.step for c in run.checkpoints()] == [2]
    assert run.checkpoint().weights("raw")["b"] == 2


def test_an_error_of_the_training_is_not_covered_by_one_of_its_checkpoint():
    def failing(copies):
        raise StorageError("the disk is full")

    with pytest.raises(RuntimeError, match="of the training") as raised, CheckpointWriter(CPU) as writer:
        writer.save(parts(1.0), failing)
        raise RuntimeError("of the training")
    assert raised.value.__notes__ == ["the last checkpoint was not written: the disk is full"]


def test_metrics_of_one_thread_meet_the_manifest_of_another(tmp_path):
    run = run_in(tmp_path)
    with CheckpointWriter(CPU) as writer:
        for step in range(1, 13):
            save(writer, run, step)
            for part in range(4):
                run.append_metrics({"step": step, "part": part})
            run.update(images_seen=step)
    run.update(state="done")
    manifest = run.manifest()
    assert (manifest.state, manifest.step, manifest.images_seen) == ("done", 12, 12)
    assert [(r["step"], r["part"]) for r in run.metrics()] == [(s, p) for s in range(1, 13) for p in range(4)]
    assert [c.step for c in run.checkpoints()] == [12]
    assert not verify([run.path]).problems


@pytest.mark.slow
def test_speed_counts_everything_and_that_of_the_steps_alone_stands_next_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "save_grid", lambda path, *_, **__: (time.sleep(0.2), path.parent.mkdir(exist_ok=True),
                                                                   path.write_bytes(b"grid")))  # fmt: skip
    train_tiny(tmp_path / "run", "ddpm", "--sample-every", 1, steps=4)
    for record in [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][1:]:
        assert 4 / record["images_per_second"] - 4 / record["images_per_second_of_steps"] >= 0.2
