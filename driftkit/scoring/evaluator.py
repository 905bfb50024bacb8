"""Scoring in eight stops: extractor, images of reference and target, features of both, sanity, metrics, record."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from driftkit import __version__
from driftkit.config.sampling_config import SamplingConfig
from driftkit.encoders.lineage import images_of, kinship, read_lineage, training_encoders_of
from driftkit.errors import RefusedError, UsageError
from driftkit.metrics.base import FeatureStats, Metric, MetricInputs
from driftkit.metrics.frechet import frechet_distance
from driftkit.metrics.memorization import NUM_PAIRS
from driftkit.metrics.registry import METRICS, compute_metrics
from driftkit.metrics.survey import compare_appearance
from driftkit.runtime.progress import phase
from driftkit.runtime.ranks import together
from driftkit.scoring.evaluation_record import (
    AppearanceInfo,
    EvaluationRecord,
    ReferenceInfo,
    ScoredRecord,
    default_path,
)
from driftkit.scoring.extraction import Extractor, extract
from driftkit.scoring.extractors import load_extractor
from driftkit.scoring.image_set import ImageSet, ScoringExecution, is_run, open_target, require_size, require_target
from driftkit.scoring.reference import SCORES_VERSION, Reference, TrainingImages, open_reference, open_training
from driftkit.scoring.sanity import (
    collapse_warning,
    compression,
    count_warnings,
    floor_warnings,
    foreign_warnings,
    require_scorable,
    survey_warnings,
)
from driftkit.scoring.statistics_file import write_statistics
from driftkit.storage.files import digest_json, sha256_file
from driftkit.storage.images import save_grid
from driftkit.storage.records import RunManifest
from driftkit.storage.run_folder import Run
from driftkit.training.conditions import EVERY_CLASS

PAIR_COLUMNS = 8
MAX_NAMED = 5  # classes in a warning
Scored = TypeVar("Scored", bound=ScoredRecord, covariant=True)


@dataclass(frozen=True)
class ScoringOptions:
    """What is computed, where it applies, and what is refused.

    Attributes:
        training: data SPEC of the training images; None takes the run's own, else the reference.
        allow_collapsed, allow_jpeg: warn instead of refusing images all alike, or JPEG against other formats.
    """

    metrics: tuple[Metric, ...] = tuple(METRICS.values())
    training: str | None = None
    allow_collapsed: bool = False
    allow_jpeg: bool = False

    def selection(self) -> list[str] | None:
        """Names of the metrics; None for all, with or without the search for copies, which has a setting of its own."""
        names = [metric.name for metric in self.metrics]
        others = (metric.name for metric in METRICS.values() if metric.needs != "training")
        return None if set(others) <= set(names) else names

    def without_memorization(self) -> "ScoringOptions":
        """The same without metrics that need training images."""
        return replace(self, metrics=tuple(metric for metric in self.metrics if metric.needs != "training"))


@dataclass(frozen=True)
class Evaluation(Generic[Scored]):
    """A record of scores and its file. Of several processes only the first has a record."""

    record: Scored | None
    path: Path


@dataclass(frozen=True)
class Target:
    """Images to score, what named them, how a run was to be sampled, and how long opening or sampling took."""

    images: ImageSet
    path: Path
    sampling: SamplingConfig
    seconds: float


@dataclass
class Evaluator:
    """An extractor with a reference: scores one target after another."""

    extractor: Extractor
    reference: Reference
    options: ScoringOptions = field(default_factory=ScoringOptions)
    execution: ScoringExecution = field(default_factory=ScoringExecution)
    _training: dict[str, TrainingImages | str] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.execution.ranks.is_main

    def score(self, target: Target, output: Path | None = None) -> Evaluation[EvaluationRecord]:
        """Score images and write the evaluation to `output`, else into the run's evaluations or next to the target.

        Raises:
            RefusedError: a number would mislead.
        """
        images, ranks = target.images, self.execution.ranks
        seconds = {"images": target.seconds}
        require_size(images.images.shape[-2:], self.reference.info.image_size)
        with timed(seconds, "features"):
            generated = extract(self.extractor, images, self.execution)
        with timed(seconds, "training images"):
            training = self._training_images(images.run)
        with timed(seconds, "scores"):
            record = together(lambda: self._evaluate(target, generated, training) if self.is_main else None, ranks)
        pairs = self._worst_pairs(images, training, record)
        if record is None:
            return Evaluation(None, target.path)
        path = output or default_path(target.path, images.run, record)
        update: dict[str, Any] = {"seconds": round(sum(seconds.values()), 3)}
        update["seconds_by_part"] = {name: round(value, 3) for name, value in seconds.items()}
        if is_run(target.path) and images.run is not None:
            update["identity"] = self.identity(images.run, len(images), target.sampling)
        if pairs is not None and record.training is not None:
            picture = path.with_suffix(".nearest.png")
            save_grid(picture, pairs, columns=PAIR_COLUMNS)
            update["training"] = record.training.model_copy(update={"picture": picture.name})
        record = record.model_copy(update=update)
        record.write(path)
        return Evaluation(record, path)

    def identity(self, run: Run, num_images: int, sampling: SamplingConfig) -> str:
        """Digest of everything that an evaluation of a run follows from: equal ones need not be made twice."""
        files = run.weights_paths(sampling.weights, sampling.step)
        return digest_json(
            {
                "scores": SCORES_VERSION,
                "driftkit": __version__,
                "sampler": [sampling.sampler, sampling.nfe],
                "conditions": [sampling.classes, sampling.guidance],
                "noise": [sampling.seed, sampling.precision or "float32", run.checkpoint(sampling.step).step],
                "weights": [run.kept_name(sampling.weights), *map(sha256_file, files)],
                "num_images": num_images,
                "extractor": self.extractor.info.model_dump(mode="json", exclude={"lineage"}),
                "reference": self.reference.info.digest,
                "metrics": [metric.name for metric in self.options.metrics],
                "training": self.options.training,
            }
        )

    def write_statistics(self, path: Path) -> None:
        """Write the reference's statistics where others may take them; UsageError for those of another program."""
        statistics = self.reference.statistics
        if statistics.record.is_foreign:
            raise UsageError(f"`write_statistics`: {self.reference.info.spec} was made by another program; copy it")
        if self.is_main:
            write_statistics(path, statistics.stats, statistics.record)

    def fid(self, images: torch.Tensor) -> float:
        """The Fréchet distance of uint8 images [N, 3, H, W] in this process alone; RefusedError for unscorable ones."""
        allow, real = self.options.allow_collapsed, self.reference.stats.moments
        alone = ScoringExecution(self.execution.batch_size, self.execution.device)
        generated = extract(self.extractor, ImageSet.of_tensor(images), alone)
        assert generated.survey is not None
        require_scorable(generated.survey, "samples", allow_collapsed=allow)
        collapse_warning(generated.moments, real, self.extractor.name, allow_collapsed=allow)
        return frechet_distance(generated.moments, real, device=self.execution.device)

    def _evaluate(
        self, target: Target, generated: FeatureStats, training: TrainingImages | str | None
    ) -> EvaluationRecord:
        """Sanity, metrics and record."""
        images, real, info = target.images, self.reference.stats, self.reference.info
        count = len(generated)
        assert generated.survey is not None
        allow_collapsed, allow_jpeg = self.options.allow_collapsed, self.options.allow_jpeg
        warnings = [*images.notes, *require_scorable(generated.survey, images.name, allow_collapsed=allow_collapsed)]
        warnings += survey_warnings(generated.survey)
        formats = {"generated_formats": images.formats, "reference_formats": info.formats}
        marks, notes = compression(generated.survey, real.survey, **formats, allow_jpeg=allow_jpeg)
        warnings += notes
        if images.digest == info.digest:
            warnings.append(
                "the target and the reference are the same images: this score says nothing about a generator"
            )
        metrics, is_foreign = self.options.metrics, self.reference.statistics.record.is_foreign
        if is_foreign:
            skipped = [metric for metric in metrics if metric.needs in ("rows", "training")]
            metrics = tuple(metric for metric in metrics if metric not in skipped)
            warnings += foreign_warnings(info.spec, [metric.label for metric in skipped])
        run = images.run
        kin = None if run is None else kinship(training_encoders_of(run.manifest()), self.extractor.lineage)
        if kin and not kin.counts:
            warnings.append(f"{self.extractor.name} is no independent evaluator of this run: {kin.reason}")
        warnings += collapse_warning(
            generated.moments, real.moments, self.extractor.name, allow_collapsed=allow_collapsed
        )
        known = training if isinstance(training, TrainingImages) else None
        classes, labelled = shared_classes(images.classes, generated, info.classes)
        warnings += class_warnings(images, info.classes, shared=bool(classes))
        inputs = MetricInputs(
            labelled,
            real,
            self.execution.device,
            inception_logits=self.extractor.inception_logits,
            classes=classes,
            predicted_classes=self.extractor.classes,
            training=known.reference.stats if known else None,
            baseline=known.baseline(self.reference, self.execution) if known else None,
        )
        scores = compute_metrics(inputs, metrics)
        floor = self.reference.floor(count, metrics, self.execution)
        warnings += [*count_warnings(count, info.count, dim=self.extractor.dim), *scores.warnings]
        warnings += [] if is_foreign else floor_warnings(floor, scores.values["fid"], count)
        warnings += [training] if isinstance(training, str) else []
        memorization = scores.details.get("memorization")
        if run is not None and known is not None and memorization is not None:
            warnings += unsearched_origin(run.manifest(), known.reference.info.digest)
        appearance = None
        if real.survey is not None:  # statistics of another program hold no images
            compared = compare_appearance(generated.survey.appearance, real.survey.appearance)
            appearance = {name: AppearanceInfo(**values) for name, values in compared.items()}
        return EvaluationRecord(
            name=f"fid@{count}",
            num_images=count,
            target=str(target.path),
            run=run.name if run else None,
            sampling=images.sampling,
            kinship=kin,
            floor=floor,
            extractor=self.extractor.info,
            reference=ReferenceInfo(
                **info.model_dump(), is_training_data=run is not None and trained_on(run.manifest(), info.digest)
            ),
            metrics=scores.values,
            selection=self.options.selection(),
            metric_settings=scores.settings,
            real_metrics=scores.real,
            appearance=appearance,
            compression=marks,
            per_class=scores.details.get("per_class"),
            memorization=memorization,
            training=known.describe() if memorization and known else None,
            warnings=warnings,
            device=str(self.execution.device),
            batch_size=self.execution.batch_size,
            world_size=self.execution.ranks.world_size,
        )

    def _training_images(self, run: Run | None) -> TrainingImages | str | None:
        """Opened once for all targets that were trained on the same ones."""
        searched = any(metric.needs == "training" for metric in self.options.metrics)
        if not searched or self.reference.statistics.record.is_foreign:
            return None
        key = str(run.path) if run is not None else ""
        if key not in self._training:
            self._training[key] = open_training(
                run, self.options.training, self.reference, self.extractor, self.execution
            )
        return self._training[key]

    def _worst_pairs(
        self, generated: ImageSet, training: TrainingImages | str | None, record: EvaluationRecord | None
    ) -> torch.Tensor | None:
        """Rows of generated images, each above the nearest training images, which come from whichever rank has them."""
        if not isinstance(training, TrainingImages) or training.reference.images is None:
            return None
        worst = record.memorization.worst if record is not None and record.memorization is not None else ()
        ranks = self.execution.ranks
        queries = generated.gather([pair.generated for pair in worst], NUM_PAIRS, ranks)
        nearest = training.reference.images.gather([pair.training for pair in worst], NUM_PAIRS, ranks)
        rows = []
        for first in range(0, len(queries), PAIR_COLUMNS):
            for images in (queries[first : first + PAIR_COLUMNS], nearest[first : first + PAIR_COLUMNS]):
                missing = PAIR_COLUMNS - len(images)
                rows += [images, images.new_full((missing, *images.shape[1:]), 255)] if missing else [images]
        return torch.cat(rows) if rows else None


