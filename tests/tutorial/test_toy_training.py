"""Training on points: the drift falls to what real points have, modes are covered, unbalanced fields fail."""

import pytest
import torch

from driftkit.errors import NonFiniteStepError, UsageError
from driftkit.tutorial import toy_training
from driftkit.tutorial.toy_config import ToyConfig
from driftkit.tutorial.toy_training import train_toy

SHORT = {"points": "two-modes", "steps": 150, "batch_size": 128, "frames": 3}


@pytest.mark.parametrize("start", ["middle", "far", "collapsed"])
def test_both_modes_are_covered_from_every_start(start):
    trained = train_toy(ToyConfig(**SHORT, start=start))
    scores, distances = trained.scores, [frame.energy_distance for frame in trained.frames]
    assert scores.modes_covered == scores.num_modes == 2
    assert scores.drift_norm < 0.4 * max(trained.drift_norm)
    assert scores.drift_norm < 2 * scores.drift_norm_floor
    assert distances[-1] < 0.1 * distances[0]
    assert scores.energy_distance < 12 * scores.energy_distance_floor
    assert 0.7 < scores.spacing < 1.3
    assert scores.on_data > 0.9


def test_unbalanced_fields_end_too_tight_or_too_wide():
    own, pulled, pushed, alone = (
        train_toy(ToyConfig(**SHORT, **factors)).scores
        for factors in ({}, {"attraction": 1.5}, {"repulsion": 1.5}, {"repulsion": 0})
    )
    assert alone.spacing < 0.2 < pulled.spacing < 0.8 * own.spacing
    assert pushed.spacing > 1.2 * own.spacing
    assert alone.energy_distance > 5 * own.energy_distance
    assert alone.drift_norm < alone.drift_norm_floor  # it rests, and not where the sets agree
    assert pulled.drift_norm_floor > 1.5 * own.drift_norm_floor


def test_a_seed_decides_everything_and_the_global_generator_nothing():
    config = ToyConfig(**{**SHORT, "steps": 5})
    one = train_toy(config)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    two = train_toy(config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (one.drift_norm, one.scores) == (two.drift_norm, two.scores)
    assert train_toy(config.model_copy(update={"seed": 1})).drift_norm != one.drift_norm


def test_points_that_leave_the_plane_stop_the_training():
    with pytest.raises(NonFiniteStepError, match="generated points"):
        train_toy(ToyConfig(**{**SHORT, "steps": 10}, learning_rate=1, depth=14, width=1024))


@pytest.mark.parametrize("shape", [{"width": 1, "depth": 64}, {"width": 128, "depth": 64}])
def test_a_generator_that_makes_one_point_of_all_noise_is_refused(shape):
    with pytest.raises(UsageError, match=r"one point of all noise.*`width`.*`depth`"):
        train_toy(ToyConfig(**{**SHORT, "steps": 10}, **shape))


def test_the_drift_norm_of_real_points_is_of_batches_as_large_as_in_training(monkeypatch):
    sizes = set()
    measure = toy_training._norm
    monkeypatch.setattr(toy_training, "_norm", lambda c, x, y: sizes.add((x.shape[1], y.shape[1])) or measure(c, x, y))
    train_toy(ToyConfig(points="two-modes", steps=1, batch_size=1100, frames=2))
    assert sizes == {(1100, 1100)}
