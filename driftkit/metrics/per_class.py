"""Whether generated images fall into the classes as real ones do, and how far they are from them class by class."""

from collections.abc import Sequence
from typing import Any

import torch

from driftkit.metrics.feature_stats import FeatureStats
from driftkit.metrics.frechet import frechet_distance
from driftkit.metrics.moments import Moments
from driftkit.metrics.quality import linear_predictions
from driftkit.runtime.device import float64_device

MIN_PER_CLASS = 10
SPLIT_SEED = 2020


def class_scores(
    generated: FeatureStats,
    reference: FeatureStats,
    *,
    classes: Sequence[str],
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any] | None, list[str]]:
    """Class histograms with their entropies, and the Fréchet distance of each class, where classes are known.

    Classes are the labels where both sets are labelled; else what the extractor's own classifier predicts for both, so
    that its mistakes are the same on both sides; else, where the reference is labelled, what a linear classifier on
    the features predicts, which is fitted to the reference (its predictions for real images are those of a fit to the
    other half of them). Per-class distances need classes that are those of the reference: a classifier of others gives
    histograms alone.

    Args:
        classes: names of the reference's classes; empty where it has none.
        device: where the classifier is fitted and distances are computed.

    Returns:
        The record: `by` (labels, predictions or linear), `entropy` and `reference_entropy` in nats, `missing` (classes
        that real images have and generated ones do not), and with the reference's own classes also `names`, both
        histograms, `fd` by class name, and the classifier's accuracy on labelled real images. None where no classes
        are known. And warnings.
    """
    labelled = _is_labelled(generated.labels) and _is_labelled(reference.labels) and bool(classes)
    by = "labels" if labelled else "predictions"
    ours = generated.labels if labelled else generated.predictions
    theirs = reference.labels if labelled else reference.predictions
    if not labelled and not _knows(theirs, reference.labels, classes) and _can_fit(reference, classes):
        by, (ours, theirs) = "linear", _fitted(generated.rows, reference, device)
    if ours is None or theirs is None:
        return None, []
    count = int(max(ours.max(), theirs.max())) + 1
    count = max(count, len(classes) if labelled else 0)
    mine, real = (torch.bincount(part, minlength=count) for part in (ours, theirs))
    record: dict[str, Any] = {
        "by": by,
        "entropy": entropy(mine),
        "reference_entropy": entropy(real),
        "missing": int(((mine == 0) & (real > 0)).sum()),
    }
    accuracy = None if labelled else _accuracy(theirs, reference.labels)
    own = labelled or _knows(theirs, reference.labels, classes)
    if own:
        record |= {
            "names": list(classes),
            "generated": _padded(mine, len(classes)),
            "reference": _padded(real, len(classes)),
            "fd": _per_class(generated.rows, ours, reference.rows, theirs, classes, device),
        }
        if accuracy is not None:
            record["accuracy"] = accuracy
    warnings = []
    if record["missing"] and own:
        names = [classes[i] for i in range(count) if mine[i] == 0 and real[i] > 0]
        warnings.append(f"classes that no generated image falls into: {', '.join(names)}")
    return record, warnings


def _is_labelled(labels: torch.Tensor | None) -> bool:
    return labels is not None and bool((labels >= 0).all())


def _accuracy(predicted: torch.Tensor, labels: torch.Tensor | None) -> float | None:
    if labels is None or not _is_labelled(labels):
        return None
    return float(predicted.eq(labels).double().mean())


def _knows(predicted: torch.Tensor | None, labels: torch.Tensor | None, classes: Sequence[str]) -> bool:
    """Whether predictions for real images are of the reference's classes, and right more often than by chance."""
    if predicted is None or not classes or int(predicted.max()) >= len(classes):
        return False
    accuracy = _accuracy(predicted, labels)
    chance = 1 / len(classes)
    return accuracy is not None and accuracy > min(2 * chance, (1 + chance) / 2)


def _can_fit(reference: FeatureStats, classes: Sequence[str]) -> bool:
    """Whether both halves of the real images have enough of every class to fit a classifier to."""
    if reference.labels is None or not _is_labelled(reference.labels) or len(classes) < 2:
        return False
    return int(torch.bincount(reference.labels, minlength=len(classes)).min()) >= 2 * MIN_PER_CLASS


def _fitted(
    generated: torch.Tensor, reference: FeatureStats, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of generated and of real images by a linear classifier that has not seen the image it is asked about."""
    assert reference.labels is not None
    place = float64_device(device)
    rows, labels = reference.rows.to(place), reference.labels.to(place)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED))
    halves = order.chunk(2)
    theirs = torch.empty_like(labels)
    for known, asked in (halves, halves[::-1]):
        theirs[asked] = linear_predictions(rows[known], labels[known], rows[asked])
    return linear_predictions(rows, labels, generated.to(place)).cpu(), theirs.cpu()


def _padded(counts: torch.Tensor, length: int) -> list[int]:
    return [*counts.tolist(), *[0] * (length - len(counts))]


def _per_class(
    generated: torch.Tensor,
    ours: torch.Tensor,
    reference: torch.Tensor,
    theirs: torch.Tensor,
    classes: Sequence[str],
    device: torch.device | str,
) -> dict[str, float | None]:
    """Fréchet distance by class name; None where either side has fewer than 10 images of it."""
    found: dict[str, float | None] = {}
    for number, name in enumerate(classes):
        sides = generated[ours == number], reference[theirs == number]
        enough = min(map(len, sides)) >= MIN_PER_CLASS
        moments = (Moments.of(side, device=device) for side in sides)
        found[name] = frechet_distance(*moments, device=device) if enough else None
    return found


def entropy(counts: torch.Tensor) -> float:
    """Entropy of a histogram in nats; log K for K equal counts."""
    shares = counts.double() / counts.sum()
    return float(-torch.xlogy(shares, shares).sum())
