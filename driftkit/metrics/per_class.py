"""Whether generated images fall into the classes as real ones do, are of those asked for, and how far they are off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from driftkit.metrics.base import FeatureStats, Metric, MetricInputs, MetricResult, Quantity
from driftkit.metrics.frechet import frechet_distance
from driftkit.metrics.moments import Moments
from driftkit.metrics.quality import linear_predictions
from driftkit.runtime.device import float64_device

MIN_PER_CLASS = 10
SPLIT_SEED = 2020


@dataclass(frozen=True)
class ClassScores:
    """Class histograms of generated and real images.

    Attributes:
        by: what the classes are taken from: labels, predictions or linear.
        entropy, reference_entropy: of the histograms, in nats.
        missing: classes that real images have and generated ones do not.
        names: the reference's classes; with them stand both histograms and `fd`, the Fréchet distance by class name
            (None where either side has fewer than 10 images). All are empty where classes are those of another
            classifier.
        accuracy: of the classifier on labelled real images.
        agreement: where both sides are labelled, the share of generated images whose class by that classifier is their
            label; None where no classifier of the reference's classes is at hand.
        classifier: the one of `agreement`: predictions or linear.
    """

    by: str
    entropy: float
    reference_entropy: float
    missing: int
    names: Sequence[str] = ()
    generated: Sequence[int] = ()
    reference: Sequence[int] = ()
    fd: Mapping[str, float | None] = field(default_factory=dict)
    accuracy: float | None = None
    agreement: float | None = None
    classifier: str | None = None


def class_scores(
    generated: FeatureStats,
    reference: FeatureStats,
    *,
    classes: Sequence[str],
    predicted_classes: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> ClassScores | None:
    """Class histograms with their entropies, and the Fréchet distance of each class; None where no classes are known.

    Classes are the labels where both sets are labelled; else what the extractor's own classifier predicts for both, so
    that its mistakes are the same on both sides; else, where the reference is labelled, what linear classifiers on the
    features predict, each fitted to a half of the reference: real images get the prediction of the one that was fitted
    to the other half, and generated ones those of both in turn, so that both sides are predicted equally well.
    Per-class distances need classes that are those of the reference, by their names in `predicted_classes` where these
    are known: a classifier of others gives histograms alone. Labels of generated images are the classes that were asked
    for; where there are any, the same classifier tells how many of the images it takes for what they were asked to be.
    """
    labelled = _is_labelled(generated.labels) and _is_labelled(reference.labels) and bool(classes)
    by, fake, real = _predicted(generated, reference, classes, predicted_classes, device)
    names = classes if by == "linear" else predicted_classes
    knows = _knows(real, reference.labels, classes, names)
    accuracy = agreement = classifier = None
    if knows and real is not None and fake is not None:
        accuracy = _accuracy(real, reference.labels)
        agreement, classifier = (_accuracy(fake, generated.labels), by) if labelled else (None, None)
    if labelled:
        by, fake, real = "labels", generated.labels, reference.labels
    if fake is None or real is None:
        return None
    count = int(max(fake.max(), real.max())) + 1
    count = max(count, len(classes) if labelled else 0)
    fake_counts, real_counts = (torch.bincount(part, minlength=count) for part in (fake, real))
    missing = int(((fake_counts == 0) & (real_counts > 0)).sum())
    scores = ClassScores(by, entropy(fake_counts), entropy(real_counts), missing)
    if not labelled and not knows:
        return scores
    distances: dict[str, float | None] = {}
    for number, name in enumerate(classes):
        sides = generated.rows[fake == number], reference.rows[real == number]
        enough = min(map(len, sides)) >= MIN_PER_CLASS
        moments = (Moments.of(side, device=device) for side in sides)
        distances[name] = frechet_distance(*moments, device=device) if enough else None
    return replace(
        scores,
        names=list(classes),
        generated=torch.bincount(fake, minlength=len(classes)).tolist(),
        reference=torch.bincount(real, minlength=len(classes)).tolist(),
        fd=distances,
        accuracy=accuracy,
        agreement=agreement,
        classifier=classifier,
    )


def _predicted(
    generated: FeatureStats,
    reference: FeatureStats,
    classes: Sequence[str],
    predicted_classes: Sequence[str],
    device: torch.device | str,
) -> tuple[str, torch.Tensor | None, torch.Tensor | None]:
    """Classes of both sets by a classifier, and which: the extractor's own, or where it does not know the classes a
    linear one."""
    knows = _knows(reference.predictions, reference.labels, classes, predicted_classes)
    if not knows and _can_fit(reference, classes):
        return "linear", *_fitted(generated.rows, reference, device)
    return "predictions", generated.predictions, reference.predictions


def _is_labelled(labels: torch.Tensor | None) -> bool:
    return labels is not None and bool((labels >= 0).all())


def _accuracy(predicted: torch.Tensor, labels: torch.Tensor | None) -> float | None:
    if labels is None or not _is_labelled(labels):
        return None
    return float(predicted.eq(labels).double().mean())


def _knows(
    predicted: torch.Tensor | None, labels: torch.Tensor | None, classes: Sequence[str], names: Sequence[str]
) -> bool:
    """Whether predictions for real images are of the reference's classes, and right more often than by chance.

    Args:
        names: of the predicted classes. Without them predictions have to be right half way from chance to always,
            since a part of the classes may have the same number in another order.
    """
    if predicted is None or not classes or int(predicted.max()) >= len(classes):
        return False
    if names and tuple(names) != tuple(classes):
        return False
    accuracy, chance = _accuracy(predicted, labels), 1 / len(classes)
    half_way = (1 + chance) / 2
    return accuracy is not None and accuracy > (min(2 * chance, half_way) if names else half_way)


def _can_fit(reference: FeatureStats, classes: Sequence[str]) -> bool:
    """Whether both halves of the real images have enough of every class to fit a classifier to."""
    if reference.labels is None or not _is_labelled(reference.labels) or len(classes) < 2:
        return False
    return int(torch.bincount(reference.labels, minlength=len(classes)).min()) >= 2 * MIN_PER_CLASS


def _fitted(
    generated: torch.Tensor, reference: FeatureStats, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of generated and of real images, each by one of two linear classifiers that has not seen the image.

    Both are fitted to half of the real images. One that is fitted to all of them would do better, and agreement would
    not compare with accuracy, next to which it is read.
    """
    assert reference.labels is not None
    place = float64_device(device)
    rows, labels, queries = reference.rows.to(place), reference.labels.to(place), generated.to(place)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED))
    halves = order.chunk(2)
    fake, real = labels.new_empty(len(queries)), torch.empty_like(labels)
    for first, (fitted, held_out) in enumerate((halves, halves[::-1])):
        asked = torch.cat([rows[held_out], queries[first::2]])
        predicted = linear_predictions(rows[fitted], labels[fitted], asked)
        real[held_out], fake[first::2] = predicted.split([len(held_out), len(predicted) - len(held_out)])
    return fake.cpu(), real.cpu()


