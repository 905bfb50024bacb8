"""Statistics of real images on disk: what a second score against the same images needs, without their forward pass.

One safetensors file holds everything: mean and scatter (float64) of all features, the features of up to 100,000 images
(float32: KID, precision, recall and nearest neighbours need them, and 16 bits would change their digits), facts about
the images, and in its header the contract, which says what the tensors follow from and their digest. Written to
another name and renamed, it is whole at every moment, whoever writes beside us. The JSON beside it is the contract
again, for people.
"""

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from driftkit import __version__
from driftkit.errors import ArtifactError, RefusedError, StorageError
from driftkit.metrics.appearance import PROPERTIES
from driftkit.metrics.base import FeatureStats
from driftkit.metrics.moments import Moments
from driftkit.metrics.survey import DIGEST_BYTES, Survey
from driftkit.runtime.folders import cache_folder
from driftkit.scoring.extraction import Extractor
from driftkit.storage.files import digest_json, read_json, read_tensors, state_digest, write_json, write_tensors
from driftkit.storage.json_text import from_json
from driftkit.storage.run_folder import now

FORMAT = 1
KIND = "statistics"
UNLABELLED = -1


@dataclass(frozen=True)
class Statistics:
    """Features of a set of real images, and what they follow from.

    Attributes:
        contract: `data` (spec, digest, count, image_size, classes, formats), `extractor`, `computed_in` and the
            format; for statistics of others what is known of them, with `foreign` true.
        path: where they were read from or written to, if they were.
    """

    features: FeatureStats
    contract: dict[str, Any]
    path: Path | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The images' part of the contract."""
        found: dict[str, Any] = self.contract["data"]
        return found

    @property
    def is_foreign(self) -> bool:
        return bool(self.contract.get("foreign"))


def describe_contract(data: Mapping[str, Any], extractor: Extractor) -> dict[str, Any]:
    """What statistics of `data` by `extractor` follow from.

    Args:
        data: `digest`, `count` and `image_size` of the images decide; `spec`, `classes` and `formats` are told along.
    """
    return {
        "format": FORMAT,
        "kind": KIND,
        "data": dict(data),
        "extractor": extractor.describe(),
        "computed_in": {"dtype": "float32", "device": extractor.device.type, "moments": "float64"},
    }


def contract_key(contract: Mapping[str, Any]) -> str:
    """Equal for statistics that are made of the same images in the same way."""
    data = {name: contract["data"][name] for name in ("digest", "count", "image_size")}
    return digest_json({**contract, "data": data})[:24]


def statistics_folder() -> Path:
    """Where statistics are kept: `statistics` in the cache folder."""
    return cache_folder() / "statistics"


def cached_path(contract: Mapping[str, Any]) -> Path:
    """The file that belongs to a contract."""
    return statistics_folder() / f"{contract_key(contract)}.safetensors"


def write_statistics(path: Path, features: FeatureStats, contract: Mapping[str, Any]) -> Statistics:
    """Write statistics whole or not at all; the JSON follows the file it describes."""
    tensors = {"mean": features.moments.mean, "scatter": features.moments.scatter,
               "rows": features.rows, "indices": features.indices}  # fmt: skip
    if features.survey is not None:
        survey = features.survey
        tensors |= {"digests": survey.digests, "flat": survey.flat.to(torch.uint8), "steps": survey.steps,
                    "appearance": survey.appearance}  # fmt: skip
    tensors |= {
        name: value
        for name, value in (("predictions", features.predictions), ("labels", features.labels))
        if value is not None
    }
    whole = {**contract, "rows": len(features.rows), "sha256": state_digest(tensors)}
    write_tensors(path, tensors, header={"driftkit": KIND, "contract": json.dumps(whole, sort_keys=True)})
    _write_for_people(path, whole)
    return Statistics(features, dict(contract), path)


def _write_for_people(path: Path, contract: Mapping[str, Any]) -> None:
    write_json(path.with_suffix(".json"), {**contract, "driftkit": __version__, "written": now()})


