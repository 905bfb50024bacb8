"""Whether generated images are copies: distances to the nearest training image, against those of images never seen."""

from dataclasses import dataclass

import torch

from driftkit.metrics.base import Baseline, FeatureStats, Metric, MetricInputs, MetricResult, Quantity
from driftkit.metrics.manifold import nearest_images

BASELINE_IMAGES = 5_000
NEAR_QUANTILE = 0.01  # of real images that are nearer to a training image than "near"
NEAR_SHARE, COPY_SHARE = 0.05, 0.001  # above which there is a warning
NUM_PAIRS = 16
SEED = 2020


@dataclass(frozen=True)
class NearestPair:
    """Numbers of a generated image and its nearest training image, and their distance over the baseline's median."""

    generated: int
    training: int
    ratio: float


@dataclass(frozen=True)
class Memorization:
    """How near generated images are to training images.

    Attributes:
        ratio: median distance over the baseline's median: 1 is as new as real images, near 0 is copying.
        near_share: share of generated images nearer than the nearest 1 % of real ones.
        exact_copies: images that are, pixel by pixel, training images.
        searched: training images compared with.
        worst: the pairs at the smallest distances, the nearest first.
    """

    ratio: float
    near_share: float
    exact_copies: int
    baseline: Baseline
    searched: int
    worst: tuple[NearestPair, ...]


def baseline_distances(
    training: FeatureStats, held_out: FeatureStats | None, *, device: torch.device | str = "cpu"
) -> Baseline | None:
    """How far real images are from the nearest training image; None where there are too few images.

    Args:
        held_out: other real images, of which those are left out that are training images, pixel by pixel. None, or
            fewer than 2 left, takes training images, each without itself.
    """
    new = torch.empty(0, training.rows.shape[1]) if held_out is None else held_out.rows
    if held_out is not None and held_out.survey is not None and training.survey is not None:
        new = new[~held_out.survey.among(training.survey)[held_out.indices]]
    is_held_out = len(new) >= 2
    queries = new if is_held_out else training.rows
    if len(training.rows) < 2:
        return None
    chosen = torch.randperm(len(queries), generator=torch.Generator().manual_seed(SEED))[:BASELINE_IMAGES]
    themselves = None if is_held_out else chosen
    distances, _ = nearest_images(queries[chosen], training.rows, themselves=themselves, device=device)
    return Baseline(
        median=float(distances.median()),
        near=float(torch.quantile(distances, NEAR_QUANTILE)),
        num_images=len(chosen),
        of="held-out images" if is_held_out else "training images, each without itself",
    )


def find_copies(
    generated: FeatureStats, training: FeatureStats, baseline: Baseline, *, device: torch.device | str = "cpu"
) -> Memorization:
    distances, index = nearest_images(generated.rows, training.rows, device=device)
    ratios = distances / baseline.median if baseline.median else torch.ones_like(distances)
    worst = ratios.argsort(stable=True)[:NUM_PAIRS].tolist()
    exact = 0
    if generated.survey is not None and training.survey is not None:
        exact = generated.survey.shared_with(training.survey)
    return Memorization(
        ratio=float(ratios.median()),
        near_share=float((distances <= baseline.near).double().mean()),
        exact_copies=exact,
        baseline=baseline,
        searched=len(training.rows),
        worst=tuple(
            NearestPair(int(generated.indices[i]), int(training.indices[index[i]]), round(float(ratios[i]), 6))
            for i in worst
        ),
    )


def _compute(inputs: MetricInputs) -> MetricResult:
    assert inputs.training is not None
    assert inputs.baseline is not None
    count = len(inputs.generated)
    copies = find_copies(inputs.generated, inputs.training, inputs.baseline, device=inputs.device)
    warnings = []
    if copies.exact_copies > COPY_SHARE * count:
        warnings.append(f"{copies.exact_copies} of {count} generated images are, pixel by pixel, training images")
    if copies.near_share > NEAR_SHARE:
        warnings.append(
            f"memorization: {100 * copies.near_share:.3g} % of the generated images are nearer to a training image "
            f"than all but {100 * NEAR_QUANTILE:.0f} % of real ones; look at the pairs"
        )
    return MetricResult(
        {"nearest_ratio": copies.ratio, "near_share": copies.near_share},
        real={"nearest_ratio": 1.0, "near_share": NEAR_QUANTILE},
        details=copies,
        warnings=warnings,
    )


MEMORIZATION = Metric(
    name="memorization",
    label="memorization",
    help="Distances to the nearest training image, over those of real images that were not trained on.",
    quantities=(
        Quantity(
            "nearest_ratio",
            "Novelty",
            "one",
            "share",
            "Median distance to the nearest training image, over that of real images; near 0 is copying.",
        ),
        Quantity(
            "near_share",
            "Near copies",
            "lower",
            "share",
            "Share of samples nearer to a training image than 99 % of real images.",
            column=False,
        ),
    ),
    needs="training",
    min_images=2,
    compute=_compute,
    in_floor=False,
)
