"""Statistics of real images on disk: what a second score against the same images needs, without their forward pass.

One safetensors file holds everything: mean and scatter (float64) of all features, the features of up to 100,000 images
(float32: KID, precision, recall and nearest neighbours need them, and 16 bits would change their digits), facts about
the images, and in its header the record, which says what the tensors follow from and their digest. The JSON next to it
is the record again, for people.
"""

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError

from driftkit import __version__
from driftkit.datasets.arrays import KEYS, array_names
from driftkit.errors import ArtifactError, RefusedError, StorageError
from driftkit.metrics.base import Baseline, FeatureStats
from driftkit.metrics.moments import Moments
from driftkit.metrics.registry import Floor
from driftkit.metrics.survey import DIGEST_BYTES, PROPERTIES, Survey
from driftkit.runtime.environment import cache_folder
from driftkit.scoring.evaluation_record import ExtractorInfo, Info
from driftkit.scoring.extraction import Extractor
from driftkit.storage.files import digest_json, read_tensors, state_digest, write_tensors
from driftkit.storage.json_text import from_json
from driftkit.storage.records import Record
from driftkit.storage.run_folder import now

KIND = "statistics"
Figures = TypeVar("Figures", Floor, Baseline)


class ImagesInfo(Info):
    """The real images that statistics are of; count and size are None for statistics of another program."""

    spec: str
    digest: str
    count: int | None = Field(ge=2)
    image_size: int | None = Field(ge=1)
    classes: tuple[str, ...] = ()
    formats: Mapping[str, int] = Field(default_factory=dict)


class StatisticsRecord(Record):
    """What statistics follow from.

    Attributes:
        extractor: None for statistics of another program, where nobody knows it.
        device: kind of device that made the features, in float32.
        sha256: of the tensors, on disk.
    """

    kind: ClassVar[str] = KIND

    images: ImagesInfo
    extractor: ExtractorInfo | None
    device: str = "cpu"
    sha256: str = ""
    driftkit: str = __version__
    created: str = Field(default_factory=now)

    @property
    def is_foreign(self) -> bool:
        return self.extractor is None

    @property
    def key(self) -> str:
        """Equal for statistics that are made of the same images in the same way."""
        images = (self.images.digest, self.images.count, self.images.image_size)
        extractor = None if self.extractor is None else self.extractor.model_dump(mode="json", exclude={"lineage"})
        return digest_json([self.format_version, images, extractor, self.device])[:24]


class FiguresRecord(Record):
    """Numbers that follow from the cached statistics of that key alone; `name` says what else they depend on."""

    kind: ClassVar[str] = "figures"

    name: str
    statistics: str
    driftkit: str = __version__
    figures: dict[str, Any]


@dataclass(frozen=True)
class Statistics:
    """Features of a set of real images, what they follow from, and the file they were read from or written to."""

    stats: FeatureStats
    record: StatisticsRecord
    path: Path | None = None


def statistics_folder() -> Path:
    return cache_folder() / "statistics"


def cached_path(record: StatisticsRecord) -> Path:
    return statistics_folder() / f"{record.key}.safetensors"


def write_statistics(path: Path, stats: FeatureStats, record: StatisticsRecord) -> Statistics:
    """Write statistics whole or not at all; the JSON follows the file it describes."""
    tensors = {"mean": stats.moments.mean, "scatter": stats.moments.scatter, "rows": stats.rows,
               "indices": stats.indices, "predictions": stats.predictions, "labels": stats.labels}  # fmt: skip
    if (survey := stats.survey) is not None:
        tensors |= {"digests": survey.digests, "flat": survey.flat.to(torch.uint8), "steps": survey.steps,
                    "appearance": survey.appearance}  # fmt: skip
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    whole = record.model_copy(update={"sha256": state_digest(present)})
    write_tensors(path, present, header={"driftkit": KIND, "record": json.dumps(whole.document(), sort_keys=True)})
    whole.write(path.with_suffix(".json"))
    return Statistics(stats, whole, path)


def read_statistics(path: Path) -> Statistics:
    """Open statistics; ArtifactError where the file is absent, damaged, of another format, or holds something else."""
    tensors, header = read_tensors(path)
    if header.get("driftkit") != KIND:
        raise ArtifactError(f"{path} holds no statistics of driftkit")
    try:
        document = from_json(header.get("record", ""))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: its record is unreadable; remove the file, and the next score makes it again")
    record = StatisticsRecord.of(document, path)
    if record.images.count is None or record.extractor is None:
        raise ArtifactError(f"{path}: its record does not say what the statistics are of")
    if state_digest(tensors) != record.sha256:
        raise ArtifactError(f"{path}: the tensors are not those its record describes; make the statistics again")
    _require_shapes(tensors, record.images.count, path)
    moments = Moments.of_sums(record.images.count, tensors["mean"], tensors["scatter"])
    survey = None
    if "digests" in tensors:
        survey = Survey(tensors["digests"], tensors["flat"].bool(), tensors["steps"], tensors["appearance"])
    known = {name: tensors.get(name) for name in ("predictions", "labels")}
    return Statistics(FeatureStats(moments, tensors["rows"], tensors["indices"], survey, **known), record, path)


