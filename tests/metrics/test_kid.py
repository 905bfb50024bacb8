"""The kernel distance: agreement with torch-fidelity."""

import pytest
from torch_fidelity import metric_kid

from driftkit.metrics.kid import kernel_distance
from tests.metrics.conftest import draw


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.02, 0.4), (3.0, 5.0)])
def test_kid_is_torch_fidelitys(scale, offset):
    one, other = scale * draw(300, 0, dim=64) + offset, scale * draw(350, 1, 0.2, dim=64) + offset
    ours = kernel_distance(one, other, subset_size=120, subsets=20)
    theirs = metric_kid.kid_features_to_metric(
        one.double(), other.double(), kid_subsets=20, kid_subset_size=120, rng_seed=2020, verbose=False
    )
    assert ours["kid_mean"] == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-4)
    assert ours["kid_std"] == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_STD], rel=1e-4)
