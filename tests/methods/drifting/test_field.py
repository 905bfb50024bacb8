"""The field against literal float64 loops, its properties, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftkit.errors import NonFiniteError, UsageError
from driftkit.methods.drifting import aggregated_drift, drift_field, drift_loss
from tests.methods.drifting.literal import literal_affinity, literal_drift
from tests.methods.drifting.points import batches, draw, relative_error


@pytest.mark.parametrize("scale_over", ["map", "location"])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize(
    ("g", "n", "p", "m", "c"), [(3, 6, 6, 0, 4), (2, 5, 9, 4, 7), (1, 1, 3, 0, 5), (2, 4, 1, 2, 1), (2, 1, 1, 1, 3)]
)
def test_field_equals_literal_loops(g, n, p, m, c, floor, scale_over, wait):
    x, pos = draw(g, n, c), draw(g, p, c, seed=1) + 0.5
    neg = draw(g, m, c, seed=2) if m else None
    weight = draw(g, m, seed=3).abs() if m else None
    taus = (0.02, 0.005, 0.2)
    v, scale, drift_scale = literal_drift(x, pos, neg, taus=taus, weight=weight, scale_over=scale_over, floor=floor)
    options = {"negative_weight": weight, "scale_over": scale_over, "affinity_floor": floor, "wait": wait}
    for chunk_bytes in (None, 1):  # all fields at once, and one at a time
        out = aggregated_drift(x, pos, neg, taus=taus, chunk_bytes=chunk_bytes, **options)
        assert relative_error(out.v, v) < 1e-6
        assert relative_error(out.feature_scale, scale) < 1e-6
        assert relative_error(out.drift_scale, drift_scale) < 1e-6


@settings(max_examples=60, deadline=None)
@given(batches())
def test_any_batch_equals_literal_loops(wait, batch):
    x, pos, taus, scale_over = batch
    out = aggregated_drift(x, pos, taus=taus, scale_over=scale_over, wait=wait)
    v, scale, drift_scale = literal_drift(x, pos, taus=taus, scale_over=scale_over)
    # Where push and pull cancel or all but vanish, float64 itself has nothing to compare with.
    clear = bool((drift_scale > 1e-6).all())
    assert torch.isfinite(out.v).all()
    assert relative_error(out.feature_scale, scale) < 1e-5
    assert not clear or relative_error(out.v, v) < 1e-5


@pytest.mark.parametrize("scale_over", ["map", "location"])
def test_field_equals_literal_loops_in_float64(scale_over, wait):
    x, pos, neg = draw(2, 5, 3, dtype=torch.float64), draw(2, 6, 3, seed=1, dtype=torch.float64), draw(2, 2, 3, seed=2)
    out = aggregated_drift(x, pos, neg, taus=(0.005, 0.3), scale_over=scale_over, wait=wait)
    v, _, _ = literal_drift(x, pos, neg, taus=(0.005, 0.3), scale_over=scale_over)
    assert relative_error(out.v, v) < 1e-11


def test_diagnostics_equal_literal_loops(wait):
    x, pos, taus = draw(2, 7, 5), draw(2, 9, 5, seed=1) + 0.5, (0.02, 0.2, 0.01)
    out = aggregated_drift(x, pos, taus=taus, scale_over="location", wait=wait)
    y = torch.cat([x, pos], dim=1).double()
    for g in range(2):
        d = [[math.dist(a, b) for b in y[g].tolist()] for a in x[g].double().tolist()]
        mean = sum(map(sum, d)) / (7 * 16)
        of_pairs = [d[i][k] for i in range(7) for k in range(16) if i != k]
        for t, tau in enumerate(taus):
            A = literal_affinity(d, mean * tau, 0.0)
            effective = sum(sum(row) ** 2 / sum(a * a for a in row) for row in A) / 7
            logit_range = (max(of_pairs) - min(of_pairs)) / mean / tau
            assert out.effective_points[t, g].item() == pytest.approx(effective, rel=1e-5)
            assert out.logit_range[t, g].item() == pytest.approx(logit_range, rel=1e-5)


def test_a_point_far_from_all_others_feels_finitely_many(wait):
    """The squares of its affinities are below the smallest float32."""
    x, pos = draw(1, 128, 3), draw(1, 128, 3, seed=1)
    x[0, 0] += 9.0
    out = aggregated_drift(x, pos, taus=(0.1,), wait=wait)
    assert 60 < out.logit_range.item() < 80, "within the range of exp"
    assert 1 <= out.effective_points.item() <= 256


@pytest.mark.parametrize("apart", [1.0, 30.0])
def test_clusters_far_apart_keep_their_own_neighbourhoods(apart, wait):
    """At small temperatures whole rows and columns underflow unless their softmaxes are made in logarithms."""
    x = torch.cat([draw(2, 4, 6), draw(2, 4, 6, seed=1) * 0.01 + apart, draw(2, 1, 6, seed=2) - 3 * apart], dim=1)
    pos = torch.cat([draw(2, 5, 6, seed=3), draw(2, 5, 6, seed=4) * 0.01 + apart], dim=1)
    for taus in ((0.02, 0.05, 0.2), (0.005,), (0.5,)):
        out = aggregated_drift(x.double(), pos.double(), taus=taus, wait=wait)
        v, _, _ = literal_drift(x, pos, taus=taus)
        assert relative_error(out.v, v) < 1e-10
        for g in range(2):  # row by row: a small row must not hide behind large ones
            rows = (out.v[g] - v[g]).norm(dim=1) / v[g].norm(dim=1).clamp(min=1e-30)
            assert rows.max() < 1e-6


def test_temperature_is_relative_to_the_mean_distance_whatever_the_number_of_channels(wait):
    """tau * sqrt(C) on normalised features: repeating the channels changes neither affinities nor scale."""
    x, pos = draw(1, 6, 4), draw(1, 6, 4, seed=1)
    once = aggregated_drift(x, pos, wait=wait)
    many = aggregated_drift(x.repeat(1, 1, 16), pos.repeat(1, 1, 16), wait=wait)
    assert relative_error(many.v[..., :4], once.v.double()) < 2e-5
    assert torch.allclose(many.feature_scale, once.feature_scale, rtol=1e-5)


def test_field_vanishes_when_positives_equal_negatives():
    x, y = draw(2, 5, 4), draw(2, 7, 4, seed=1)
    assert drift_field(x, y, y, tau=0.5, mask_self=False).abs().max() < 1e-6


def test_field_flips_its_sign_when_the_sets_swap():
    x, a, b = draw(2, 5, 4), draw(2, 7, 4, seed=1), draw(2, 3, 4, seed=2)
    forth = drift_field(x, a, b, tau=0.5, mask_self=False)
    back = drift_field(x, b, a, tau=0.5, mask_self=False)
    assert torch.allclose(forth, -back, atol=1e-6)


def test_field_ignores_shifts_and_turns_with_rotations_and_orders(wait):
    x, pos = draw(2, 6, 5), draw(2, 8, 5, seed=1)
    v = aggregated_drift(x, pos, wait=wait).v.double()
    assert relative_error(aggregated_drift(x + 3, pos + 3, wait=wait).v, v) < 1e-4
    turn = torch.linalg.qr(draw(5, 5, seed=2))[0]
    assert relative_error(aggregated_drift(x @ turn, pos @ turn, wait=wait).v, v @ turn.double()) < 1e-4
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert relative_error(aggregated_drift(x[:, order], pos.flip(1), wait=wait).v, v[:, order]) < 1e-5


@settings(max_examples=30, deadline=None)
@given(batches(), st.floats(-3, 3), st.integers(0, 2**31))
def test_shifts_orders_and_chunks_change_nothing(wait, batch, shift, seed):
    x, pos, taus, scale_over = batch
    x, pos = x.double(), pos.double()
    options = {"taus": taus, "scale_over": scale_over, "wait": wait}
    out = aggregated_drift(x, pos, **options)
    if not bool((out.drift_scale > 1e-6).all()):
        return
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    by = shift * x.abs().max()
    moved = aggregated_drift(x[:, order] + by, pos.flip(1) + by, chunk_bytes=1, **options)
    assert relative_error(moved.v, out.v[:, order]) < 1e-6


def test_identical_generated_images_are_pulled_and_never_nan(wait):
    x = torch.zeros(1, 4, 3)
    out = aggregated_drift(x, draw(1, 4, 3), wait=wait)
    assert torch.isfinite(out.v).all()
    assert out.v.norm() > 0
    still = aggregated_drift(x, torch.zeros(1, 4, 3), wait=wait)
    assert still.v.norm() == 0
    assert still.feature_scale.item() == 0


@pytest.mark.parametrize("value", [0.1, 0.0, 1e4])
def test_points_that_all_coincide_have_no_drift(value, wait):
    same = torch.full((2, 7, 192), value)
    out = aggregated_drift(same, same, wait=wait)
    assert out.v.abs().max() == 0
    assert torch.equal(out.drift_scale, torch.zeros(3, 2))


def test_non_contiguous_input_is_the_same(wait):
    x, pos = draw(4, 6, 3), draw(4, 5, 3, seed=1)
    strided = aggregated_drift(x.transpose(0, 1).contiguous().transpose(0, 1), pos.flip(1).flip(1), wait=wait)
    assert torch.equal(strided.v, aggregated_drift(x, pos, wait=wait).v)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positives": torch.zeros(2, 3, 5)}, "positives: expected"),
        ({"positives": torch.zeros(2, 0, 4)}, "at least one"),
        ({"positives": torch.zeros(2, 3, 4, dtype=torch.long)}, "floating-point"),
        ({"taus": ()}, "taus"),
        ({"taus": (0.0,)}, "taus"),
        ({"taus": (math.nan,)}, "taus"),
        ({"affinity_floor": -1.0}, "affinity_floor"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"kernel": "cauchy"}, "kernel"),
        ({"normalisation": "columns"}, "normalisation"),
        ({"normalisation": "sinkhorn(0)"}, "normalisation"),
        ({"normalisation": "none", "affinity_floor": 0.1}, "affinity_floor"),
        ({"scale_over": "image"}, "scale_over"),
        ({"scale_over": torch.zeros(3)}, "scale_over"),
        ({"negatives": torch.zeros(2, 3, 4), "negative_weight": torch.full((2, 3), torch.nan)}, "negative_weight"),
        ({"negatives": torch.zeros(2, 3, 4), "negative_weight": torch.ones(2, 2)}, "negative_weight"),
        ({"negatives": torch.zeros(2, 3, 4), "negative_weight": -torch.ones(2, 3)}, "negative_weight"),
    ],
)
def test_invalid_arguments_are_usage_errors_that_name_them(change, named):
    arguments = {"generated": draw(2, 3, 4), "positives": draw(2, 3, 4, seed=1), **change}
    with pytest.raises(UsageError, match=named):
        aggregated_drift(**arguments)


def test_plain_field_refuses_a_width_of_zero_and_too_few_negatives():
    with pytest.raises(UsageError, match="tau"):
        drift_field(draw(1, 3, 2), draw(1, 3, 2), draw(1, 3, 2), tau=0)
    with pytest.raises(UsageError, match="mask_self"):
        drift_field(draw(1, 3, 2), draw(1, 3, 2), draw(1, 2, 2), tau=1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_features_are_refused_where_the_host_may_read_them(value):
    with pytest.raises(NonFiniteError):
        aggregated_drift(torch.full((2, 3, 4), value), draw(2, 3, 4, seed=1), wait=True)


def test_non_finite_features_name_their_fields_or_make_them_nan():
    x, pos = draw(4, 3, 4), draw(4, 3, 4, seed=1)
    pos[2, 1, 1] = torch.nan
    x[1, 0, 3] = -torch.inf
    for chunk_bytes in (None, 1):
        with pytest.raises(NonFiniteError) as error:
            aggregated_drift(x, pos, chunk_bytes=chunk_bytes, wait=True)
        assert error.value.fields == [1, 2]
        drift = aggregated_drift(x, pos, scale_over="location", chunk_bytes=chunk_bytes, wait=False)
        assert drift.v.isnan().flatten(1).all(dim=1).tolist() == [False, True, True, False]
        assert drift_loss(x, drift).isnan().tolist() == [False, True, True, False]
        assert drift_loss(x, aggregated_drift(x, pos, chunk_bytes=chunk_bytes, wait=False)).isnan().all()
