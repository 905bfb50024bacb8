"""The Inception Score is torch-fidelity's."""

from torch_fidelity import metric_isc

from driftkit.metrics.inception_score import inception_score
from tests.metrics.conftest import draw


def test_inception_score_is_torch_fidelitys():
    logits = 3 * draw(400, 5, dim=30)
    theirs = metric_isc.isc_features_to_metric(logits, 10, True, 2020)
    assert inception_score(logits) == {
        "inception_score_mean": theirs[metric_isc.KEY_METRIC_ISC_MEAN],
        "inception_score_std": theirs[metric_isc.KEY_METRIC_ISC_STD],
    }
