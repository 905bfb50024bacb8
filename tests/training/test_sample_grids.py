"""Grids while a training runs: the first images of the same noise, as many as there is time for."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from driftkit.protocols import Condition
from driftkit.runtime import progress
from driftkit.storage.images import GRID_IMAGES, read_grid
from driftkit.storage.run_folder import Run
from driftkit.training import hooks
from driftkit.training.hooks import FinishedStep, SampleGrids, affordable_images
from tests.conftest import train_tiny

SIZE = 8


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(hooks, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "TICK_S", 1000.0)
    return clock


class Timed(nn.Module):
    """A network whose evaluations take the same time per image, the first ones `extra` seconds more."""

    def __init__(self, clock, seconds, extra=()):
        super().__init__()
        self.clock, self.seconds, self.extra, self.evaluated = clock, seconds, list(extra), 0

    def forward(self, x, t, condition):
        self.clock.now += self.seconds * len(x) + (self.extra.pop(0) if self.extra else 0.0)
        self.evaluated += len(x)
        return 0.5 * x


class TenSteps:
    """Draws with ten evaluations."""

    def preview(self, model, noise, images, condition=None):
        for step in range(10):
            noise = model(noise, torch.full((len(noise),), step), condition)
        return noise.clamp(-1, 1)


class WholeNoise(TenSteps):
    """Draws with one evaluation, which shows the noise itself."""

    def preview(self, model, noise, images, condition=None):
        return (2 * model(noise, torch.zeros(len(noise)), condition)).clamp(-1, 1)


class FakeTrainer:
    """What a grid needs of a trainer."""

    def __init__(self, network, objective, *, trained=0.0, step=2):
        self.averaged_network, self.objective, self.step = network, objective, step
        self.feed = SimpleNamespace(seed=3, images=torch.zeros(20, 3, SIZE, SIZE, dtype=torch.uint8))
        self.device, self.ranks = torch.device("cpu"), SimpleNamespace(is_main=True)
        self.stopwatch = SimpleNamespace(seconds=trained)
        self.aside, self.inference = progress.contextlib.nullcontext, torch.inference_mode


def grid(trainer, tmp_path, sampled=None, *, last=True):
    """The images of one grid, after `sampled` has drawn others."""
    run = Run(tmp_path / "run")
    sampled = sampled or SampleGrids(run, every=1, trackers=[])
    sampled.after_step(trainer, FinishedStep(trainer.step, last, None))
    images = read_grid(run.path / "samples" / f"step-{trainer.step:08d}.png", SIZE)
    return images, sampled


def drawn(images):
    """How many places of a grid are not white; all before all others."""
    shown = [bool((image != 255).any()) for image in images]
    assert shown == sorted(shown, reverse=True)
    return sum(shown)


@pytest.mark.parametrize(
    ("seconds", "trained", "count"),
    [
        (0.01, 0.0, 64),  # all take 6.4 s
        (0.02, 0.0, 48),  # 0.2 s an image, in 10 s, in whole rows
        (0.02, 129.0, 64),  # a tenth of the training time is more
        (0.06, 0.0, 16),
        (0.3, 0.0, 3),  # not even a row
        (30.0, 0.0, 1),
        (30.0, 36000.0, 8),
    ],
)
def test_grids_have_as_many_images_as_there_is_time_for(tmp_path, clock, capsys, seconds, trained, count):
    trainer = FakeTrainer(Timed(clock, seconds), TenSteps(), trained=trained)
    images, _ = grid(trainer, tmp_path)
    assert (len(images), drawn(images)) == (GRID_IMAGES, count)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grid of step 2")]
    assert len(said) == (count < 64)
    assert all(f": {count} of 64 images, since all would take " in line for line in said)


def test_the_words_say_why(tmp_path, clock, capsys):
    grid(FakeTrainer(Timed(clock, 0.3), TenSteps()), tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "grid of step 2: 3 of 64 images, since all would take 3 min and grids may take 10 s now"
    assert said[1].startswith("drawing 3 images, 10 evaluations each: ")
    assert said[-1].endswith("done in 9 s")


def test_fewer_images_are_the_first_of_the_same_noise(tmp_path, clock):
    every, _ = grid(FakeTrainer(Timed(clock, 0.0), WholeNoise()), tmp_path / "all")
    few, _ = grid(FakeTrainer(Timed(clock, 1.0), WholeNoise()), tmp_path / "few")
    assert drawn(few) == 8
    assert torch.equal(every[:8], few[:8])


def test_a_first_evaluation_that_is_slow_for_reasons_of_its_own_costs_no_image(tmp_path, clock):
    compiling = Timed(clock, 0.01, extra=[60.0])
    assert drawn(grid(FakeTrainer(compiling, TenSteps()), tmp_path)[0]) == 64
    once = Timed(clock, 0.01, extra=[60.0])  # of which a preview makes one evaluation only
    assert drawn(grid(FakeTrainer(once, WholeNoise()), tmp_path)[0]) == 64


def test_all_grids_together_take_a_tenth_of_the_time_trained_in_this_process(tmp_path, clock):
    network = Timed(clock, 0.1)  # 64 s for a whole grid
    sampled = SampleGrids(Run(tmp_path / "run"), every=1, trackers=[])
    sampled.before_training(FakeTrainer(network, TenSteps(), trained=5000.0), None)
    counts = []
    for step, trained in enumerate([1000.0, 1400.0, 1500.0, 3000.0], start=1):
        trainer = FakeTrainer(network, TenSteps(), trained=5000.0 + trained, step=step)
        counts.append(drawn(grid(trainer, tmp_path, sampled)[0]))
    assert counts == [64, 64, 16, 64]
    assert sampled.seconds <= 300


def test_grids_early_in_a_training_share_ten_seconds(tmp_path, clock):
    sampled = SampleGrids(Run(tmp_path / "run"), every=1, trackers=[])
    for step in range(1, 6):
        grid(FakeTrainer(Timed(clock, 0.01), TenSteps(), trained=10.0 * step, step=step), tmp_path, sampled)
    assert sampled.seconds <= 10 + 5 * 3 * 0.1  # one image each, and the evaluations that measure it


def test_the_measurement_costs_two_evaluations_of_a_row(tmp_path, clock):
    network = Timed(clock, 0.001)
    grid(FakeTrainer(network, TenSteps()), tmp_path)
    assert network.evaluated == 10 * 64 + 2 * 8


@pytest.mark.parametrize(
    ("count", "each", "seconds", "fitting"),
    [(64, 0.1, 6.4, 64), (64, 0.1, 6.3, 56), (64, 0.0, 0.0, 64), (64, 1.0, 7.9, 7), (64, 9.0, 1.0, 1), (80, 1, 10, 8)],
)
def test_whole_rows_or_less_than_one(count, each, seconds, fitting):
    assert affordable_images(count, each, seconds) == fitting


@pytest.mark.parametrize("objective", ["ddpm", "flow", "drift", "mae", "classifier"])
def test_training_is_the_same_whatever_its_grids_do(objective, tmp_path, monkeypatch):
    train_tiny(tmp_path / "none", objective, "--set", "trainer.sample_every=0")
    monkeypatch.setattr(hooks, "affordable_images", lambda count, each, seconds: 1)
    train_tiny(tmp_path / "few", objective, "--set", "trainer.sample_every=1")
    none, few = (Run.open(tmp_path / name).checkpoint() for name in ("none", "few"))
    assert list((tmp_path / "few" / "samples").glob("step-*.png"))
    for name, tensor in none.weights("raw").items():
        assert torch.equal(tensor, few.weights("raw")[name]), name


def test_conditions_are_those_of_the_images_drawn(tmp_path, clock):
    seen = []

    class Labelled(TenSteps):
        def preview(self, model, noise, images, condition=None):
            seen.append((len(noise), len(images), condition.labels.tolist()))
            return super().preview(model, noise, images, condition)

    labels = torch.arange(16) // 8
    conditions = SimpleNamespace(of=lambda numbers, **_: Condition(labels=labels))
    sampled = SampleGrids(Run(tmp_path / "run"), every=1, trackers=[], conditions=conditions, num_images=16)
    grid(FakeTrainer(Timed(clock, 0.1), Labelled()), tmp_path, sampled)
    assert seen[-1] == (8, 8, [0] * 8)
