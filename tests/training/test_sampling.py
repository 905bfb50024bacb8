"""Sampling tells how far it is within a batch, by the evaluations of the network."""

import torch
from torch import nn

from driftkit.config.sampling_config import SamplingConfig
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import CountedNetwork, generate
from tests.conftest import train_tiny


def test_images_are_done_as_their_evaluations_are_made():
    told = []
    counted = CountedNetwork(nn.Identity(), 8, 4, told.append)
    for _ in range(4):  # evaluations of all images at once
        counted(torch.zeros(8, 3, 8, 8))
    assert told == [2, 2, 2, 2]
    counted(torch.zeros(8, 3, 8, 8))  # a sampler that makes more than it should
    counted.report(8)
    assert sum(told) == 8


def test_parts_of_images_are_told_as_whole_ones_and_what_is_missing_at_the_end():
    told = []
    counted = CountedNetwork(nn.Identity(), 2, 3, told.append)
    for _ in range(2):
        counted(torch.zeros(2, 3, 8, 8))
    assert told == [1]
    counted.report(2)  # the batch is done
    assert told == [1, 1]


def test_progress_comes_within_a_batch_and_reaches_the_number_of_images(tmp_path):
    train_tiny(tmp_path / "ddpm", "ddpm")
    told = []
    images, info = generate(
        Run(tmp_path / "ddpm"), SamplingConfig(nfe=3, sampler="ddim"), num_images=6, batch_size=6, advance=told.append
    )
    assert (len(images), info["nfe"]) == (6, 3)
    assert told == [0, 2, 2, 2]  # 0 when sampling begins
    two = []
    generate(
        Run(tmp_path / "ddpm"), SamplingConfig(nfe=3, sampler="ddim"), num_images=6, batch_size=4, advance=two.append
    )
    assert sum(two) == 6


def test_guided_sampling_counts_both_evaluations_of_a_step(tmp_path):
    train_tiny(tmp_path / "ddpm", "ddpm", "--class-conditional")
    for nfe, steps in ((4, [0, 2, 2]), (None, [0] + [1] * 4)):  # evenly, not all of them in the first half
        told = []
        generate(
            Run(tmp_path / "ddpm"),
            SamplingConfig(nfe=nfe, sampler="ddim", guidance=2.0),
            num_images=4,
            advance=told.append,
        )
        assert told == steps
