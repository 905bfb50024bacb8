"""Signs that a score would mislead, found in the images and in their features: some are warnings, some refuse."""

import hashlib

import torch

from driftkit.errors import RefusedError
from driftkit.evaluation.moments import Moments

SMALL_COUNT = 2048
COLLAPSE_RATIO = 0.1
DUPLICATE_SHARE = 0.01


def require_scorable(images: torch.Tensor, what: str, *, allow_collapsed: bool = False) -> list[str]:
    """Refuse images that no distance between distributions means anything for.

    Args:
        images: uint8 [N, 3, H, W].
        what: how the message names them.
        allow_collapsed: warn instead where they are identical or flat, as those of an untrained network are.

    Returns:
        Warnings, where something was allowed.

    Raises:
        RefusedError: fewer than 2 images, all images identical, or every image of one flat colour.
    """
    if len(images) < 2:
        raise RefusedError(f"{what}: a score needs at least 2 images, got {len(images)}; sample more")
    if bool((images == images[:1]).all()):
        problem = f"all {len(images)} images are identical"
    elif bool((images == images[:, :, :1, :1]).all()):
        problem = "every image is one flat colour"
    else:
        return []
    if not allow_collapsed:
        raise RefusedError(
            f"{what}: {problem}, so no score means anything; look at the grid "
            "(--allow-collapsed scores them all the same)"
        )
    return [f"{what}: {problem}; scored because --allow-collapsed asked for it"]


def image_warnings(images: torch.Tensor, what: str) -> list[str]:
    """Sentences about duplicated and flat images among uint8 [N, 3, H, W]; `what` is how they name them."""
    warnings = []
    digests = {hashlib.blake2b(image.contiguous().numpy(), digest_size=16).digest() for image in images}
    duplicates = len(images) - len(digests)
    if duplicates > DUPLICATE_SHARE * len(images):
        warnings.append(f"{what}: {duplicates} of {len(images)} images are exact duplicates of another one")
    flat = int((images == images[:, :, :1, :1]).flatten(1).all(dim=1).sum())
    if flat > DUPLICATE_SHARE * len(images):
        warnings.append(f"{what}: {flat} of {len(images)} images are one flat colour")
    return warnings


def count_warnings(num_images: int, reference_count: int, *, dim: int) -> list[str]:
    """Sentences about counts too small for features of `dim` dimensions."""
    warnings = []
    for count, what in ((num_images, "generated"), (reference_count, "reference")):
        if count < 2 * dim:
            state = "rank-deficient" if count <= dim else "poorly determined"
            warnings.append(
                f"{count} {what} images for {dim} features: the covariance is {state} and the score is biased upwards; "
                "compare only with equal counts"
            )
    if num_images < SMALL_COUNT:
        warnings.append(f"{num_images} images are few: fid@{num_images} is noisy and not comparable to fid@50000")
    return warnings


def collapse_warning(generated: Moments, reference: Moments, *, allow_collapsed: bool = False) -> str | None:
    """A sentence when generated features spread far less than real ones, as they do when a generator collapses.

    Raises:
        RefusedError: the generated features do not vary at all, and `allow_collapsed` is not given.
    """
    spread, real = float(generated.covariance().trace()), float(reference.covariance().trace())
    if spread <= 1e-12 * max(real, 1e-300) and not allow_collapsed:
        raise RefusedError("the generated features do not vary: the generator has collapsed; look at the grid")
    if spread < COLLAPSE_RATIO * real:
        return f"collapse: the generated features vary by {100 * spread / real:.2g} % of the real ones' variance"
    return None