def class_warnings(images: ImageSet, reference: Sequence[str], *, shared: bool) -> list[str]:
    """What the classes of generated images make of scores against a reference of these classes.

    Args:
        shared: whether the reference has the classes of all generated images.
    """
    asked = (images.sampling.asked_classes if images.sampling else None) or (EVERY_CLASS,)
    warnings = []
    if asked != (EVERY_CLASS,) and not (reference and set(reference) <= set(asked)):
        classes = f"{len(reference):,} classes" if reference else "images whose classes are not known"
        named = ", ".join([*asked[:MAX_NAMED], *(["..."] if len(asked) > MAX_NAMED else [])])
        warnings.append(f"only {named} were sampled, against a reference of {classes}; `classes` all samples the rest")
    if images.classes and reference and not shared:
        warnings.append("class agreement was not measured: the reference lacks classes of the generated images")
    return warnings


def trained_on(manifest: RunManifest, digest: str) -> bool:
    """Whether images of this digest trained a run, or the weights that it was initialised from."""
    return digest in (manifest.data_digest, manifest.image_digest) or images_of(digest) in (
        _data_of_origin(manifest) or ()
    )


def unsearched_origin(manifest: RunManifest, searched: str) -> list[str]:
    """A warning where other images trained the weights that a run was initialised from, which nobody searched."""
    if manifest.initialised_from is None:
        return []
    before = _data_of_origin(manifest)
    if searched == manifest.data_digest:
        searched = manifest.image_digest or searched
    if before is not None and set(before) <= {images_of(searched)}:
        return []
    which = "unknown images" if before is None else ", ".join(name for name in before if name != images_of(searched))
    return [
        "copies were not searched among the images that trained the weights it was initialised from "
        f"({manifest.initialised_from.path}: {which}); name them with `training`"
    ]


