"""The field against literal float64 loops, its properties, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from driftkit.errors import NonFiniteError
from driftkit.methods.drifting import aggregated_drift, drift_field, drift_loss
from driftkit.methods.drifting.distance import pairwise_distance
from driftkit.methods.drifting.field import workspace_bytes
from tests.methods.drifting.literal import literal_affinity, literal_drift


@pytest.fixture(scope="module", params=[("cpu",), ()], ids=["waiting", "not waiting"], autouse=True)
def _waits(request):
    """Every test holds whether or not the host may read values and choose by them, as it does not on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("driftkit.methods.drifting.field.WAITS", request.param)
        yield


def literal(x, pos, neg=None, *, taus, weight=None, scale_over="map", floor=0.0, **variant):
    x, pos = x.double(), pos.double()
    negatives = x if neg is None else torch.cat([x, neg.double()], dim=1)
    weights = torch.ones(negatives.shape[:2], dtype=torch.float64)
    if weight is not None:
        weights[:, x.shape[1] :] = weight.double()
    out = literal_drift(
        x.tolist(), pos.tolist(), negatives.tolist(), weights.tolist(), taus, scale_over, floor, **variant
    )
    return tuple(torch.tensor(part, dtype=torch.float64) for part in out)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative_error(got, want):
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-300)).item()  # 0 / 0 is no error


@pytest.mark.parametrize("scale_over", ["map", "location"])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize(
    ("g", "n", "p", "m", "c"), [(3, 6, 6, 0, 4), (2, 5, 9, 4, 7), (1, 1, 3, 0, 5), (2, 4, 1, 2, 1), (2, 1, 1, 1, 3)]
)
def test_field_equals_literal_loops(g, n, p, m, c, floor, scale_over):
    x, pos = draw(g, n, c), draw(g, p, c, seed=1) + 0.5
    neg = draw(g, m, c, seed=2) if m else None
    weight = draw(g, m, seed=3).abs() if m else None
    taus = (0.02, 0.005, 0.2)
    v, scale, drift_scale = literal(x, pos, neg, taus=taus, weight=weight, scale_over=scale_over, floor=floor)
    options = {"negative_weight": weight, "scale_over": scale_over, "affinity_floor": floor}
    for chunk_bytes in (None, 1):  # all fields at once, and one at a time
        out = aggregated_drift(x, pos, neg, taus=taus, chunk_bytes=chunk_bytes, **options)
        assert relative_error(out.v, v) < 1e-6
        assert relative_error(out.feature_scale, scale) < 1e-6
        assert relative_error(out.drift_scale, drift_scale) < 1e-6


