"""The search for copies of training images."""

import pytest
import torch

from driftkit.metrics.base import FeatureStats
from driftkit.metrics.memorization import baseline_distances, find_copies
from driftkit.metrics.moments import Moments
from driftkit.metrics.survey import survey_images
from tests.scoring.fakes import random_images


def stats(images):
    """The pixels as features."""
    rows = images.flatten(1).float()
    return FeatureStats(Moments.of(rows), rows, torch.arange(len(rows)), survey_images(images))


@pytest.mark.parametrize("count", [20, 120, 199, 200])
def test_training_images_among_held_out_ones_are_no_baseline(count):
    everything = random_images(200, 1)
    training = stats(everything[:count])
    near = everything[:count].clone()
    near[:, :, 0, 0] ^= 1
    baseline = baseline_distances(training, stats(everything))
    assert baseline.of == ("held-out images" if count < 199 else "training images, each without itself")
    assert baseline.num_images == (200 - count if count < 199 else count)
    copies = find_copies(stats(near), training, baseline)
    assert copies.near_share == 1
    assert copies.ratio < 0.01
    new = find_copies(stats(random_images(100, 2)), training, baseline)
    assert new.near_share < 0.2
    assert new.ratio == pytest.approx(1, abs=0.1)