def _data_of_origin(manifest: RunManifest) -> tuple[str, ...] | None:
    """Names of the images that trained the weights a run was initialised from; None where nobody knows them."""
    before = None if manifest.initialised_from is None else read_lineage(manifest.initialised_from.lineage)
    return None if before is None else before.data


def shared_classes(
    own: Sequence[str], generated: FeatureStats, reference: Sequence[str]
) -> tuple[Sequence[str], FeatureStats]:
    """The reference's classes, with the labels of generated images as their numbers in it.

    None where images have a label that the reference lacks: a class that no image is of may be absent there.

    Args:
        own: names of the classes that generated images are labelled with; empty: they are not labelled.
    """
    if not own or tuple(own) == tuple(reference):
        return reference, generated
    if generated.labels is None or not bool((generated.labels >= 0).all()):
        return (), generated
    used = {own[label] for label in generated.labels.unique().tolist()}
    if not used <= set(reference):
        return (), generated
    numbers = torch.tensor([reference.index(name) if name in used else -1 for name in own])
    return reference, replace(generated, labels=numbers[generated.labels])


def open_evaluator(
    reference: str,
    *,
    extractor: str | Extractor = "inception",
    extractor_weights: Path | None = None,
    options: ScoringOptions | None = None,
    execution: ScoringExecution | None = None,
    image_size: int | None = None,
    check_size: Callable[[int | None], None] = lambda size: None,
) -> Evaluator:
    """Load the extractor, a name that `load_extractor` knows or one, and the features of the reference.

    Args:
        reference: data SPEC of the real images, or a file of statistics.
        image_size: side in pixels to which the reference is resized; None leaves it.
        check_size: called with the side in pixels of the reference before that is read; refuses it by raising.

    Raises:
        UsageError: an unknown name.
        ArtifactError: reference or weights are absent.
        RefusedError: the reference is not scorable, or of another size or extractor.
    """
    execution = execution or ScoringExecution()
    # The extractor comes first: its weights are what is missing most often, and sampling takes long.
    if not isinstance(extractor, Extractor):
        # Rank 0 downloads before the others look for the file.
        with execution.ranks.first_alone(), phase(f"loading {extractor}"):
            extractor = load_extractor(extractor, weights=extractor_weights, device=execution.device)
    opened = open_reference(reference, extractor, execution, image_size=image_size, check_size=check_size)
    return Evaluator(extractor, opened, options or ScoringOptions(), execution)


