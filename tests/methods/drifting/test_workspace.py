"""Chunks, scale groups and the memory of the workspace: none of them changes the field."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from driftkit.methods.drifting import aggregated_drift
from driftkit.methods.drifting.workspace import workspace_bytes
from tests.methods.drifting.points import draw


def test_fields_are_computed_independently(wait):
    x, pos = draw(7, 6, 5), draw(7, 8, 5, seed=1)
    together = aggregated_drift(x, pos, scale_over="location", wait=wait).v
    for g in range(7):
        alone = aggregated_drift(x[g : g + 1], pos[g : g + 1], wait=wait).v
        assert torch.allclose(alone[0], together[g], atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [None, 1])
def test_groups_of_fields_share_scales_with_no_others(chunk_bytes, wait):
    x, pos, groups = draw(7, 6, 5), draw(7, 8, 5, seed=1), torch.tensor([2, 0, 1, 0, 2, 2, 1])
    out = aggregated_drift(x, pos, scale_over=groups, chunk_bytes=chunk_bytes, wait=wait)
    for number in range(3):
        members = groups == number
        alone = aggregated_drift(x[members], pos[members], wait=wait)
        assert torch.allclose(alone.v, out.v[members], atol=1e-5)
        assert torch.allclose(alone.drift_scale, out.drift_scale[:, members], rtol=1e-5)


@pytest.mark.parametrize("num_fields_kept", [0, 2])
def test_scales_shared_by_more_fields_than_fit_are_the_same(num_fields_kept, wait):
    """Temperatures one after another in the smallest workspace, all at once where V of all fields may be kept."""
    x, pos, groups = draw(5, 6, 4), draw(5, 7, 4, seed=1), torch.tensor([0, 1, 0, 0, 1])
    one = 2 * workspace_bytes(num_rows=6, num_columns=13, channels=4, num_taus=3, wait=wait)  # in float64
    options = {"taus": (0.2, 0.02, 0.05), "scale_over": groups, "wait": wait}
    whole = aggregated_drift(x, pos, **options)
    parts = aggregated_drift(x, pos, chunk_bytes=max(1, num_fields_kept * one), **options)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("channels", [32, 512])
def test_workspace_keeps_to_its_budget(channels, wait):
    """What is allocated beyond the result stays within the budget and a few vectors, whatever the number of fields."""
    x, pos = draw(24, 64, channels), draw(24, 64, channels, seed=1)
    one = workspace_bytes(num_rows=64, num_columns=128, channels=channels, num_taus=3, wait=wait)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        aggregated_drift(x, pos, scale_over="location", chunk_bytes=2 * one, wait=wait)
    live = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 1.5 * one < peak - x.nbytes < 2.4 * one