def _require_shapes(tensors: Mapping[str, torch.Tensor], count: int, path: Path) -> None:
    """Refuse tensors that do not fit one another: some are absent, or of other images or other features."""
    dim, rows = (len(t) if (t := tensors.get(name)) is not None and t.ndim else 0 for name in ("mean", "rows"))
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "mean": ((dim,), torch.float64),
        "scatter": ((dim, dim), torch.float64),
        "rows": ((rows, dim), torch.float32),
        "indices": ((rows,), torch.int64),
    }
    survey = {"digests": ((count, DIGEST_BYTES), torch.uint8), "flat": ((count,), torch.uint8),
              "steps": ((count, 2), torch.float64),
              "appearance": ((count, len(PROPERTIES)), torch.float32)}  # fmt: skip
    expected |= survey if not tensors.keys().isdisjoint(survey) else {}
    expected |= {name: ((rows,), torch.int64) for name in ("predictions", "labels") if name in tensors}
    for name, (shape, dtype) in expected.items():
        tensor = tensors.get(name)
        got = "no such tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        if tensor is None or (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            raise ArtifactError(f"{path}: {name}, expected {dtype} {list(shape)}, got {got}; make the statistics again")


def is_statistics_file(path: Path) -> bool:
    """Whether a file holds statistics: a safetensors file whose header says so, or an .npz of them and of no images."""
    if path.suffix == ".safetensors" and path.is_file():
        return read_tensors(path)[1].get("driftkit") == KIND
    names = array_names(path)
    return {"mu", "sigma"} <= names and names.isdisjoint(KEYS)


def open_statistics_file(path: Path, extractor: Extractor) -> Statistics:
    """Statistics that someone names as a reference; RefusedError for those of another extractor."""
    if path.suffix == ".npz":
        return read_foreign_statistics(path, extractor)
    statistics = read_statistics(path)
    made_by = statistics.record.extractor
    assert made_by is not None, "read_statistics refuses them"
    for key in ("name", "version", "weights_digest", "resize", "precision", "dim"):
        got, expected = getattr(made_by, key), getattr(extractor, key)
        if got != expected:
            raise RefusedError(
                f"{path} was made with another extractor: its {key} is {got!s:.60}, here it is {expected!s:.60}; "
                f"name the images instead, or take `extractor` {made_by.name}"
            )
    return statistics


def read_foreign_statistics(path: Path, extractor: Extractor) -> Statistics:
    """Mean and covariance as other programs write them: `mu` [D] and `sigma` [D, D] in an .npz.

    What made them is unknown: extractor, resizing, number of images. Only the Fréchet distance can be had of them.

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
        got = f"mu is {list(mean.shape)} and sigma {list(covariance.shape)}"
        raise ArtifactError(f"{path}: {got}, expected [D], [D, D]")
    if len(mean) != extractor.dim:
        raise RefusedError(f"{path} is of {len(mean)} features, {extractor.name} gives {extractor.dim}")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise RefusedError(f"{path}: mu or sigma is not finite")
    moments = Moments.of_sums(2, mean, covariance)  # as of two vectors, whose scatter is their covariance
    stats = FeatureStats(moments, torch.empty(0, len(mean)), torch.empty(0, dtype=torch.int64), None)
    digest = state_digest({"mu": mean, "sigma": covariance})
    images = ImagesInfo(spec=str(path), digest=digest, count=None, image_size=None)
    return Statistics(stats, StatisticsRecord(images=images, extractor=None), path)


def find_cached(record: StatisticsRecord, notify: Callable[[str], None]) -> Statistics | None:
    """Statistics of that record in the cache, or None. A broken file is reported and computed again."""
    path = cached_path(record)
    if not path.is_file():
        return None
    try:
        statistics = read_statistics(path)
        if statistics.record.key != record.key:
            raise ArtifactError(f"{path} holds statistics of something else")
    except ArtifactError as error:
        notify(f"warning: {error}; computed again")
        return None
    if not path.with_suffix(".json").exists():  # a kill came between the two files
        with contextlib.suppress(OSError, StorageError):
            statistics.record.write(path.with_suffix(".json"))
    return statistics


def cached_figures(
    statistics: Statistics, name: str, kind: type[Figures], compute: Callable[[], Figures | None], *, use: bool = True
) -> Figures | None:
    """A floor or baseline that follows from statistics in the cache, read or computed and kept.

    `name` says all that it depends on next to the statistics.
    """
    path = statistics.path
    if not use or path is None or path.parent != statistics_folder():
        return compute()
    file = path.with_name(f"{path.stem}.{name}.json")
    with contextlib.suppress(ArtifactError, ValidationError):  # absent, or not what was written: computed now
        kept = FiguresRecord.read(file)
        if (kept.name, kept.statistics, kept.driftkit) == (name, path.stem, __version__):
            return TypeAdapter(kind).validate_python(kept.figures)
    figures = compute()
    if figures is not None:
        with contextlib.suppress(OSError, StorageError):  # a cache that is full or read-only costs time, not the score
            FiguresRecord(name=name, statistics=path.stem, figures=asdict(figures)).write(file)
    return figures