def read_statistics(path: Path) -> Statistics:
    """Open statistics and check that the tensors are those of the contract.

    Raises:
        ArtifactError: the file is absent, cut off, changed, of another format, or holds something else.
    """
    tensors, header = read_tensors(path)
    if header.get("driftkit") != KIND:
        raise ArtifactError(f"{path} holds no statistics of driftkit")
    contract, digest = _contract_in(header.get("contract", ""), path)
    if state_digest(tensors) != digest:
        raise ArtifactError(f"{path}: the tensors are not those its contract describes; make the statistics again")
    _require_shapes(tensors, contract["data"]["count"], path)
    moments = Moments(0)
    moments.count = contract["data"]["count"]
    moments.mean, moments.scatter = tensors["mean"], tensors["scatter"]
    survey = None
    if "digests" in tensors:
        survey = Survey(tensors["digests"], tensors["flat"].bool(), tensors["steps"], tensors["appearance"])
    features = FeatureStats(
        moments,
        tensors["rows"],
        tensors["indices"],
        survey,
        predictions=tensors.get("predictions"),
        labels=tensors.get("labels"),
    )
    return Statistics(features, contract, path)


def _contract_in(text: str, path: Path) -> tuple[dict[str, Any], str]:
    """The contract in a header, with every field that is relied on of its kind, and the digest of the tensors."""
    unreadable = ArtifactError(f"{path}: its contract is unreadable; make the statistics again")
    try:
        contract = from_json(text)
    except (ValueError, RecursionError):
        raise unreadable from None
    if not isinstance(contract, dict):
        raise unreadable
    if contract.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} has format {contract.get('format')!r}, this driftkit reads {FORMAT}; make them again"
        )
    digest, data = contract.pop("sha256", None), contract.get("data")
    contract.pop("rows", None)
    fields: tuple[tuple[Any, type], ...] = ((digest, str), (contract.get("extractor"), dict), (data, dict))
    if isinstance(data, dict):
        fields += ((data.get("digest"), str), (data.get("count"), int), (data.get("image_size"), int))
        fields += ((data.get("classes") or [], list), (data.get("formats") or {}, dict))
    if not all(isinstance(value, kind) for value, kind in fields) or not data or data["count"] < 2:
        raise unreadable
    return contract, str(digest)


def _require_shapes(tensors: Mapping[str, torch.Tensor], count: int, path: Path) -> None:
    """Refuse tensors that do not fit one another: some are absent, or of other images or other features."""
    dim, rows = (len(t) if (t := tensors.get(name)) is not None and t.ndim else 0 for name in ("mean", "rows"))
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "mean": ((dim,), torch.float64),
        "scatter": ((dim, dim), torch.float64),
        "rows": ((rows, dim), torch.float32),
        "indices": ((rows,), torch.int64),
    }
    survey = {"digests": ((count, DIGEST_BYTES), torch.uint8), "flat": ((count,), torch.uint8),
              "steps": ((count, 2), torch.float64),
              "appearance": ((count, len(PROPERTIES)), torch.float32)}  # fmt: skip
    wanted |= survey if not tensors.keys().isdisjoint(survey) else {}
    wanted |= {name: ((rows,), torch.int64) for name in ("predictions", "labels") if name in tensors}
    for name, (shape, dtype) in wanted.items():
        tensor = tensors.get(name)
        got = "no such tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        if tensor is None or (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            raise ArtifactError(f"{path}: {name}, expected {dtype} {list(shape)}, got {got}; make the statistics again")


def is_statistics_file(path: Path) -> bool:
    """Whether a file holds statistics: an .npz, or a safetensors file whose header says so."""
    if not path.is_file():
        return False
    if path.suffix == ".npz":
        return True
    return path.suffix == ".safetensors" and read_tensors(path)[1].get("driftkit") == KIND


def open_statistics_file(path: Path, extractor: Extractor) -> Statistics:
    """Statistics that someone names as a reference.

    Raises:
        RefusedError: they were made by another extractor.
        ArtifactError: the file is broken.
    """
    if path.suffix == ".npz":
        return read_foreign_statistics(path, extractor)
    found = read_statistics(path)
    theirs, ours = found.contract["extractor"], extractor.describe()
    for key in ours:
        if theirs.get(key) != ours[key]:
            raise RefusedError(
                f"{path} was made with another extractor: its {key} is {_short(theirs.get(key))}, here it is "
                f"{_short(ours[key])}; name the images instead, or take --features {theirs.get('name')}"
            )
    return found