def entropy(counts: torch.Tensor) -> float:
    """Entropy of a histogram in nats; log K for K equal counts."""
    shares = counts.double() / counts.sum()
    return float(-torch.xlogy(shares, shares).sum())


def _compute(inputs: MetricInputs) -> MetricResult:
    names = {"classes": inputs.classes, "predicted_classes": inputs.predicted_classes}
    scores = class_scores(inputs.generated, inputs.reference, **names, device=inputs.device)
    if scores is None:
        return MetricResult()
    lost = [n for n, g, r in zip(scores.names, scores.generated, scores.reference, strict=True) if r > 0 and not g]
    values, real = {"class_entropy": scores.entropy}, {"class_entropy": scores.reference_entropy}
    if scores.agreement is not None and scores.accuracy is not None:
        values |= {"class_agreement": scores.agreement, "classifier_accuracy": scores.accuracy}
        real["class_agreement"] = scores.accuracy
    warnings = [f"classes that no generated image falls into: {', '.join(lost)}"] if lost else []
    if scores.by == "labels" and scores.agreement is None and len(scores.names) > 1:
        warnings.append("class agreement was not measured: the extractor's features do not tell the classes apart")
    return MetricResult(values, real=real, details=scores, warnings=warnings)


PER_CLASS = Metric(
    name="per_class",
    label="class histograms",
    help="Class histograms with their entropy, the Fréchet distance of each class, and agreement with asked classes.",
    quantities=(
        Quantity(
            "class_agreement",
            "Class agreement",
            "higher",
            "share",
            "Share of samples that a classifier puts into the class they were asked to be of.",
        ),
        Quantity(
            "classifier_accuracy",
            "Of real",
            "none",
            "share",
            "Share of real images that the classifier of class agreement puts into their class.",
        ),
        Quantity(
            "class_entropy",
            "Class entropy",
            "none",
            "nats",
            "Entropy of the classes of generated images, in nats.",
            column=False,
        ),
    ),
    needs="classes",
    min_images=1,
    compute=_compute,
    in_floor=False,
)