def open_evaluators(
    reference: str, extractors: Sequence[str], *, options: ScoringOptions, **settings: Any
) -> list[Evaluator]:
    """An evaluator of each extractor; the other arguments are those of `open_evaluator`.

    Copies are the same for all: they are searched in the features of the first extractor alone.
    """
    chosen = [options, *[options.without_memorization()] * (len(extractors) - 1)]
    pairs = zip(extractors, chosen, strict=True)
    return [open_evaluator(reference, extractor=name, options=each, **settings) for name, each in pairs]


def evaluate(
    evaluators: Sequence[Evaluator],
    path: Path,
    *,
    num_images: int | None = None,
    sampling: SamplingConfig | None = None,
    part: tuple[int, int] = (0, 1),
    output: Path | None = None,
) -> list[Evaluation[EvaluationRecord]]:
    """Open or sample the images of a target once, as `open_target`, and score them by each evaluator.

    Args:
        evaluators: of one reference and execution, at least one.
        output: where to write; with several evaluators each adds its name.

    Raises:
        UsageError: settings that do not fit the target.
        ArtifactError: the target is absent.
        RefusedError: an evaluator's number would mislead; those of the others were written.
    """
    target = open_once(evaluators, path, num_images=num_images, sampling=sampling, part=part)
    evaluations, refused = [], []
    for evaluator in evaluators:
        try:
            evaluations.append(evaluator.score(target, output_of(evaluator, output, several=len(evaluators) > 1)))
        except RefusedError as error:
            refused.append(error)
    if refused:
        raise refused[0]
    return evaluations


def open_once(
    evaluators: Sequence[Evaluator],
    path: Path,
    *,
    num_images: int | None = None,
    sampling: SamplingConfig | None = None,
    part: tuple[int, int] = (0, 1),
) -> Target:
    """The images that all of the evaluators are to score; the arguments are those of `evaluate`."""
    first, sampling = evaluators[0], sampling or SamplingConfig()
    execution = first.execution
    require_target(path, sampling, reference_size=first.reference.info.image_size)
    started = time.monotonic()
    images = together(
        lambda: open_target(path, sampling, execution, num_images=num_images, part=part),
        execution.ranks,
    )
    return Target(images, path, sampling, time.monotonic() - started)


def output_of(evaluator: Evaluator, output: Path | None, *, several: bool) -> Path | None:
    """What was named, with the evaluator's name in it where there are several."""
    if output is None or not several:
        return output
    return output.with_name(f"{output.stem}-{evaluator.extractor.info.label}.json")


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of the block to `seconds[name]`."""
    started = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