def read_foreign_statistics(path: Path, extractor: Extractor) -> Statistics:
    """Mean and covariance as other programs write them: `mu` [D] and `sigma` [D, D] in an .npz.

    What made them is unknown: evaluator, resizing, number of images. Only the Fréchet distance can be had of them.

    Raises:
        ArtifactError: the file is no such thing.
        RefusedError: the features have another length.
    """
    import numpy as np

    data = path.read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            mean, covariance = (
                torch.from_numpy(np.asarray(arrays[name], dtype=np.float64)) for name in ("mu", "sigma")
            )
    except Exception as error:  # numpy and its zip reader raise their own
        raise ArtifactError(f"{path}: expected an .npz with mu and sigma, {type(error).__name__}: {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ArtifactError(
            f"{path}: mu is {list(mean.shape)} and sigma {list(covariance.shape)}, expected [D], [D, D]"
        )
    if len(mean) != extractor.dim:
        raise RefusedError(f"{path} is of {len(mean)} features, {extractor.name} gives {extractor.dim}")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise RefusedError(f"{path}: mu or sigma is not finite")
    moments = Moments.of_covariance(mean, covariance)
    features = FeatureStats(moments, torch.empty(0, len(mean)), torch.empty(0, dtype=torch.int64), None)
    digest = state_digest({"mu": mean, "sigma": covariance})
    described: dict[str, Any] = {
        "spec": str(path),
        "digest": digest,
        "count": None,
        "image_size": None,
        "classes": [],
        "formats": {},
    }
    return Statistics(features, {"foreign": True, "data": described, "extractor": {"name": "unknown"}}, path)


def find_cached(contract: Mapping[str, Any], tell: Callable[[str], None]) -> Statistics | None:
    """Statistics of that contract in the cache, or None. What is there but broken is told and made anew."""
    path = cached_path(contract)
    if not path.is_file():
        return None
    try:
        found = read_statistics(path)
        if contract_key(found.contract) != contract_key(contract):
            raise ArtifactError(f"{path} holds statistics of something else")
    except ArtifactError as error:
        tell(f"warning: {error}; computed anew")
        return None
    if not path.with_suffix(".json").exists():  # a kill came between the two files
        with contextlib.suppress(OSError, StorageError):
            _write_for_people(path, from_json(read_tensors(path)[1]["contract"]))
    return found


def cached_figures(
    statistics: Statistics, name: str, compute: Callable[[], dict[str, Any] | None], *, use: bool = True
) -> dict[str, Any] | None:
    """Figures that follow from statistics in the cache alone, such as a floor, read or computed and kept beside them.

    Args:
        name: of the figures; says all that they depend on beside the statistics.
        use: whether the cache is used at all.
    """
    path = statistics.path
    if not use or path is None or path.parent != statistics_folder():
        return compute()
    kept = path.with_name(f"{path.stem}.{name}.json")
    key = {"kind": "figures", "format": FORMAT, "driftkit": __version__, "name": name, "statistics": path.stem}
    document: dict[str, Any] = {}
    with contextlib.suppress(ArtifactError):  # not there, or cut off: computed now
        document = read_json(kept)
    if all(document.get(k) == v for k, v in key.items()) and isinstance(document.get("figures"), dict):
        found: dict[str, Any] = document["figures"]
        return found
    figures = compute()
    if figures is not None:
        with contextlib.suppress(OSError, StorageError):  # a cache that is full or read-only costs time, not the score
            write_json(kept, {**key, "figures": figures})
    return figures


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12] + "..."


def nothing_here(dim: int) -> FeatureStats:
    """What ranks other than the first hold of statistics."""
    return FeatureStats(Moments(dim), torch.empty(0, dim), torch.empty(0, dtype=torch.int64), None)
