"""Signs that a score would mislead, found in the images and in their features: some are warnings, some refuse."""

import math
from collections.abc import Mapping, Sequence

import torch

from driftkit.errors import RefusedError
from driftkit.metrics.moments import Moments
from driftkit.metrics.registry import Floor
from driftkit.metrics.survey import Survey
from driftkit.scoring.evaluation_record import CompressionInfo
from driftkit.storage.images import to_uint8

MIN_COUNT = 10
SMALL_COUNT = 2048
COLLAPSE_RATIO, COLLAPSED_RATIO = 0.1, 0.01
DUPLICATE_SHARE, MOST_DUPLICATES = 0.01, 0.5
BLOCKINESS_GAP = 0.05
SLACK = 1e-3  # by which float images may leave [-1, 1]: rounding
LOSSY = "jpeg"


def require_uint8(images: torch.Tensor, what: str) -> tuple[torch.Tensor, list[str]]:
    """uint8 images [N, 3, H, W] of uint8 or of float ones in [-1, 1], and a warning where they had to be rounded.

    Raises:
        RefusedError: values that are not finite, or another range than [-1, 1].
    """
    if images.dtype == torch.uint8:
        return images, []
    if not images.is_floating_point():
        raise RefusedError(f"{what}: images are {images.dtype}, expected uint8, or floating point in [-1, 1]")
    broken = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
    if broken:
        raise RefusedError(f"{what}: {broken} of {len(images)} images hold values that are not finite; sample again")
    low, high = float(images.min()), float(images.max())
    advice = "expected [-1, 1]; scale them, or write uint8"
    if low < -1 - SLACK or high > 1 + SLACK:
        raise RefusedError(f"{what}: values from {low:.4g} to {high:.4g}, {advice}")
    if low >= 0:
        raise RefusedError(f"{what}: no value is below 0 ({low:.4g} to {high:.4g}), as if they lay in [0, 1]; {advice}")
    return to_uint8(images), [f"{what}: floating-point images, rounded to 8 bits as image files are"]


def require_enough(count: int, what: str) -> None:
    """Refuse (RefusedError) fewer than 10 images, which `what` names."""
    if count < MIN_COUNT:
        raise RefusedError(f"{what}: a score needs at least {MIN_COUNT} images, got {count}; take more")


def require_scorable(survey: Survey, what: str, *, allow_collapsed: bool = False) -> list[str]:
    """Refuse images that no distance between distributions means anything for.

    Args:
        what: how the message names them.
        allow_collapsed: warn instead where most are identical or all are flat, as those of an untrained network are.

    Raises:
        RefusedError: fewer than 10 images, more than half of them copies of others, or every image of one colour.
    """
    count = len(survey)
    require_enough(count, what)
    duplicates = count - survey.distinct()
    if duplicates == count - 1:
        problem = f"all {count} images are identical"
    elif bool(survey.flat.all()):
        problem = "every image is one flat colour"
    elif duplicates > MOST_DUPLICATES * count:
        problem = f"{duplicates} of {count} images are exact duplicates of another one"
    else:
        return []
    if not allow_collapsed:
        raise RefusedError(
            f"{what}: {problem}, so no score means anything; look at the grid "
            "(`allow_collapsed` scores them all the same)"
        )
    return [f"{what}: {problem}; scored because of `allow_collapsed`"]


def survey_warnings(survey: Survey) -> list[str]:
    """Sentences about duplicated and flat generated images."""
    count = len(survey)
    found = {"exact duplicates of another one": count - survey.distinct(), "one flat colour": int(survey.flat.sum())}
    return [f"generated: {n} of {count} images are {name}" for name, n in found.items() if n > DUPLICATE_SHARE * count]


