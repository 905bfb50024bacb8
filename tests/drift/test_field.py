"""The field against literal float64 loops, its properties, and what it refuses."""

import pytest
import torch

from driftkit.drift import aggregated_drift, drift_field
from driftkit.drift.distance import pairwise_distance
from tests.drift.literal import literal_drift


def literal(x, pos, neg=None, *, taus, weight=None, scale_over="map", floor=0.0):
    x, pos = x.double(), pos.double()
    negatives = x if neg is None else torch.cat([x, neg.double()], dim=1)
    weights = torch.ones(negatives.shape[:2], dtype=torch.float64)
    if weight is not None:
        weights[:, x.shape[1] :] = weight.double()
    out = literal_drift(x.tolist(), pos.tolist(), negatives.tolist(), weights.tolist(), taus, scale_over, floor)
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
    taus = (0.02, 0.05, 0.2)
    out = aggregated_drift(x, pos, neg, taus=taus, negative_weight=weight, scale_over=scale_over, affinity_floor=floor)
    v, scale, drift_scale = literal(x, pos, neg, taus=taus, weight=weight, scale_over=scale_over, floor=floor)
    # float32 logits reach 1/tau = 50 times the relative distance, so 50 * 2^-24 * a few roundings
    assert relative_error(out.v, v) < 2e-5
    assert relative_error(out.feature_scale, scale) < 1e-6
    assert relative_error(out.drift_scale, drift_scale) < 2e-5


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


@pytest.mark.parametrize("factor", [1e-12, 1e12])
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


def test_fields_are_computed_independently(monkeypatch):
    x, pos = draw(7, 6, 5), draw(7, 8, 5, seed=1)
    together = aggregated_drift(x, pos, scale_over="location").v
    for g in range(7):
        alone = aggregated_drift(x[g : g + 1], pos[g : g + 1]).v
        assert torch.allclose(alone[0], together[g], atol=1e-5)
    monkeypatch.setattr("driftkit.drift.field.CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    groups = torch.tensor([2, 0, 1, 0, 2, 2, 1])
    chunked = aggregated_drift(x, pos, scale_over=groups).v
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
        ({"scale_over": "image"}, "scale_over"),
        ({"scale_over": torch.zeros(3)}, "scale_over"),
        ({"negatives": torch.zeros(2, 3, 4), "negative_weight": torch.ones(2, 2)}, "negative_weight"),
        ({"negatives": torch.zeros(2, 3, 4), "negative_weight": -torch.ones(2, 3)}, "negative_weight"),
        ({"generated": torch.full((2, 3, 4), torch.nan)}, "not finite"),
        ({"generated": torch.full((2, 3, 4), torch.inf)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    arguments = {"generated": draw(2, 3, 4), "positives": draw(2, 3, 4, seed=1), **change}
    with pytest.raises(ValueError, match=words):
        aggregated_drift(
            arguments.pop("generated"), arguments.pop("positives"), arguments.pop("negatives", None), **arguments
        )


def test_plain_field_refuses_a_width_of_zero_and_too_few_negatives():
    with pytest.raises(ValueError, match="tau"):
        drift_field(draw(1, 3, 2), draw(1, 3, 2), draw(1, 3, 2), tau=0)
    with pytest.raises(ValueError, match="mask_self"):
        drift_field(draw(1, 3, 2), draw(1, 3, 2), draw(1, 2, 2), tau=1)
