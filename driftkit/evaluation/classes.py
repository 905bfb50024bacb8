"""Whether generated images fall into the classes as real ones do, and how far they are from them class by class."""

from collections.abc import Sequence
from typing import Any

import torch

from driftkit.evaluation.features import ImageFeatures
from driftkit.evaluation.frechet import frechet_distance
from driftkit.evaluation.moments import Moments

MIN_PER_CLASS = 10


def class_scores(
    generated: ImageFeatures, reference: ImageFeatures, *, classes: Sequence[str]
) -> tuple[dict[str, Any] | None, list[str]]:
    """Class histograms with their entropies, and the Fréchet distance of each class, where classes are known.

    Classes are the labels where both sets are labelled; else what the extractor's classifier predicts for both, so
    that its mistakes are the same on both sides. Per-class distances need classes that are those of the reference: a
    classifier of others (Inception's) gives histograms alone.

    Args:
        classes: names of the reference's classes; empty where it has none.

    Returns:
        The record: `by`, `entropy` and `reference_entropy` in nats, `missing` (classes that real images have and
        generated ones do not), and with the reference's own classes also `names`, both histograms, `fd` by class name,
        and the classifier's accuracy on labelled real images. None where no classes are known. And warnings.
    """
    labelled = _is_labelled(generated.labels) and _is_labelled(reference.labels) and bool(classes)
    ours = generated.labels if labelled else generated.predictions
    theirs = reference.labels if labelled else reference.predictions
    if ours is None or theirs is None:
        return None, []
    count = int(max(ours.max(), theirs.max())) + 1
    count = max(count, len(classes) if labelled else 0)
    mine, real = (torch.bincount(part, minlength=count) for part in (ours, theirs))
    record: dict[str, Any] = {
        "by": "labels" if labelled else "predictions",
        "entropy": entropy(mine),
        "reference_entropy": entropy(real),
        "missing": int(((mine == 0) & (real > 0)).sum()),
    }
    accuracy = None if labelled else _accuracy(reference)
    own = labelled or (accuracy is not None and count <= len(classes) and accuracy > 2 / len(classes))
    if own:
        record |= {
            "names": list(classes),
            "generated": _padded(mine, len(classes)),
            "reference": _padded(real, len(classes)),
            "fd": _per_class(generated.rows, ours, reference.rows, theirs, classes),
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


def _accuracy(reference: ImageFeatures) -> float | None:
    if not _is_labelled(reference.labels) or reference.predictions is None:
        return None
    assert reference.labels is not None
    return float(reference.predictions.eq(reference.labels).double().mean())


def _padded(counts: torch.Tensor, length: int) -> list[int]:
    return [*counts.tolist(), *[0] * (length - len(counts))]


def _per_class(
    generated: torch.Tensor, ours: torch.Tensor, reference: torch.Tensor, theirs: torch.Tensor, classes: Sequence[str]
) -> dict[str, float | None]:
    """Fréchet distance by class name; None where either side has fewer than 10 images of it."""
    found: dict[str, float | None] = {}
    for number, name in enumerate(classes):
        sides = generated[ours == number], reference[theirs == number]
        enough = min(map(len, sides)) >= MIN_PER_CLASS
        found[name] = frechet_distance(*(Moments.of(side) for side in sides)) if enough else None
    return found


def entropy(counts: torch.Tensor) -> float:
    """Entropy of a histogram in nats; log K for K equal counts."""
    shares = counts.double() / counts.sum()
    return float(-torch.xlogy(shares, shares).sum())
