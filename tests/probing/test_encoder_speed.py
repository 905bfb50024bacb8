"""Speed by input size: what fits is timed, what does not says why."""

import torch

from driftkit.encoders.features import every_location
from driftkit.encoders.networks import PixelEncoder
from driftkit.errors import UsageError
from driftkit.probing.encoder_speed import measure_encoder_speed


def load(size):
    if size == 30:
        raise UsageError("needs a multiple of 14")
    return PixelEncoder(input_size=size)


def test_sizes_are_timed_skipped_or_do_not_fit():
    speeds = measure_encoder_speed(
        load, every_location, image_size=16, device=torch.device("cpu"), sizes=(8, 30, 16), batch_size=2
    )
    assert [s.input_size for s in speeds] == [8, 30, 16]
    assert speeds[0].forward_per_s > 0
    assert speeds[0].forward_backward_per_s > 0
    assert speeds[0].peak_gib > 0
    assert "multiple of 14" in speeds[1].skipped
    assert speeds[1].forward_per_s is None


def test_a_size_beyond_the_budget_is_skipped_with_the_expected_time():
    speeds = measure_encoder_speed(
        load, every_location, image_size=16, device=torch.device("cpu"), sizes=(8, 2**20), batch_size=2
    )
    assert "more than 10 s" in speeds[1].skipped
