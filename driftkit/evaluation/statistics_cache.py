"""Features and moments of reference images, kept so that the next score skips the reference's forward pass.

One safetensors file per reference and judge. Its header holds the contract: what the tensors were computed from, and
their digest. The file appears in one rename, so writers that work at the same time cannot mix their contents.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from driftkit.artifacts.files import digest_json, read_tensors, state_digest, write_tensors
from driftkit.errors import MissingError
from driftkit.evaluation.extractors import Extractor
from driftkit.evaluation.moments import Moments
from driftkit.runtime.folders import cache_folder

FORMAT = 1
MAX_FEATURE_BYTES = 2 * 2**30
UNIDENTIFIED = ("random", "none")  # weights digests that do not say which weights


@dataclass(frozen=True)
class ReferenceStatistics:
    """What scoring needs of the real images.

    Attributes:
        features: float32 [N, D].
        moments: of `features`, float64.
        cached: whether they were read instead of computed.
    """

    features: torch.Tensor
    moments: Moments
    cached: bool


def contract(extractor: Extractor, *, digest: str, count: int, image_size: int) -> dict[str, Any]:
    """Everything that the reference's features depend on; equal contracts mean equal features.

    Args:
        digest: of the reference's data.
        count: images of the reference.
        image_size: their side in pixels, after any resizing.
    """
    return {
        "format": FORMAT,
        "kind": "reference-statistics",
        "data_digest": digest,
        "count": count,
        "image_size": image_size,
        "extractor": extractor.describe(),
        "device": extractor.device.type,
        "features_dtype": "float32",
        "moments_dtype": "float64",
    }


def cache_path(agreed: dict[str, Any]) -> Path:
    """Where the statistics of that contract are kept."""
    return cache_folder() / "statistics" / f"{digest_json(agreed)[:40]}.safetensors"


def reference_statistics(
    agreed: dict[str, Any],
    compute: Callable[[], torch.Tensor],
    *,
    use_cache: bool = True,
    notice: Callable[[str], None],
) -> ReferenceStatistics:
    """The statistics of that contract: read where they are kept, else computed and kept.

    A file that is truncated, altered or of another contract is computed anew and replaced. Nothing is kept of an
    encoder with random weights, whose digest does not tell it from another, nor of features above 2 GiB.

    Args:
        agreed: the `contract`.
        compute: gives the features, float32 [count, dim].
        use_cache: False neither reads nor writes.
        notice: told in one line that the cache was used, or why it was not.
    """
    extractor = agreed["extractor"]
    fits = agreed["count"] * extractor["dim"] * 4 <= MAX_FEATURE_BYTES
    keep = use_cache and fits and extractor["weights_digest"] not in UNIDENTIFIED
    path = cache_path(agreed)
    if keep and path.exists():
        found = _read(path, agreed)
        if isinstance(found, ReferenceStatistics):
            notice(f"reference: features of {agreed['count']:,} images taken from {path}")
            return found
        notice(f"warning: {found}; the reference's features are computed anew")
    features = compute()
    made = ReferenceStatistics(features, Moments.of(features), cached=False)
    if keep:
        _write(path, agreed, made, notice)
    return made


def _write(path: Path, agreed: dict[str, Any], made: ReferenceStatistics, notice: Callable[[str], None]) -> None:
    tensors = {"features": made.features, "mean": made.moments.mean, "scatter": made.moments.scatter}
    try:
        write_tensors(path, tensors, header={"contract": agreed, "sha256": state_digest(tensors)})
    except OSError as error:  # a full or read-only disk costs the next call time, not this one its score
        notice(f"warning: the reference's features could not be kept in {path.parent}: {error}")


def _read(path: Path, agreed: dict[str, Any]) -> ReferenceStatistics | str:
    """The statistics, or what is wrong with the file."""
    try:
        tensors, header = read_tensors(path)
        stored = json.loads(header.get("contract", "null"))
    except (MissingError, ValueError) as error:
        return str(error)
    if stored != agreed:
        return f"{path} was made of something else than its name says"
    shapes = {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()}
    dim = agreed["extractor"]["dim"]
    expected = {
        "features": (torch.float32, [agreed["count"], dim]),
        "mean": (torch.float64, [dim]),
        "scatter": (torch.float64, [dim, dim]),
    }
    if shapes != expected or state_digest(tensors) != header.get("sha256"):
        return f"{path} is damaged: its tensors are not those that were written"
    moments = Moments(0)
    moments.count, moments.mean, moments.scatter = agreed["count"], tensors["mean"], tensors["scatter"]
    return ReferenceStatistics(tensors["features"], moments, cached=True)