@pytest.mark.parametrize("scale_over", ["map", "location"])
@pytest.mark.parametrize("taus", [(0.02, 0.05, 0.2), (0.005,), (0.2,)])
def test_float32_is_exact_to_1e_5(monkeypatch, taus, scale_over):
    """As large fields are computed: whole softmaxes, logarithms (far clusters) and mended distances (duplicates)."""
    monkeypatch.setattr("driftkit.methods.drifting.field.SMALL_PROBLEM", 0)
    x, pos = draw(3, 40, 16), draw(3, 30, 16, seed=1) + 0.3
    cases = {
        "plain": (x, pos),
        "all alike": (0.01 * x + 5, pos),
        "duplicates": (x[:, torch.arange(40) // 2], pos[:, torch.arange(30) // 3]),
        "two clusters": (x + 30 * (torch.arange(40) % 2)[:, None], pos + 30 * (torch.arange(30) % 2)[:, None]),
    }
    for name, (near, real) in cases.items():
        out = aggregated_drift(near, real, taus=taus, scale_over=scale_over)
        assert out.v.dtype == torch.float32
        v, scale, drift_scale = literal(near, real, taus=taus, scale_over=scale_over)
        assert relative_error(out.v, v) < 1e-5, name
        assert relative_error(out.feature_scale, scale) < 1e-6, name
        big = drift_scale > 1e-30
        assert relative_error(out.drift_scale[big], drift_scale[big]) < 1e-5, name


VARIANTS = [
    (kernel, normalisation)
    for kernel in ("laplace", "gaussian")
    for normalisation in ("both", "rows", "none", "sinkhorn(1)", "sinkhorn(4)")
]


@pytest.mark.parametrize(("kernel", "normalisation"), VARIANTS)
@pytest.mark.parametrize("small", [0, 2**30])
def test_every_kernel_and_normalisation_equals_literal_loops(monkeypatch, kernel, normalisation, small):
    monkeypatch.setattr("driftkit.methods.drifting.field.SMALL_PROBLEM", small)
    x, pos, neg = draw(3, 6, 5), draw(3, 8, 5, seed=1) + 0.5, draw(3, 4, 5, seed=2)
    weight = draw(3, 4, seed=3).abs()
    weight[0, 1] = 0.0
    variant = {"kernel": kernel, "normalisation": normalisation}
    for taus, scale_over in (((0.1, 0.5), "map"), ((0.03, 1.0), "location")):
        for floor in (0.0,) if normalisation == "none" else (0.0, 1e-2):
            v, _, drift_scale = literal(
                x, pos, neg, taus=taus, weight=weight, scale_over=scale_over, floor=floor, **variant
            )
            out = aggregated_drift(
                x, pos, neg, taus=taus, negative_weight=weight, scale_over=scale_over, affinity_floor=floor, **variant
            )
            assert relative_error(out.v, v) < 1e-5
            big = drift_scale > 1e-30  # an unnormalised kernel falls below the smallest float32
            assert relative_error(out.drift_scale[big], drift_scale[big]) < 1e-5


@pytest.mark.parametrize(("kernel", "normalisation"), VARIANTS)
def test_plain_field_of_every_variant_is_that_of_one_temperature(kernel, normalisation):
    x, pos = draw(2, 6, 5, dtype=torch.float64), draw(2, 8, 5, seed=1, dtype=torch.float64)
    variant = {"kernel": kernel, "normalisation": normalisation}
    out = aggregated_drift(x, pos, taus=(0.3,), **variant)
    scale = out.feature_scale[:, None, None]
    plain = drift_field(x / scale, pos / scale, x / scale, tau=0.3 * 5**0.5, **variant)
    assert relative_error(out.v * out.drift_scale[0][:, None, None], plain) < 1e-10


@pytest.mark.parametrize("small", [0, 2**30])
def test_diagnostics_equal_literal_loops(monkeypatch, small):
    monkeypatch.setattr("driftkit.methods.drifting.field.SMALL_PROBLEM", small)
    x, pos, taus = draw(2, 7, 5), draw(2, 9, 5, seed=1) + 0.5, (0.02, 0.2, 0.01)
    out = aggregated_drift(x, pos, taus=taus, scale_over="location")
    y = torch.cat([x, pos], dim=1).double()
    for g in range(2):
        d = [[math.dist(a, b) for b in y[g].tolist()] for a in x[g].double().tolist()]
        mean = sum(map(sum, d)) / (7 * 16)
        apart = [d[i][k] for i in range(7) for k in range(16) if i != k]
        for t, tau in enumerate(taus):
            A = literal_affinity(d, mean * tau, 0.0)
            effective = sum(sum(row) ** 2 / sum(a * a for a in row) for row in A) / 7
            assert out.effective_points[t, g].item() == pytest.approx(effective, rel=1e-5)
            assert out.logit_range[t, g].item() == pytest.approx((max(apart) - min(apart)) / mean / tau, rel=1e-5)


def test_a_batch_of_one_image_over_and_over_still_feels_its_pull(monkeypatch):
    """At the start of a training images are alike: affinities to the real ones are of the order of exp(-1 / tau)."""
    monkeypatch.setattr("driftkit.methods.drifting.field.SMALL_PROBLEM", 0)
    x, pos = draw(1, 64, 64) * 1e-3, draw(1, 64, 64, seed=1)
    for tau in (0.02, 0.01):
        out = aggregated_drift(x, pos, taus=(tau,))
        assert out.v.square().mean().item() == pytest.approx(1, rel=1e-4)
        assert relative_error(out.v, aggregated_drift(x.double(), pos.double(), taus=(tau,)).v) < 1e-5


@pytest.mark.parametrize("apart", [1.0, 30.0])
def test_clusters_far_apart_keep_their_own_neighbourhoods(apart):
    """At small temperatures whole rows and columns underflow unless their softmaxes are made in logarithms."""
    x = torch.cat([draw(2, 4, 6), draw(2, 4, 6, seed=1) * 0.01 + apart, draw(2, 1, 6, seed=2) - 3 * apart], dim=1)
    pos = torch.cat([draw(2, 5, 6, seed=3), draw(2, 5, 6, seed=4) * 0.01 + apart], dim=1)
    for taus in ((0.02, 0.05, 0.2), (0.005,), (0.5,)):
        out = aggregated_drift(x.double(), pos.double(), taus=taus)
        v, _, _ = literal(x, pos, taus=taus)
        assert relative_error(out.v, v) < 1e-10
        for g in range(2):  # row by row: a small row must not hide behind large ones
            rows = (out.v[g] - v[g]).norm(dim=1) / v[g].norm(dim=1).clamp(min=1e-30)
            assert rows.max() < 1e-6


@pytest.mark.parametrize("scale_over", ["map", "location"])
def test_field_equals_literal_loops_in_float64(scale_over):
    x, pos, neg = draw(2, 5, 3, dtype=torch.float64), draw(2, 6, 3, seed=1, dtype=torch.float64), draw(2, 2, 3, seed=2)
    out = aggregated_drift(x, pos, neg, taus=(0.005, 0.3), scale_over=scale_over)
    v, _, _ = literal(x, pos, neg, taus=(0.005, 0.3), scale_over=scale_over)
    assert relative_error(out.v, v) < 1e-11


def test_duplicated_points_do_not_spoil_the_precision():
    x = draw(1, 8, 16).repeat(1, 2, 1)
    pos = torch.cat([x[:, :4], draw(1, 6, 16, seed=1)], dim=1)
    out = aggregated_drift(x + 100, pos + 100, taus=(0.05, 0.2))
    v, _, _ = literal(x + 100, pos + 100, taus=(0.05, 0.2))
    assert relative_error(out.v, v) < 1e-4  # inputs near 100 hold differences of 1 to 2^-17 only


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_field_does_not_depend_on_the_units(factor):
    x, pos = draw(2, 6, 8), draw(2, 6, 8, seed=1)
    plain, scaled = aggregated_drift(x, pos), aggregated_drift(x * factor, pos * factor)
    assert relative_error(scaled.v, plain.v.double()) < 2e-5
    assert relative_error(scaled.feature_scale / factor, plain.feature_scale.double()) < 1e-5


def test_temperature_is_relative_to_the_mean_distance_whatever_the_number_of_channels():
    """tau * sqrt(C) on normalised features: repeating the channels changes neither affinities nor scale."""
    x, pos = draw(1, 6, 4), draw(1, 6, 4, seed=1)
    once, many = aggregated_drift(x, pos), aggregated_drift(x.repeat(1, 1, 16), pos.repeat(1, 1, 16))
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


def test_field_ignores_shifts_and_turns_with_rotations_and_orders():
    x, pos = draw(2, 6, 5), draw(2, 8, 5, seed=1)
    v = aggregated_drift(x, pos).v.double()
    assert relative_error(aggregated_drift(x + 3, pos + 3).v, v) < 1e-4
    turn = torch.linalg.qr(draw(5, 5, seed=2))[0]
    assert relative_error(aggregated_drift(x @ turn, pos @ turn).v, v @ turn.double()) < 1e-4
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert relative_error(aggregated_drift(x[:, order], pos.flip(1)).v, v[:, order]) < 1e-5


def test_fields_are_computed_independently():
    x, pos = draw(7, 6, 5), draw(7, 8, 5, seed=1)
    together = aggregated_drift(x, pos, scale_over="location").v
    for g in range(7):
        alone = aggregated_drift(x[g : g + 1], pos[g : g + 1]).v
        assert torch.allclose(alone[0], together[g], atol=1e-5)
    groups = torch.tensor([2, 0, 1, 0, 2, 2, 1])
    chunked = aggregated_drift(x, pos, scale_over=groups, chunk_bytes=1).v
    for number in range(3):
        members = groups == number
        assert torch.allclose(aggregated_drift(x[members], pos[members]).v, chunked[members], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    x, pos = draw(2, 16, 32).to(dtype), draw(2, 16, 32, seed=1).to(dtype)
    out = aggregated_drift(x, pos, taus=(0.02,))
    assert out.v.dtype == torch.float32
    assert torch.isfinite(out.v).all()
    assert relative_error(out.v, aggregated_drift(x.double(), pos.double(), taus=(0.02,)).v) < 2e-5


def test_identical_generated_images_are_pulled_and_never_nan():
    x = torch.zeros(1, 4, 3)
    out = aggregated_drift(x, draw(1, 4, 3))
    assert torch.isfinite(out.v).all()
    assert out.v.norm() > 0
    still = aggregated_drift(x, torch.zeros(1, 4, 3))
    assert still.v.norm() == 0
    assert still.feature_scale.item() == 0


def test_inputs_of_different_widths_meet_in_the_widest():
    x, pos = draw(1, 6, 4), draw(1, 6, 4, seed=1)
    mixed = aggregated_drift(x, pos.double())
    assert mixed.v.dtype == torch.float64
    assert torch.equal(mixed.v, aggregated_drift(x.double(), pos.double()).v)
    assert aggregated_drift(x.bfloat16(), pos).v.dtype == torch.float32


@pytest.mark.parametrize("value", [0.1, 0.0, 1e4])
def test_points_that_all_coincide_have_no_drift(value):
    same = torch.full((2, 7, 192), value)
    out = aggregated_drift(same, same)
    assert out.v.abs().max() == 0
    assert torch.equal(out.drift_scale, torch.zeros(3, 2))


def test_autocast_changes_nothing():
    x = torch.cat([draw(1, 8, 16), draw(1, 8, 16)], dim=1)  # duplicates, whose distances are refined
    pos = draw(1, 8, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, plain_inside = aggregated_drift(x, pos).v, drift_field(x, pos, x, tau=0.3)
    assert torch.equal(inside, aggregated_drift(x, pos).v)
    assert torch.equal(plain_inside, drift_field(x, pos, x, tau=0.3))


def test_non_contiguous_input_is_the_same():
    x, pos = draw(4, 6, 3), draw(4, 5, 3, seed=1)
    strided = aggregated_drift(x.transpose(0, 1).contiguous().transpose(0, 1), pos.flip(1).flip(1))
    assert torch.equal(strided.v, aggregated_drift(x, pos).v)


def test_distances_of_near_pairs_are_as_exact_as_those_of_far_ones():
    x = draw(1, 20, 64)
    y = torch.cat([x, x + 1e-4 * draw(1, 20, 64, seed=1), draw(1, 3, 64, seed=2)], dim=1)
    got = pairwise_distance(x, y, self_at=0)
    want = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert ((got.double() - want).abs() <= 1e-6 * want).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positives": torch.zeros(2, 3, 5)}, "positives: expected"),
        ({"positives": torch.zeros(2, 0, 4)}, "at least one"),
        ({"taus": ()}, "taus"),
        ({"taus": (0.0,)}, "taus"),
        ({"affinity_floor": -1.0}, "affinity_floor"),
        ({"taus": (math.nan,)}, "taus"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"kernel": "cauchy"}, "kernel"),
        ({"normalisation": "columns"}, "normalisation"),
        ({"normalisation": "sinkhorn(0)"}, "normalisation"),
        ({"normalisation": "none", "affinity_floor": 0.1}, "affinity_floor"),
        ({"positives": torch.zeros(2, 3, 4, dtype=torch.long)}, "floating-point"),
        ({"negatives": torch.zeros(2, 3, 4), "negative_weight": torch.full((2, 3), torch.nan)}, "negative_weight"),
        ({"scale_over": "image"}, "scale_over"),
        ({"scale_over": torch.zeros(3)}, "scale_over"),
        ({"negatives": torch.zeros(2, 3, 4), "negative_weight": torch.ones(2, 2)}, "negative_weight"),
        ({"negatives": torch.zeros(2, 3, 4), "negative_weight": -torch.ones(2, 3)}, "negative_weight"),
        ({"generated": torch.full((2, 3, 4), torch.nan)}, "not finite"),
        ({"generated": torch.full((2, 3, 4), torch.inf)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    arguments = {"generated": draw(2, 3, 4), "positives": draw(2, 3, 4, seed=1), "wait": True, **change}
    with pytest.raises(ValueError, match=words):
        aggregated_drift(
            arguments.pop("generated"), arguments.pop("positives"), arguments.pop("negatives", None), **arguments
        )


def test_features_that_are_not_finite_name_their_fields():
    x, pos = draw(4, 3, 4), draw(4, 3, 4, seed=1)
    pos[2, 1, 1] = torch.nan
    x[1, 0, 3] = -torch.inf
    for chunk_bytes in (None, 1):
        with pytest.raises(NonFiniteError) as error:
            aggregated_drift(x, pos, chunk_bytes=chunk_bytes, wait=True)
        assert error.value.fields == [1, 2]
        out = drift_loss(x, pos, scale_over="location", chunk_bytes=chunk_bytes, wait=False)
        assert out.per_field.isnan().tolist() == [False, True, True, False]
        assert out.drift.v.isnan().flatten(1).all(dim=1).tolist() == [False, True, True, False]
        assert drift_loss(x, pos, chunk_bytes=chunk_bytes, wait=False).per_field.isnan().all()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_of_products_does_not_reach_the_field(precision):
    x, pos = draw(2, 40, 64), draw(2, 40, 64, seed=1)
    want = aggregated_drift(x, pos).v
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(aggregated_drift(x, pos).v, want)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kept_chunks", [0, 100])
def test_scales_shared_by_more_fields_than_fit_are_the_same(monkeypatch, kept_chunks):
    """Temperatures all at once, or one after another."""
    monkeypatch.setattr("driftkit.methods.drifting.field.KEPT_CHUNKS", kept_chunks)
    x, pos, groups = draw(5, 6, 4), draw(5, 7, 4, seed=1), torch.tensor([0, 1, 0, 0, 1])
    whole = aggregated_drift(x, pos, taus=(0.2, 0.02, 0.05), scale_over=groups)
    parts = aggregated_drift(x, pos, taus=(0.2, 0.02, 0.05), scale_over=groups, chunk_bytes=1)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("channels", [32, 512])
@pytest.mark.parametrize("wait", [True, False])
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


def test_plain_field_refuses_a_width_of_zero_and_too_few_negatives():
    with pytest.raises(ValueError, match="tau"):
        drift_field(draw(1, 3, 2), draw(1, 3, 2), draw(1, 3, 2), tau=0)
    with pytest.raises(ValueError, match="mask_self"):
        drift_field(draw(1, 3, 2), draw(1, 3, 2), draw(1, 2, 2), tau=1)


@st.composite
def batches(draw_from):
    """Features of odd shapes and sizes: few or many, wide or narrow, spread out, in clusters or with duplicates."""
    g, n, p, c = (draw_from(st.integers(low, high)) for low, high in ((1, 3), (1, 9), (1, 9), (1, 6)))
    generator = torch.Generator().manual_seed(draw_from(st.integers(0, 2**31)))
    x, pos = (torch.randn((g, count, c), generator=generator, dtype=torch.float64) for count in (n, p))
    clusters = draw_from(st.sampled_from((0.0, 1.0, 20.0)))
    x, pos = x + clusters * (torch.arange(n) % 2)[:, None], pos + clusters * (torch.arange(p) % 3)[:, None]
    if draw_from(st.booleans()):
        x = x[:, torch.arange(n) // 2]
    scale = 10.0 ** draw_from(st.integers(-8, 8))
    taus = draw_from(st.sampled_from(((0.02, 0.05, 0.2), (0.005, 0.5), (0.1,))))
    return (x * scale).float(), (pos * scale).float(), taus, draw_from(st.sampled_from(("map", "location")))


@settings(max_examples=60, deadline=None)
@given(batches())
def test_any_batch_equals_literal_loops(batch):
    x, pos, taus, scale_over = batch
    out = aggregated_drift(x, pos, taus=taus, scale_over=scale_over)
    v, scale, drift_scale = literal(x, pos, taus=taus, scale_over=scale_over)
    # Where push and pull cancel or all but vanish, float64 itself has nothing to compare with.
    clear = bool((drift_scale > 1e-6).all())
    assert torch.isfinite(out.v).all()
    assert relative_error(out.feature_scale, scale) < 1e-5
    assert not clear or relative_error(out.v, v) < 1e-5


@settings(max_examples=30, deadline=None)
@given(batches(), st.floats(-3, 3), st.integers(0, 2**31))
def test_shifts_orders_and_chunks_change_nothing(batch, shift, seed):
    x, pos, taus, scale_over = batch
    x, pos = x.double(), pos.double()
    out = aggregated_drift(x, pos, taus=taus, scale_over=scale_over)
    if not bool((out.drift_scale > 1e-6).all()):
        return
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    by = shift * x.abs().max()
    moved = aggregated_drift(x[:, order] + by, pos.flip(1) + by, taus=taus, scale_over=scale_over, chunk_bytes=1)
    assert relative_error(moved.v, out.v[:, order]) < 1e-6
