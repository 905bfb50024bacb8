"""Kernels and normalisations against literal loops, and the plain field against the aggregated one."""

import pytest
import torch

from driftkit.methods.drifting import aggregated_drift, drift_field
from tests.methods.drifting.literal import literal_drift
from tests.methods.drifting.points import draw, relative_error

KERNELS = ("laplace", "gaussian")
NORMALISATIONS = ("both", "rows", "none", "sinkhorn(1)", "sinkhorn(4)")


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_and_normalisation_equals_literal_loops(kernel, normalisation, wait):
    x, pos, neg = draw(3, 6, 5), draw(3, 8, 5, seed=1) + 0.5, draw(3, 4, 5, seed=2)
    weight = draw(3, 4, seed=3).abs()
    weight[0, 1] = 0.0
    variant = {"kernel": kernel, "normalisation": normalisation}
    for taus, scale_over in (((0.1, 0.5), "map"), ((0.03, 1.0), "location")):
        for floor in (0.0,) if normalisation == "none" else (0.0, 1e-2):
            v, _, drift_scale = literal_drift(
                x, pos, neg, taus=taus, weight=weight, scale_over=scale_over, floor=floor, **variant
            )
            out = aggregated_drift(
                x, pos, neg, taus=taus, negative_weight=weight, scale_over=scale_over, affinity_floor=floor, wait=wait,
                **variant,
            )  # fmt: skip
            assert relative_error(out.v, v) < 1e-5
            big = drift_scale > 1e-30  # an unnormalised kernel falls below the smallest float32
            assert relative_error(out.drift_scale[big], drift_scale[big]) < 1e-5


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_variant_in_float32_equals_that_in_float64(kernel, normalisation, wait):
    """Large enough that float32 is used; with and without a floor and weights."""
    x, pos, neg = draw(2, 96, 96), draw(2, 128, 96, seed=1) + 0.2, draw(2, 16, 96, seed=2)
    for floor in (0.0,) if normalisation == "none" else (0.0, 1e-2):
        options = {
            "taus": (0.1, 0.5), "negative_weight": draw(2, 16, seed=3).abs(), "scale_over": "location",
            "affinity_floor": floor, "kernel": kernel, "normalisation": normalisation, "wait": wait,
        }  # fmt: skip
        out = aggregated_drift(x, pos, neg, **options)
        want = aggregated_drift(x.double(), pos.double(), neg.double(), **options)
        for name, value in vars(want).items():
            assert relative_error(getattr(out, name), value) < 1e-5, name


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_plain_field_of_every_variant_is_that_of_one_temperature(kernel, normalisation, wait):
    x, pos = draw(2, 6, 5, dtype=torch.float64), draw(2, 8, 5, seed=1, dtype=torch.float64)
    variant = {"kernel": kernel, "normalisation": normalisation}
    out = aggregated_drift(x, pos, taus=(0.3,), wait=wait, **variant)
    scale = out.feature_scale[:, None, None]
    plain = drift_field(x / scale, pos / scale, x / scale, tau=0.3 * 5**0.5, **variant)
    assert relative_error(out.v * out.drift_scale[0][:, None, None], plain) < 1e-10
