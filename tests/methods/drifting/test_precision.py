"""The precision rule: float32 agrees with float64 to 1e-5, whatever the features and temperatures."""

import pytest
import torch

from driftkit.methods.drifting import aggregated_drift, drift_field
from driftkit.methods.drifting.precision import SMALL_PROBLEM, compute_dtype
from tests.methods.drifting.literal import literal_drift
from tests.methods.drifting.points import draw, relative_error

TAUS = [(0.02, 0.05, 0.2), (0.005,), (0.2,)]


def test_small_and_sharp_problems_are_computed_in_float64():
    large = SMALL_PROBLEM + 1
    assert compute_dtype(torch.float32, sharpness=50, multiplications=large) == torch.float32
    assert compute_dtype(torch.float32, sharpness=50, multiplications=SMALL_PROBLEM) == torch.float64
    assert compute_dtype(torch.float32, sharpness=200, multiplications=large) == torch.float64
    assert compute_dtype(torch.float64, sharpness=50, multiplications=large) == torch.float64


@pytest.mark.parametrize("scale_over", ["map", "location"])
@pytest.mark.parametrize("taus", TAUS)
@pytest.mark.parametrize("channels", [64, 192])
def test_large_fields_in_float32_are_exact_to_1e_5(taus, scale_over, channels, wait):
    """Sums of exponentials, logarithms (far clusters) and distances computed again (duplicates, a few close pairs)."""
    x, pos = draw(3, 160, channels), draw(3, 144, channels, seed=1) + 0.3
    assert 3 * 160 * (160 + 144) * channels > SMALL_PROBLEM
    few_close = x.clone()
    few_close[0, 1] = x[0, 0] + 1e-3
    cases = {
        "plain": (x, pos),
        "all alike": (0.01 * x + 5, pos),
        "duplicates": (x[:, torch.arange(160) // 2], pos[:, torch.arange(144) // 3]),
        "few close pairs": (few_close, pos),
        "clusters": (x + 30 * (torch.arange(160) % 2)[:, None], pos + 30 * (torch.arange(144) % 3)[:, None]),
    }
    for name, (near, real) in cases.items():
        out = aggregated_drift(near, real, taus=taus, scale_over=scale_over, wait=wait)
        want = aggregated_drift(near.double(), real.double(), taus=taus, scale_over=scale_over)
        assert out.v.dtype == torch.float32
        assert relative_error(out.v, want.v) < 1e-5, name
        assert relative_error(out.feature_scale, want.feature_scale) < 1e-6, name
        assert relative_error(out.effective_points, want.effective_points) < 1e-5, name
        assert relative_error(out.logit_range, want.logit_range) < 1e-5, name
        big = want.drift_scale > 1e-30
        assert relative_error(out.drift_scale[big], want.drift_scale[big]) < 1e-5, name


@pytest.mark.parametrize("tau", [0.02, 0.01])
def test_a_batch_of_nearly_one_image_still_feels_its_pull(tau, wait):
    """At the start of a training images are alike: affinities to the real ones are of the order of exp(-1 / tau)."""
    x, pos = draw(1, 160, 128) * 1e-3, draw(1, 160, 128, seed=1)
    out = aggregated_drift(x, pos, taus=(tau,), wait=wait)
    assert out.v.square().mean().item() == pytest.approx(1, rel=1e-4)
    assert relative_error(out.v, aggregated_drift(x.double(), pos.double(), taus=(tau,)).v) < 1e-5


def test_duplicated_points_do_not_spoil_the_precision(wait):
    x = draw(1, 8, 16).repeat(1, 2, 1)
    pos = torch.cat([x[:, :4], draw(1, 6, 16, seed=1)], dim=1)
    out = aggregated_drift(x + 100, pos + 100, taus=(0.05, 0.2), wait=wait)
    v, _, _ = literal_drift(x + 100, pos + 100, taus=(0.05, 0.2))
    assert relative_error(out.v, v) < 1e-4  # inputs near 100 hold differences of 1 to 2^-17 only


@pytest.mark.parametrize("shape", [(2, 6, 8), (2, 80, 512)])  # in float64, and in float32
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 3e18, 1e25, 1e30])
def test_field_does_not_depend_on_the_units(factor, shape, wait):
    x, pos = draw(*shape), draw(*shape, seed=1)
    x = torch.cat([x, x[:, :1] * 1.0001], dim=1)  # a pair whose distance is computed again in float64
    plain, scaled = aggregated_drift(x, pos, wait=wait), aggregated_drift(x * factor, pos * factor, wait=wait)
    assert relative_error(scaled.v, plain.v.double()) < 2e-5
    assert relative_error(scaled.feature_scale / factor, plain.feature_scale.double()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype, wait):
    x, pos = draw(2, 16, 32).to(dtype), draw(2, 16, 32, seed=1).to(dtype)
    out = aggregated_drift(x, pos, taus=(0.02,), wait=wait)
    assert out.v.dtype == torch.float32
    assert torch.isfinite(out.v).all()
    assert relative_error(out.v, aggregated_drift(x.double(), pos.double(), taus=(0.02,)).v) < 2e-5


def test_inputs_of_different_widths_meet_in_the_widest(wait):
    x, pos = draw(1, 6, 4), draw(1, 6, 4, seed=1)
    mixed = aggregated_drift(x, pos.double(), wait=wait)
    assert mixed.v.dtype == torch.float64
    assert torch.equal(mixed.v, aggregated_drift(x.double(), pos.double(), wait=wait).v)
    assert aggregated_drift(x.bfloat16(), pos, wait=wait).v.dtype == torch.float32


def test_autocast_changes_nothing(wait):
    x = torch.cat([draw(1, 8, 16), draw(1, 8, 16)], dim=1)  # duplicates, whose distances are computed again
    pos = draw(1, 8, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, plain_inside = aggregated_drift(x, pos, wait=wait).v, drift_field(x, pos, x, tau=0.3)
    assert torch.equal(inside, aggregated_drift(x, pos, wait=wait).v)
    assert torch.equal(plain_inside, drift_field(x, pos, x, tau=0.3))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_of_products_does_not_reach_the_field(precision, wait):
    x, pos = draw(2, 40, 64), draw(2, 40, 64, seed=1)
    want = aggregated_drift(x, pos, wait=wait).v
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(aggregated_drift(x, pos, wait=wait).v, want)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
