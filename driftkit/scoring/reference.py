"""Real images with their features: the reference, and the training images among which copies are searched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from driftkit.datasets.packs import ImagePack
from driftkit.errors import DriftkitError, StorageError
from driftkit.metrics.base import Baseline, FeatureStats, Metric
from driftkit.metrics.memorization import baseline_distances
from driftkit.metrics.registry import Floor, real_floor
from driftkit.runtime.progress import phase
from driftkit.runtime.ranks import together
from driftkit.scoring.evaluation_record import TrainingInfo
from driftkit.scoring.extraction import Extractor, extract
from driftkit.scoring.image_set import ImageSet, ScoringExecution, file_formats
from driftkit.scoring.sanity import require_enough, require_scorable
from driftkit.scoring.statistics_file import (
    ImagesInfo,
    Statistics,
    StatisticsRecord,
    cached_figures,
    cached_path,
    find_cached,
    is_statistics_file,
    open_statistics_file,
    write_statistics,
)
from driftkit.storage.run_folder import Run

SCORES_VERSION = 6  # raised when the same images would get other numbers


@dataclass(frozen=True)
class Reference:
    """Real images that others are scored against, with their features, which only rank 0 holds.

    Attributes:
        images: None where a file of statistics was named.
    """

    statistics: Statistics
    images: ImageSet | None

    @property
    def stats(self) -> FeatureStats:
        return self.statistics.stats

    @property
    def info(self) -> ImagesInfo:
        return self.statistics.record.images

    def floor(self, num_images: int, metrics: Sequence[Metric], execution: ScoringExecution) -> Floor | None:
        """The real-vs-real floor at that count, from the cache where it is there."""
        count = min(num_images, len(self.stats.rows) // 2)
        chosen = [metric for metric in metrics if metric.in_floor]

        names = "-".join(metric.name for metric in chosen)
        name = f"floor-{count}-{names}-scores{SCORES_VERSION}-{execution.device.type}"
        compute = partial(real_floor, self.stats.rows, num_images=count, metrics=chosen, device=execution.device)
        with phase("scoring real images against each other"):
            return cached_figures(self.statistics, name, Floor, compute, use=execution.cache)


@dataclass(frozen=True)
class TrainingImages:
    """The images among which copies are searched.

    Attributes:
        known: whether the run or the user says that it was trained on them.
    """

    reference: Reference
    is_reference: bool = False
    known: bool = True

    def baseline(self, held_out: Reference, execution: ScoringExecution) -> Baseline | None:
        """Distances of real images to the nearest of these: of others in the reference, or each without itself."""
        stats = held_out.stats if len(held_out.stats.rows) and not self.is_reference else None
        others = "itself" if stats is None else held_out.info.digest[:16]
        name = f"baseline-{others}-scores{SCORES_VERSION}-{execution.device.type}"
        compute = partial(baseline_distances, self.reference.stats, stats, device=execution.device)
        with phase("searching the nearest real images of real images"):
            return cached_figures(self.reference.statistics, name, Baseline, compute, use=execution.cache)

    def describe(self) -> TrainingInfo:
        info = self.reference.info
        assert info.count is not None
        among = "training images" if self.known else "reference images, since the training images are unknown"
        return TrainingInfo(among=among, spec=info.spec, digest=info.digest, count=info.count)


def open_reference(
    spec: str,
    extractor: Extractor,
    execution: ScoringExecution,
    *,
    image_size: int | None = None,
    check_size: Callable[[int | None], None] = lambda size: None,
) -> Reference:
    """The reference of that SPEC or file of statistics; see `evaluator.open_evaluator`.

    It is read before `check_size` is called, and no feature is computed before that returns.
    """
    from driftkit.datasets.sources import open_dataset

    if is_statistics_file(Path(spec)):
        with phase(f"reading the statistics {spec}"):
            statistics = together(lambda: open_statistics_file(Path(spec), extractor), execution.ranks)
        check_size(statistics.record.images.image_size)
        return Reference(_named(statistics, spec), None)
    if image_size is not None:
        check_size(image_size)  # before anything is imported
    pack = open_dataset(spec, image_size=image_size, ranks=execution.ranks)
    check_size(pack.image_size)
    return of_pack(pack, spec, "reference", extractor, execution)


def of_pack(pack: ImagePack, spec: str, role: str, extractor: Extractor, execution: ScoringExecution) -> Reference:
    """A pack with its features: from the cache, else computed, and kept there.

    Args:
        role: what messages call the images, for example "reference".

    Raises:
        RefusedError: the images are not scorable, or their features not finite.
    """
    require_enough(len(pack), f"{role} {spec}")
    ranks = execution.ranks
    images = ImageSet.of_pack(pack, spec, execution)
    record = StatisticsRecord(
        images=ImagesInfo(
            spec=spec, digest=pack.digest, count=len(pack), image_size=pack.image_size, classes=pack.classes,
            formats=file_formats(pack.card.source.spec),
        ),
        extractor=extractor.info,
        device=extractor.device.type,
    )  # fmt: skip
    with phase(f"reading the features of {role} {spec}"):
        cached = find_cached(record, execution.notify) if execution.cache and ranks.is_main else None
    if float(ranks.max(torch.tensor([float(cached is not None)]))):
        if ranks.is_main:
            execution.notify(f"{role} {spec}: features of {len(pack):,} images from {cached_path(record)}")
        statistics = cached or Statistics(FeatureStats.empty(extractor.dim), record)
        return Reference(_named(statistics, spec), images)
    stats = extract(extractor, images, execution, task=f"{role.partition(' ')[0]}, {extractor.name}")

    def keep() -> Statistics:
        if not ranks.is_main:
            return Statistics(stats, record)
        assert stats.survey is not None
        require_scorable(stats.survey, f"{role} {spec}")
        if execution.cache:
            try:
                with phase(f"writing the features of {role} {spec}"):
                    return write_statistics(cached_path(record), stats, record)
            except (OSError, SafetensorError, StorageError) as error:
                # A full or read-only disk costs the next call time, not this one its score.
                execution.notify(f"warning: features of {role} {spec} were not kept: {error}")
        return Statistics(stats, record)

    return Reference(together(keep, ranks), images)


def _named(statistics: Statistics, spec: str) -> Statistics:
    """The statistics under the name that was given now."""
    images = statistics.record.images.model_copy(update={"spec": spec})
    return Statistics(statistics.stats, statistics.record.model_copy(update={"images": images}), statistics.path)


def open_training(
    run: Run | None, named: str | None, reference: Reference, extractor: Extractor, execution: ScoringExecution
) -> TrainingImages | str:
    """The training images of a run, or those that are named; the reference where nobody knows.

    Where they cannot be had, a sentence why, and no error: the other scores do not need them.
    """
    from driftkit.datasets.sources import open_dataset

    spec, digest, same = named, None, None
    image_size, limit = reference.info.image_size, None
    if spec is None and run is not None:
        data = run.manifest().config.get("data", {})
        spec, digest, same = data.get("spec"), run.manifest().data_digest, run.manifest().image_digest
        image_size, limit = data.get("image_size"), data.get("limit")
    if spec is None or reference.info.digest in (digest, same):
        if reference.images is None:
            return "the reference is statistics alone: copies were not searched"
        return TrainingImages(reference, is_reference=True, known=spec is not None)
    unsearched = "copies of training images were not searched"
    try:
        pack = open_dataset(spec, image_size=image_size, limit=limit, ranks=execution.ranks, allow_download=False)
        width = pack.image_size
    except DriftkitError as error:
        return f"{unsearched}: {error}"
    if digest is not None and pack.digest != digest:
        return f"{unsearched}: {spec} now holds other images than the run was trained on"
    if width != reference.info.image_size:
        return f"{unsearched}: {spec} is {width} pixels wide, the generated images {reference.info.image_size}"
    if reference.info.digest in (pack.digest, pack.image_digest):
        images = ImageSet.of_pack(pack, spec, execution)
        return TrainingImages(Reference(reference.statistics, images), is_reference=True)
    return TrainingImages(of_pack(pack, spec, "training images", extractor, execution))
