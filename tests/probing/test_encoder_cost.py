"""Shapes, memory and speed of an encoder."""

import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import FEATURE_SETS, FeatureGroup, field_calls
from driftkit.encoders.pixel import PixelEncoder
from driftkit.errors import UsageError
from driftkit.methods.drifting.workspace import CHUNK_BYTES
from driftkit.probing.encoder_cost import encoder_shapes, field_call_cost, field_memory, measure_encoder_speed

LOCATIONS = FEATURE_SETS["locations"]


def load(size):
    if size == 30:
        raise UsageError("needs a multiple of 14")
    return PixelEncoder(input_size=size)


def test_sizes_are_timed_skipped_or_do_not_fit():
    speeds = measure_encoder_speed(
        load, LOCATIONS, image_size=16, device=torch.device("cpu"), sizes=(8, 30, 16), batch_size=2
    )
    assert [s.input_size for s in speeds] == [8, 30, 16]
    assert speeds[0].forward_per_s > 0
    assert speeds[0].forward_backward_per_s > 0
    assert speeds[0].peak_gib > 0
    assert "multiple of 14" in speeds[1].skipped
    assert speeds[1].forward_per_s is None


def test_a_size_beyond_the_budget_is_skipped_with_the_expected_time():
    speeds = measure_encoder_speed(
        load, LOCATIONS, image_size=16, device=torch.device("cpu"), sizes=(8, 2**20), batch_size=2
    )
    assert "more than 10 s" in speeds[1].skipped


def test_memory_counts_features_of_both_sides_and_the_fields_computed_at_a_time():
    groups = [FeatureGroup("a", "k", torch.zeros(18, 1, 64)), FeatureGroup("b", "k", torch.zeros(2, 1, 32))]
    memory = field_memory(field_calls(groups), batch_size=10)
    assert memory.batch_size == 10
    assert memory.features_bytes == (18 * 64 + 2 * 32) * 20 * 4
    assert memory.field_chunk_bytes["cpu"] == 18 * 4 * (10 * 20 * (1 + 3) + 20 * 64 + 3 * 10 * 64)


def test_memory_of_large_batches_is_bounded_by_the_chunks_or_one_field():
    calls = field_calls([FeatureGroup("a", "k", torch.zeros(500, 1, 4))])
    assert field_memory(calls, batch_size=128).field_chunk_bytes["cpu"] <= CHUNK_BYTES["cpu"]
    one_field = 4 * (8192 * 16384 * (1 + 3) + 16384 * 4 + 3 * 8192 * 4)
    assert field_memory(calls, batch_size=8192).field_chunk_bytes["cpu"] == one_field


def test_the_cost_of_a_field_call_is_that_of_its_products():
    """One Gram [N, 2N] over C channels and one product per temperature, each 2 operations per number and term."""
    maps, (call,) = encoder_shapes(EncoderUnion.of(PixelEncoder(input_size=8)), image_size=8)
    assert [(m.name, m.channels, m.vectors) for m in maps] == [("pixels", 192, 1)]
    cost = field_call_cost(call, batch_size=10)
    assert (cost.channels, cost.vectors) == (192, 1)
    assert cost.gflop == (1 + 3) * 2 * 10 * 20 * 192 / 1e9
    assert field_memory([call], batch_size=16).features_bytes == 192 * 32 * 4