def compression(
    generated: Survey,
    reference: Survey | None,
    *,
    generated_formats: Mapping[str, int],
    reference_formats: Mapping[str, int],
    allow_jpeg: bool = False,
) -> tuple[CompressionInfo, list[str]]:
    """Whether one set bears the marks of JPEG and the other does not: what was measured, and warnings.

    Args:
        generated_formats, reference_formats: files by format ("jpeg", "png", ...) where images came from files.

    Raises:
        RefusedError: the generated images were stored as JPEG and the reference was not, and `allow_jpeg` is not given.
    """
    fake, real = generated.blockiness(), reference.blockiness() if reference is not None else None
    info = CompressionInfo(
        generated=round(fake[0], 4) if fake else None,
        reference=round(real[0], 4) if real else None,
        generated_formats=generated_formats,
        reference_formats=reference_formats,
    )
    is_jpeg = bool(generated_formats) and set(generated_formats) == {LOSSY}
    stored = is_jpeg and bool(reference_formats) and LOSSY not in reference_formats
    measured = f"steps at the edges of 8x8 blocks: {fake[0]:.2f} of those elsewhere" if fake else ""
    measured += f", {real[0]:.2f} in the reference" if fake and real else ""
    if stored and not allow_jpeg:
        raise RefusedError(
            f"the generated images were stored as JPEG and the reference was not ({measured or 'by their files'}): the "
            "score would be that of the compression; store them as PNG (`allow_jpeg` scores them all the same)"
        )
    if stored:
        return info, ["the generated images were stored as JPEG and the reference was not: compression is scored too"]
    # A difference within five standard errors may be chance.
    if fake and real and abs(fake[0] - real[0]) > max(BLOCKINESS_GAP, 5 * math.hypot(fake[1], real[1])):
        more, less = ("generated images", "reference") if fake[0] > real[0] else ("reference", "generated images")
        marks = f"more marks of JPEG in the {more} than in the {less} ({measured})"
        return info, [f"{marks}: part of the score is the codec"]
    return info, []


def count_warnings(num_images: int, reference_count: int | None, *, dim: int) -> list[str]:
    """Sentences about counts too small for features of `dim` dimensions; a reference of unknown count is skipped."""
    warnings = []
    for count, what in ((num_images, "generated"), (reference_count, "reference")):
        if count is not None and count < 2 * dim:
            state = "rank-deficient" if count <= dim else "poorly determined"
            warnings.append(
                f"{count} {what} images for {dim} features: the covariance is {state} and the score is biased upwards; "
                "compare only with equal counts"
            )
    if num_images < SMALL_COUNT:
        warnings.append(f"{num_images} images are few: fid@{num_images} is noisy and not comparable to fid@50000")
    return warnings


def foreign_warnings(spec: str, skipped: Sequence[str]) -> list[str]:
    """What a mean and a covariance of another program leave unknown, and what cannot be computed from them.

    Args:
        skipped: labels of the metrics that need more than the two.
    """
    names = ", ".join([*skipped, "the real-vs-real floor"])
    return [
        f"{spec} is a mean and a covariance of another program: nobody can check which extractor, images and resizing "
        "they are from; with others than here, the score means nothing",
        f"a mean and a covariance are not enough for {names}: not computed",
    ]


def floor_warnings(floor: Floor | None, fid: float, num_images: int) -> list[str]:
    """Sentences about a floor that is missing, of fewer images, or not below the score."""
    if floor is None:
        return ["the reference is too small for a real-vs-real floor"]
    if floor.num_images < num_images:
        return [
            f"the floor is of {floor.num_images} against {floor.num_images} images, half of the reference: at "
            f"{num_images} it would be lower"
        ]
    if fid < 2 * floor.metrics["fid"]:
        real = f"{floor.metrics['fid']:.4g}"
        return [f"the score is within twice what real images get ({real}): differences of that size are noise"]
    return []


def collapse_warning(
    generated: Moments, reference: Moments, extractor: str, *, allow_collapsed: bool = False
) -> list[str]:
    """A warning when generated features spread far less than real ones, as they do when a generator collapses.

    Raises:
        RefusedError: they vary by less than 1 % of the real ones' variance, and `allow_collapsed` is not given.
    """
    spread, real = float(generated.covariance().trace()), float(reference.covariance().trace())
    share = spread / max(real, 1e-300)
    varies = f"the generated features of {extractor} vary by {100 * share:.2g} % of the real ones' variance"
    if share < COLLAPSED_RATIO and not allow_collapsed:
        raise RefusedError(
            f"the generator has collapsed: {varies}, expected at least {100 * COLLAPSED_RATIO:g} %; look at the grid "
            "(`allow_collapsed` scores them all the same)"
        )
    return [f"collapse: {varies}"] if share < COLLAPSE_RATIO else []
