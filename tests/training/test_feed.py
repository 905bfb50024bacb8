"""Batches are the same whoever prepares them, on whatever thread, and in whatever company."""

import threading

import pytest
import torch

from driftkit.encoders.pixel import PixelEncoder
from driftkit.methods.classifier.method import ClassifierConfig
from driftkit.methods.classifier.objective import Classifier
from driftkit.methods.ddpm.config import DDPMConfig
from driftkit.methods.ddpm.objective import DDPM
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.methods.mae.method import MAEConfig
from driftkit.methods.mae.objective import MAE
from driftkit.runtime.random import image_noise, shuffled_indices, stream_seed
from driftkit.runtime.ranks import Ranks
from driftkit.storage.run_folder import Run
from driftkit.training.feed import Feed
from driftkit.training.trainer import Trainer
from tests.conftest import train_tiny

COUNT, BATCH = 10, 4
SHAPE = (3, 8, 8)
IMAGES = torch.randint(0, 256, (COUNT, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
OBJECTIVES = {
    "ddpm": DDPM(DDPMConfig()),
    "mae": MAE(MAEConfig(), ranks=Ranks()),
    "mae with classifier": MAE(MAEConfig(finetune_from=3), ranks=Ranks()),
    "classifier": Classifier(ClassifierConfig(), ranks=Ranks()),
}


def feed(objective=None, ranks=None, batch_size=BATCH, indices=None):
    return Feed(
        IMAGES, torch.arange(COUNT), batch_size=batch_size, horizontal_flip=True, seed=5, ranks=ranks or Ranks(),
        device=torch.device("cpu"), indices=indices, objective=objective,
    )  # fmt: skip


def same(one, other):
    assert (one.slots, one.step, one.seed) == (other.slots, other.step, other.seed)
    assert (one.labels is None) == (other.labels is None)
    for name in ("images", "indices", "flips", "labels"):
        if getattr(one, name) is not None:
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.draws.keys() == other.draws.keys()
    assert all(torch.equal(values, other.draws[name]) for name, values in one.draws.items())


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_worker_prepares_the_same_batches_whatever_is_asked_for(name):
    objective = OBJECTIVES[name]
    plain, ahead = feed(objective), feed(objective)
    with ahead.prefetching(end=7):
        for step in (0, 1, 2, 5, 6, 3):  # in order, after a jump, and back
            same(ahead.batch(step), plain.batch(step))
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())
    same(ahead.batch(3), plain.batch(3))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 25])
@pytest.mark.parametrize("indices", [None, torch.tensor([1, 3, 4, 8, 9, 2, 7])])
def test_epochs_follow_one_another_image_by_image(batch_size, indices):
    kept = torch.arange(COUNT) if indices is None else indices
    ranks = Ranks(rank=1, world_size=2)
    for step in (0, 1, 5):
        want = []
        for slot in range(batch_size, 2 * batch_size):  # rank 1
            epoch, offset = divmod(step * 2 * batch_size + slot, len(kept))
            want.append(int(kept[shuffled_indices(5, epoch, len(kept))][offset]))
        assert feed(ranks=ranks, batch_size=batch_size, indices=indices).batch(step).indices.tolist() == want


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_draw_is_that_of_its_slot_whatever_the_batch(name):
    whole = OBJECTIVES[name].draws(3, 7, range(8), SHAPE)
    part = OBJECTIVES[name].draws(3, 7, range(5, 8), SHAPE)
    assert all(torch.equal(part[key], whole[key][5:]) for key in whole)
    other = OBJECTIVES[name].draws(3, 8, range(8), SHAPE)
    assert not any(torch.equal(other[key], whole[key]) for key in whole)


def test_draws_are_those_of_the_streams():
    drawn = feed(OBJECTIVES["ddpm"]).batch(2).draws
    assert torch.equal(drawn["noise"], image_noise(5, "noise", range(BATCH), SHAPE, step=2))
    assert drawn["time"].tolist() == [stream_seed(5, "time", 2, slot) % 1000 for slot in range(BATCH)]
    prior = Drifting(DriftingConfig(encoder="pixel"), PixelEncoder(input_size=8), ranks=Ranks()).draws(
        5, 2, range(BATCH), SHAPE
    )
    assert torch.equal(prior["prior"], image_noise(5, "prior", range(BATCH), SHAPE, step=2))


def test_micro_batches_take_their_part_of_the_draws():
    batch = feed(OBJECTIVES["mae"]).batch(0)
    part = batch.part(slice(1, 3))
    assert part.drawn(OBJECTIVES["mae"]) is part
    assert all(torch.equal(part.draws[name], values[1:3]) for name, values in batch.draws.items())


def test_labels_come_where_they_are_needed():
    got = {name: feed(objective).batch(0).labels for name, objective in OBJECTIVES.items()}
    assert got["ddpm"] is None
    assert got["mae"] is None
    for name in ("mae with classifier", "classifier"):
        assert torch.equal(got[name], feed(OBJECTIVES[name]).batch(0).indices)


def test_slots_of_the_global_batch_are_picked_as_their_ranks_pick_them():
    parts = [feed(ranks=Ranks(rank=rank, world_size=2)) for rank in range(2)]
    indices, flips = parts[0].pick(3, range(2 * BATCH))
    batches = [part.batch(3) for part in parts]
    assert indices.tolist() == [i for batch in batches for i in batch.indices.tolist()]
    assert flips.tolist() == [f for batch in batches for f in batch.flips.tolist()]


def test_global_generators_stay_as_they_are():
    ahead = feed(OBJECTIVES["mae"])
    torch.manual_seed(9)
    state = torch.get_rng_state()
    with ahead.prefetching(end=5):
        for step in range(5):
            ahead.batch(step)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_goes_wrong_on_the_thread_is_raised_in_that_step():
    class Broken(DDPM):
        def draws(self, seed, step, slots, image_shape):
            if step == 2:
                raise OSError("the disk is gone")
            return super().draws(seed, step, slots, image_shape)

    ahead = feed(Broken(DDPMConfig()))
    with pytest.raises(OSError, match="the disk is gone"), ahead.prefetching(end=9):
        for step in range(9):
            reached = step
            ahead.batch(step)
    assert reached == 2
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())


@pytest.mark.parametrize("objective", ["drift", "mae"])
def test_a_training_with_the_worker_is_the_same_and_draws_nothing_itself(objective, tmp_path, monkeypatch):
    train_tiny(tmp_path / "plain", objective, steps=4)
    build, threads = Trainer.__init__, []

    def prefetching(self, *arguments, **options):
        build(self, *arguments, **options)
        self.prefetch = True  # as on a GPU
        draws = self.objective.draws

        def watched(seed, step, slots, image_shape):
            threads.append((step, threading.current_thread() is threading.main_thread()))
            return draws(seed, step, slots, image_shape)

        self.objective.draws = watched

    monkeypatch.setattr(Trainer, "__init__", prefetching)
    train_tiny(tmp_path / "ahead", objective, steps=4)
    assert threads == [(step, False) for step in range(4)]
    plain, ahead = (Run(tmp_path / name) for name in ("plain", "ahead"))
    for which in ("raw", "ema"):
        weights = plain.checkpoint().weights(which)
        assert all(torch.equal(value, weights[key]) for key, value in ahead.checkpoint().weights(which).items())
    kept = ("step", "loss", "terms", "health")
    assert [[r[k] for k in kept] for r in plain.metrics()] == [[r[k] for k in kept] for r in ahead.metrics()]
