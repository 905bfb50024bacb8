"""Whether generated images are copies: distances to the nearest training image, against those of images never seen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from driftkit.metrics.feature_stats import FeatureStats
from driftkit.metrics.manifold import nearest_images
from driftkit.storage.images import save_grid

BASELINE_IMAGES = 5_000
NEAR_QUANTILE = 0.01  # of real images that are nearer to a training image than "near"
NEAR_SHARE, COPY_SHARE = 0.05, 0.001  # above which it is said loudly
PAIRS = 16
SEED = 2020


@dataclass(frozen=True)
class Memorisation:
    """How near generated images are to training images.

    Attributes:
        record: for the evaluation; see `look_for_copies`.
        generated: numbers of the generated images that are nearest, relative to the rest, the worst first.
        training: the training image of each.
        warnings: sentences where they are too near.
    """

    record: dict[str, Any]
    generated: list[int]
    training: list[int]
    warnings: list[str]


def baseline_distances(
    training: FeatureStats, held_out: FeatureStats | None, *, device: torch.device | str = "cpu"
) -> dict[str, Any] | None:
    """How far real images are from the nearest training image.

    Args:
        held_out: real images that are not among the training images; None takes training images, each without itself.

    Returns:
        `median`, `near` (the 1 % quantile), `num_images` and `of`; None where there are too few images.
    """
    asking = training if held_out is None else held_out
    if len(training.rows) < 2 or len(asking.rows) < 2:
        return None
    chosen = torch.randperm(len(asking.rows), generator=torch.Generator().manual_seed(SEED))[:BASELINE_IMAGES]
    themselves = chosen if held_out is None else None
    distances, _ = nearest_images(asking.rows[chosen], training.rows, themselves=themselves, device=device)
    return {
        "median": float(distances.median()),
        "near": float(torch.quantile(distances, NEAR_QUANTILE)),
        "num_images": len(chosen),
        "of": "training images, each without itself" if held_out is None else "held-out images",
    }


def look_for_copies(
    generated: FeatureStats, training: FeatureStats, baseline: dict[str, Any], *, device: torch.device | str = "cpu"
) -> Memorisation:
    """Compare distances to the nearest training image with those of real images.

    Returns:
        Its record holds `ratio` (median distance over the baseline's median: 1 is as new as real images, near 0 is
        copying), `near_share` (share of generated images nearer than the nearest 1 % of real ones), `exact_copies`
        (images that are, pixel by pixel, training images), the `baseline`, `searched` (training images looked
        through), and the worst pairs.
    """
    distances, index = nearest_images(generated.rows, training.rows, device=device)
    median = baseline["median"]
    ratios = distances / median if median else torch.ones_like(distances)
    near = float((distances <= baseline["near"]).double().mean())
    worst = ratios.argsort(stable=True)[:PAIRS]
    pairs = [
        (int(generated.indices[i]), int(training.indices[index[i]]), round(float(ratios[i]), 6)) for i in worst.tolist()
    ]
    exact = 0
    if generated.survey is not None and training.survey is not None:
        exact = generated.survey.shared_with(training.survey)
    record = {
        "ratio": float(ratios.median()),
        "near_share": near,
        "exact_copies": exact,
        "baseline": baseline,
        "searched": len(training.rows),
        "worst": [{"generated": g, "training": t, "ratio": r} for g, t, r in pairs],
    }
    warnings = []
    if exact > COPY_SHARE * len(generated):
        warnings.append(f"{exact} of {len(generated)} generated images are, pixel by pixel, training images")
    if near > NEAR_SHARE:
        warnings.append(
            f"memorisation: {100 * near:.3g} % of the generated images are nearer to a training image than all but "
            f"{100 * NEAR_QUANTILE:.0f} % of real ones; look at the pairs"
        )
    return Memorisation(record, [p[0] for p in pairs], [p[1] for p in pairs], warnings)


def save_pairs(path: Path, generated: torch.Tensor, training: torch.Tensor) -> None:
    """Write pairs of uint8 [n, 3, H, W] images as one PNG: rows of eight generated images, each above its neighbour."""
    columns = 8
    blocks = []
    for first in range(0, len(generated), columns):
        for images in (generated[first : first + columns], training[first : first + columns]):
            missing = columns - len(images)
            blocks += [images, images.new_full((missing, *images.shape[1:]), 255)] if missing else [images]
    save_grid(path, torch.cat(blocks), columns=columns)
