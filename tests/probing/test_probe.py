"""Shapes and memory of an encoder."""

import torch

from driftkit.encoders.features import FeatureGroup, field_calls
from driftkit.encoders.networks import PixelEncoder
from driftkit.methods.drifting.workspace import CHUNK_BYTES
from driftkit.probing.probe import field_memory, probe_shapes


def test_memory_counts_features_of_both_sides_and_the_fields_computed_at_a_time():
    groups = [FeatureGroup("a", "k", torch.zeros(18, 1, 64)), FeatureGroup("b", "k", torch.zeros(2, 1, 32))]
    memory = field_memory(field_calls(groups), batch_size=10)
    assert memory["batch_size"] == 10
    assert memory["features_bytes"] == (18 * 64 + 2 * 32) * 20 * 4
    assert memory["field_chunk_bytes"]["cpu"] == 18 * 4 * (10 * 20 * (1 + 3) + 20 * 64 + 3 * 10 * 64)


def test_memory_of_large_batches_is_bounded_by_the_chunks_or_one_field():
    calls = field_calls([FeatureGroup("a", "k", torch.zeros(500, 1, 4))])
    assert field_memory(calls, batch_size=128)["field_chunk_bytes"]["cpu"] <= CHUNK_BYTES["cpu"]
    one_field = 4 * (8192 * 16384 * (1 + 3) + 16384 * 4 + 3 * 8192 * 4)
    assert field_memory(calls, batch_size=8192)["field_chunk_bytes"]["cpu"] == one_field


def test_shapes_of_pixels():
    shapes = probe_shapes(PixelEncoder(input_size=8), image_size=8, batch_size=16)
    assert shapes["field_calls"] == [{"channels": 192, "vectors": 1}]
    assert shapes["memory"]["features_bytes"] == 192 * 32 * 4


def test_the_cost_of_a_field_call_is_that_of_its_products():
    """One Gram [N, 2N] over C channels and one product per temperature, each 2 operations per number and term."""
    shapes = probe_shapes(PixelEncoder(input_size=8), image_size=8, batch_size=10)
    assert shapes["field_gflop"] == [(1 + 3) * 2 * 10 * 20 * 192 / 1e9]
