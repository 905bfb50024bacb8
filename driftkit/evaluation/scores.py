"""Scores of features: FID, density and coverage are ours; KID, precision, recall and IS torch-fidelity's."""

from dataclasses import dataclass
from typing import Any

import torch

from driftkit.evaluation import density
from driftkit.evaluation.frechet import frechet_distance
from driftkit.evaluation.moments import Moments

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
PRC_NEIGHBOURS = 3
PRC_CHUNK = 2000  # rows of distances at a time: 2,000 x 50,000 float32 take 0.4 GB
RANDOM_SEED = 2020  # torch-fidelity's own, so that its command line gives the same KID
INCEPTION_SCORE_SPLITS = 10


@dataclass(frozen=True)
class Scores:
    """Numbers, the settings they depend on, and what could not be computed.

    Attributes:
        metrics: fid, kid_mean, kid_std, precision, recall, density, coverage, inception_score_mean and _std, where they
            exist.
        settings: subset and neighbourhood sizes.
        omitted: one sentence per score left out.
    """

    metrics: dict[str, float]
    settings: dict[str, int]
    omitted: list[str]


def score_features(
    generated: torch.Tensor,
    reference: torch.Tensor,
    *,
    logits: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    reference_moments: Moments | None = None,
) -> Scores:
    """All scores of [N, D] generated features against [M, D] reference features.

    KID draws 100 subsets of min(1000, half of the smaller set) images. Precision and recall take equally many images
    of both sets, drawn with a fixed seed, since both numbers move with the counts; distances are computed in chunks.

    Args:
        generated, reference: float32 features of one extractor, at least 2 rows each.
        logits: of the generated images, [N, K], for the Inception Score; None leaves it out.
        device: where the distances are computed.
        reference_moments: of `reference`, where they are known already.
    """
    metrics = {"fid": frechet_distance(Moments.of(generated), reference_moments or Moments.of(reference))}
    settings: dict[str, int] = {}
    omitted: list[str] = []
    count = min(len(generated), len(reference))
    if count >= 4:
        settings |= {"kid_subsets": KID_SUBSETS, "kid_subset_size": min(KID_SUBSET_SIZE, count // 2)}
        metrics |= _kid(generated, reference, subset_size=settings["kid_subset_size"])
    else:
        omitted.append(f"KID needs at least 4 images on both sides, got {count}")
    if count > PRC_NEIGHBOURS:
        settings |= {"prc_neighbours": PRC_NEIGHBOURS, "prc_images": count}
        metrics |= _precision_recall(_drawn(generated, count).to(device), _drawn(reference, count).to(device))
    else:
        omitted.append(f"precision and recall need more than {PRC_NEIGHBOURS} images on both sides, got {count}")
    if count > density.NEIGHBOURS:
        settings |= {"density_neighbours": density.NEIGHBOURS, "density_images": count}
        drawn = [_drawn(features, count).to(device) for features in (generated, reference)]
        metrics |= density.density_coverage(*drawn)
    else:
        omitted.append(f"density and coverage need more than {density.NEIGHBOURS} images on both sides, got {count}")
    if logits is not None:
        if len(logits) >= 2 * INCEPTION_SCORE_SPLITS:
            settings["inception_score_splits"] = INCEPTION_SCORE_SPLITS
            metrics |= _inception_score(logits)
        else:
            omitted.append(f"the Inception Score needs at least {2 * INCEPTION_SCORE_SPLITS} images, got {len(logits)}")
    return Scores(metrics, settings, omitted)


def _drawn(features: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows; all of them in their order where there are no more. Real images may be sorted by class."""
    if len(features) == count:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(RANDOM_SEED))[:count]]


def _kid(generated: torch.Tensor, reference: torch.Tensor, *, subset_size: int) -> dict[str, float]:
    from torch_fidelity import metric_kid

    # float64, since the estimate is a small difference of sums of cubes
    out: dict[str, Any] = metric_kid.kid_features_to_metric(
        generated.double(),
        reference.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=subset_size,
        rng_seed=RANDOM_SEED,
        verbose=False,
    )
    return {"kid_mean": out[metric_kid.KEY_METRIC_KID_MEAN], "kid_std": out[metric_kid.KEY_METRIC_KID_STD]}


def _precision_recall(generated: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    from torch_fidelity import metric_prc

    out: dict[str, Any] = metric_prc.prc_features_to_metric(
        generated,
        reference,
        prc_neighborhood=PRC_NEIGHBOURS,
        prc_batch_size=PRC_CHUNK,
        save_cpu_ram=True,
        verbose=False,
    )
    return {"precision": out[metric_prc.KEY_METRIC_PRECISION], "recall": out[metric_prc.KEY_METRIC_RECALL]}


def _inception_score(logits: torch.Tensor) -> dict[str, float]:
    from torch_fidelity import metric_isc

    out = metric_isc.isc_features_to_metric(logits, INCEPTION_SCORE_SPLITS, True, RANDOM_SEED)
    return {
        "inception_score_mean": out[metric_isc.KEY_METRIC_ISC_MEAN],
        "inception_score_std": out[metric_isc.KEY_METRIC_ISC_STD],
    }


def real_floor(reference: torch.Tensor, *, num_images: int, seed: int = 0) -> dict[str, Any] | None:
    """Fréchet distance between two disjoint random halves of the reference: what perfect samples would score.

    Args:
        reference: features of real images, [M, D].
        num_images: wanted images on each side; at most M / 2 are there.
        seed: of the split.

    Returns:
        `fid`, `num_images` (on each side) and `seed`; None where the reference has fewer than 4 images.
    """
    count = min(num_images, len(reference) // 2)
    if count < 2:
        return None
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
    first, second = reference[order[:count]], reference[order[count : 2 * count]]
    return {"fid": frechet_distance(Moments.of(first), Moments.of(second)), "num_images": count, "seed": seed}
