"""All metrics, and the loop over them. A new metric is a file with its row, and the row's name in `METRICS`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from driftkit.config.layers import did_you_mean
from driftkit.errors import UsageError
from driftkit.metrics.base import FeatureStats, Metric, MetricInputs, MetricResult, Quantity
from driftkit.metrics.frechet import FID
from driftkit.metrics.inception_score import INCEPTION_SCORE
from driftkit.metrics.kid import KID
from driftkit.metrics.manifold import MANIFOLD
from driftkit.metrics.memorization import MEMORIZATION
from driftkit.metrics.mmd import MMD
from driftkit.metrics.per_class import PER_CLASS
from driftkit.runtime.progress import phase

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (FID, KID, PER_CLASS, MMD, MANIFOLD, INCEPTION_SCORE, MEMORIZATION)
}
"""Metrics by name, in the order in which they are computed and shown."""

REQUIRED = "fid"  # what tables of runs are sorted by
FLOOR_SEED = 0


@dataclass(frozen=True)
class Floor:
    """The real-vs-real floor: scores of one random half of the reference against the other, `num_images` each."""

    num_images: int
    seed: int
    metrics: Mapping[str, float]


def quantities() -> dict[str, Quantity]:
    """The numbers of all metrics by key, in the order in which they are shown."""
    return {quantity.key: quantity for metric in METRICS.values() for quantity in metric.quantities}


def select_metrics(names: Iterable[str] | None) -> tuple[Metric, ...]:
    """The metrics of these names, always with FID; all of them for None. UsageError: no such metric."""
    if names is None:
        return tuple(METRICS.values())
    chosen = {REQUIRED, *names}
    for name in sorted(chosen - METRICS.keys()):
        raise UsageError(f"`metrics` {name}: expected some of {', '.join(METRICS)}{did_you_mean(name, METRICS)}")
    return tuple(metric for name, metric in METRICS.items() if name in chosen)


def compute_metrics(inputs: MetricInputs, metrics: Iterable[Metric]) -> MetricResult:
    """What all metrics that apply to the inputs give; `details` by metric, `warnings` also of skipped ones."""
    scores = MetricResult(details={})
    for metric in metrics:
        count = inputs.count(metric.needs)
        if count is None:
            continue
        if count < metric.min_images:
            scores.warnings.append(
                f"{metric.label}: needs the features of at least {metric.min_images} images, got {count}"
            )
            continue
        with phase(f"computing {metric.label}"):
            result = metric.compute(inputs)
        if undeclared := sorted({*result.values, *result.real} - metric.keys()):
            raise ValueError(f"metric {metric.name}: gives {', '.join(undeclared)}, which `quantities` does not list")
        scores.values.update(result.values)
        scores.settings.update(result.settings)
        scores.real.update(result.real)
        scores.warnings.extend(result.warnings)
        if result.details is not None:
            scores.details[metric.name] = result.details
    return scores


def real_floor(
    rows: torch.Tensor,
    *,
    num_images: int,
    metrics: Iterable[Metric] | None = None,
    device: torch.device | str = "cpu",
) -> Floor | None:
    """What perfect samples would score: random ones of features [M, D], as many as samples, against all the others.

    At most M / 2 of them; None where there are fewer than 4. `metrics`: those that two sets of real images have, all of
    them by default. A Frechet distance has a bias that falls with either count, so both are as near to those of the
    score as they can be without an image on both sides.
    """
    count = min(num_images, len(rows) // 2)
    if count < 2:
        return None
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(FLOOR_SEED))
    first, second = (FeatureStats.of_rows(rows[part], device=device) for part in (order[:count], order[count:]))
    chosen = [metric for metric in metrics or METRICS.values() if metric.in_floor]
    scores = compute_metrics(MetricInputs(first, second, device), chosen)
    return Floor(count, FLOOR_SEED, scores.values)
