"""Draws are functions of (seed, stream, counters) and of nothing else."""

import torch

from driftkit.runtime.random import image_noise, shuffled_indices, stream_seed


def test_image_noise_does_not_depend_on_the_batch():
    whole = image_noise(3, "sample", range(20), (3, 4, 4))
    assert torch.equal(image_noise(3, "sample", [17], (3, 4, 4))[0], whole[17])
    torch.randn(5)
    assert torch.equal(image_noise(3, "sample", range(15, 20), (3, 4, 4)), whole[15:])


def test_streams_steps_and_seeds_differ():
    draws = {stream_seed(*key) for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1)]}
    assert len(draws) == 6
    assert max(draws) < 2**63


def test_noise_is_standard_normal():
    noise = image_noise(0, "sample", range(64), (3, 32, 32))
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_an_epoch_visits_every_image_once():
    assert sorted(shuffled_indices(0, 3, 50).tolist()) == list(range(50))
    assert shuffled_indices(0, 3, 50).tolist() != shuffled_indices(0, 4, 50).tolist()


def test_noise_of_an_image_is_that_of_a_generator_of_its_own():
    noise = image_noise(3, "sampler", [4, 9], (3, 5, 5), step=7)
    for row, index in zip(noise, (4, 9), strict=True):
        own = torch.Generator().manual_seed(stream_seed(3, "sampler", 7, index))
        assert torch.equal(row, torch.randn(3, 5, 5, generator=own))
