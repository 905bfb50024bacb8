"""Scores of generated features against real ones, and what real images would get in their place."""

from dataclasses import dataclass
from typing import Any

import torch

from driftkit.metrics.feature_stats import FeatureStats
from driftkit.metrics.frechet import frechet_distance
from driftkit.metrics.kid import KID_SUBSET_SIZE, KID_SUBSETS, RANDOM_SEED, kernel_distance
from driftkit.metrics.manifold import DENSITY_NEIGHBOURS, PRC_NEIGHBOURS, manifold_scores
from driftkit.metrics.moments import Moments

INCEPTION_SCORE_SPLITS = 10


@dataclass(frozen=True)
class Scores:
    """Numbers, the settings they depend on, and what could not be computed.

    Attributes:
        metrics: fid, kid_mean, kid_std, precision, recall, density, coverage, inception_score_mean and _std: those
            that exist.
        settings: subset and neighbourhood sizes.
        omitted: one sentence per score left out.
    """

    metrics: dict[str, float]
    settings: dict[str, int]
    omitted: list[str]


def score_features(
    generated: FeatureStats,
    reference: FeatureStats,
    *,
    inception_score: bool = False,
    device: torch.device | str = "cpu",
) -> Scores:
    """All scores of generated images.

    The Fréchet distance takes the moments of all images, the others the features that were kept. KID draws 100 subsets
    of min(1000, half of the smaller set) images. Precision, recall, density and coverage take equally many images of
    both sets, drawn with a fixed seed, since all four move with the counts.

    Args:
        generated, reference: of one extractor, at least 2 images each.
        inception_score: whether the generated logits are those that the Inception Score is defined with.
        device: where the scores are computed.
    """
    metrics = {"fid": frechet_distance(generated.moments, reference.moments, device=device)}
    scores = score_rows(generated.rows, reference.rows, device=device)
    settings, omitted = dict(scores.settings), list(scores.omitted)
    if inception_score and generated.logits is not None:
        if len(generated.logits) >= 2 * INCEPTION_SCORE_SPLITS:
            settings["inception_score_splits"] = INCEPTION_SCORE_SPLITS
            metrics |= inception_score_of(generated.logits)
        else:
            got = len(generated.logits)
            omitted.append(f"the Inception Score needs at least {2 * INCEPTION_SCORE_SPLITS} images, got {got}")
    return Scores({**metrics, **scores.metrics}, settings, omitted)


def score_rows(generated: torch.Tensor, reference: torch.Tensor, *, device: torch.device | str = "cpu") -> Scores:
    """KID, precision, recall, density and coverage of features [N, D] against [M, D]."""
    metrics: dict[str, float] = {}
    settings: dict[str, int] = {}
    omitted: list[str] = []
    count = min(len(generated), len(reference))
    if count >= 4:
        settings |= {"kid_subsets": KID_SUBSETS, "kid_subset_size": min(KID_SUBSET_SIZE, count // 2)}
        metrics |= kernel_distance(generated, reference, subset_size=settings["kid_subset_size"], device=device)
    else:
        omitted.append(f"KID needs the features of at least 4 images on both sides, got {count}")
    most = max(PRC_NEIGHBOURS, DENSITY_NEIGHBOURS)
    if count > most:
        settings |= {"prc_neighbours": PRC_NEIGHBOURS, "density_neighbours": DENSITY_NEIGHBOURS, "prc_images": count}
        metrics |= manifold_scores(_drawn(generated, count), _drawn(reference, count), device=device)
    else:
        omitted.append(
            f"precision, recall, density and coverage need the features of more than {most} images on both sides, "
            f"got {count}"
        )
    return Scores(metrics, settings, omitted)


def _drawn(features: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows; all of them in their order where there are no more. Real images may be sorted by class."""
    if len(features) == count:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(RANDOM_SEED))[:count]]


def inception_score_of(logits: torch.Tensor) -> dict[str, float]:
    """`inception_score_mean` and `_std` over 10 splits of logits [N, 1008], as torch-fidelity has them."""
    from torch_fidelity import metric_isc

    out = metric_isc.isc_features_to_metric(logits, INCEPTION_SCORE_SPLITS, True, RANDOM_SEED)
    return {
        "inception_score_mean": out[metric_isc.KEY_METRIC_ISC_MEAN],
        "inception_score_std": out[metric_isc.KEY_METRIC_ISC_STD],
    }


def real_floor(
    rows: torch.Tensor, *, num_images: int, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, Any] | None:
    """What perfect samples would score: two disjoint random halves of the reference against each other.

    Args:
        rows: features of real images, [M, D].
        num_images: wanted images on each side; at most M / 2 are there.
        seed: of the split.

    Returns:
        `fid` and the scores of `score_rows`, with `num_images` (on each side) and `seed`; None where there are fewer
        than 4 images.
    """
    count = min(num_images, len(rows) // 2)
    if count < 2:
        return None
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    first, second = rows[order[:count]], rows[order[count : 2 * count]]
    fid = frechet_distance(*(Moments.of(half, device=device) for half in (first, second)), device=device)
    return {"fid": fid, "num_images": count, "seed": seed, **score_rows(first, second, device=device).metrics}
