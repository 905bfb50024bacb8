"""The Inception Score: how sure and how varied Inception's classes of the generated images are."""

import torch

from driftkit.metrics.base import Metric, MetricInputs, MetricResult, Quantity

SPLITS = 10
RANDOM_SEED = 2020


def inception_score(logits: torch.Tensor) -> dict[str, float]:
    """`inception_score_mean` and `_std` over 10 splits of logits [N, 1008].

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 4, as torch-fidelity computes it. Differs: nothing.
    """
    from torch_fidelity import metric_isc

    out = metric_isc.isc_features_to_metric(logits, SPLITS, True, RANDOM_SEED)
    return {
        "inception_score_mean": out[metric_isc.KEY_METRIC_ISC_MEAN],
        "inception_score_std": out[metric_isc.KEY_METRIC_ISC_STD],
    }


def _compute(inputs: MetricInputs) -> MetricResult:
    assert inputs.generated.logits is not None
    return MetricResult(inception_score(inputs.generated.logits), {"inception_score_splits": SPLITS})


INCEPTION_SCORE = Metric(
    name="inception_score",
    label="the Inception Score",
    help="Exponential of the mean information between image and Inception class; no reference is used.",
    quantities=(
        Quantity(
            "inception_score_mean",
            "IS",
            "higher",
            "score",
            "Inception Score over 10 splits.",
            spread="inception_score_std",
        ),
    ),
    needs="inception_logits",
    min_images=2 * SPLITS,
    compute=_compute,
    in_floor=False,
)
