"""Scoring in eight stops: extractor, images of reference and target, features of both, sanity, metrics, record."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from driftkit import __version__
from driftkit.config.sampling_config import SamplingConfig
from driftkit.encoders.lineage import Kinship, kinship, training_encoders_of
from driftkit.errors import RefusedError, UsageError
from driftkit.metrics.appearance import compare_appearance
from driftkit.metrics.base import FeatureStats, Metric, MetricInputs
from driftkit.metrics.frechet import frechet_distance
from driftkit.metrics.memorization import NUM_PAIRS
from driftkit.metrics.registry import METRICS, Scores, compute_metrics
from driftkit.runtime.ranks import together
from driftkit.scoring.evaluation_record import (
    AppearanceInfo,
    EvaluationRecord,
    ReferenceInfo,
    default_path,
)
from driftkit.scoring.extraction import Extractor, extract
from driftkit.scoring.extractors import load_extractor
from driftkit.scoring.image_set import (
    ImageSet,
    ScoringExecution,
    is_run,
    open_target,
    require_same_size,
    require_target,
)
from driftkit.scoring.reference import (
    SCORES_VERSION,
    Reference,
    TrainingImages,
    open_reference,
    open_training,
    training_digest,
)
from driftkit.scoring.sanity import check_images, collapse_warning, count_warnings, floor_warnings, require_scorable
from driftkit.scoring.statistics_file import write_statistics
from driftkit.storage.files import digest_json, sha256_file
from driftkit.storage.images import save_grid
from driftkit.storage.run_folder import Run

PAIR_COLUMNS = 8


@dataclass(frozen=True)
class ScoringOptions:
    """What is computed and what is refused.

    Attributes:
        metrics: which, where they apply.
        training: data SPEC of the training images; None takes the run's own, else the reference.
        allow_collapsed: score images that are all alike, with a warning, instead of refusing.
        allow_jpeg: score images stored as JPEG against others, with a warning, instead of refusing.
    """

    metrics: tuple[Metric, ...] = tuple(METRICS.values())
    training: str | None = None
    allow_collapsed: bool = False
    allow_jpeg: bool = False

    @property
    def memorization(self) -> bool:
        """Whether copies of training images are searched."""
        return any(metric.needs == "training" for metric in self.metrics)

    def without_memorization(self) -> "ScoringOptions":
        """The same without metrics that need training images."""
        metrics = tuple(metric for metric in self.metrics if metric.needs != "training")
        return ScoringOptions(metrics, self.training, self.allow_collapsed, self.allow_jpeg)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation and the file it was written to. Of several processes only the first has a record."""

    record: EvaluationRecord | None
    path: Path


@dataclass(frozen=True)
class Target:
    """Images to score, the path that named them, and how long opening or sampling them took."""

    images: ImageSet
    path: Path
    sampling: SamplingConfig
    seconds: float


@dataclass
class Evaluator:
    """An extractor with a reference: scores one target after another.

    Attributes:
        image_size: side in pixels to which images of files are resized; None leaves them.
    """

    extractor: Extractor
    reference: Reference
    options: ScoringOptions = field(default_factory=ScoringOptions)
    execution: ScoringExecution = field(default_factory=ScoringExecution)
    image_size: int | None = None
    _training: dict[str, TrainingImages | str] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.execution.ranks.is_main

    def score(self, target: Target, output: Path | None = None) -> Evaluation:
        """Score images that were opened, and write the evaluation.

        Args:
            output: where to write; None puts it into the run's evaluations, else next to the target.

        Raises:
            RefusedError: a number would mislead.
        """
        images, ranks = target.images, self.execution.ranks
        seconds = {"images": target.seconds}
        require_same_size(images, self.reference.info.image_size)
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
        if pairs is not None and record.training is not None:
            picture = path.with_suffix(".nearest.png")
            save_grid(picture, pairs, columns=PAIR_COLUMNS)
            update = {"training": record.training.model_copy(update={"picture": picture.name})}
            record = record.model_copy(update=update)
        if is_run(target.path) and images.run is not None:
            identity = self.identity(images.run, len(images), target.sampling)
            record = record.model_copy(update={"identity": identity})
        parts = {name: round(value, 3) for name, value in seconds.items()}
        record = record.model_copy(update={"seconds_by_part": parts, "seconds": round(sum(seconds.values()), 3)})
        record.write(path)
        return Evaluation(record, path)

    def identity(self, run: Run, num_images: int, sampling: SamplingConfig) -> str:
        """Digest of everything that an evaluation of a run follows from: equal ones need not be made twice."""
        checkpoint = run.checkpoint(sampling.step)
        return digest_json(
            {
                "scores": SCORES_VERSION,
                "driftkit": __version__,
                "sampler": [sampling.sampler, sampling.nfe, sampling.sampler_options],
                "noise": [sampling.seed, sampling.precision or "float32", checkpoint.step],
                "weights": [sampling.weights, sha256_file(checkpoint.path / f"{sampling.weights}.safetensors")],
                "num_images": num_images,
                "extractor": self.extractor.info.model_dump(mode="json", exclude={"lineage"}),
                "reference": self.reference.info.digest,
                "metrics": [metric.name for metric in self.options.metrics],
                "training": self.options.training,
            }
        )

    def write_statistics(self, path: Path) -> None:
        """Write the reference's statistics where they may be given to others.

        Raises:
            UsageError: they were made by another program.
        """
        statistics = self.reference.statistics
        if statistics.record.is_foreign:
            raise UsageError(f"`write_statistics`: {self.reference.info.spec} was made by another program; copy it")
        if self.is_main:
            write_statistics(path, statistics.stats, statistics.record)

    def fid(self, images: torch.Tensor) -> float:
        """The Fréchet distance of uint8 images [N, 3, H, W], in this process alone; nothing is written.

        Raises:
            RefusedError: they are not scorable.
        """
        allow, real = self.options.allow_collapsed, self.reference.stats.moments
        alone = ScoringExecution(self.execution.batch_size, self.execution.device)
        generated = extract(self.extractor, ImageSet.of_tensor(images), alone)
        assert generated.survey is not None
        require_scorable(generated.survey, "samples", allow_collapsed=allow)
        collapse_warning(generated.moments, real, allow_collapsed=allow)
        return frechet_distance(generated.moments, real, device=self.execution.device)

    def kinship(self, run: Run | None) -> Kinship | None:
        """How near the extractor is to the run's training encoder; None without a run."""
        return None if run is None else kinship(training_encoders_of(run.manifest()), self.extractor.lineage)

    def _evaluate(
        self, target: Target, generated: FeatureStats, training: TrainingImages | str | None
    ) -> EvaluationRecord:
        """Sanity, metrics and record."""
        images, real, info = target.images, self.reference.stats, self.reference.info
        count, device = len(generated), self.execution.device
        assert generated.survey is not None
        marks, warnings = check_images(
            images, generated.survey, info, real.survey,
            allow_collapsed=self.options.allow_collapsed, allow_jpeg=self.options.allow_jpeg,
        )  # fmt: skip
        if self.reference.statistics.record.is_foreign:
            warnings.append("statistics of another program: extractor, number of images and resizing are unknown")
        kin = self.kinship(images.run)
        if kin and not kin.counts:
            warnings.append(f"{self.extractor.name} is no independent evaluator of this run: {kin.reason}")
        warnings += collapse_warning(generated.moments, real.moments, allow_collapsed=self.options.allow_collapsed)
        scores = self._metrics(images, generated, training)
        floor = self.reference.floor(count, self.options.metrics, self.execution)
        warnings += count_warnings(count, info.count, dim=self.extractor.dim)
        warnings += [*scores.warnings, *floor_warnings(floor, scores.values["fid"], count)]
        if isinstance(training, str):
            warnings.append(training)
        memorization = scores.details.get("memorization")
        return EvaluationRecord(
            name=f"fid@{count}",
            num_images=count,
            target=str(target.path),
            run=images.run.name if images.run else None,
            sampling=images.sampling,
            kinship=kin,
            floor=floor,
            extractor=self.extractor.info,
            reference=ReferenceInfo(
                spec=info.spec,
                digest=info.digest,
                count=info.count,
                image_size=info.image_size,
                is_training_data=training_digest(images.run) == info.digest,
            ),
            metrics=scores.values,
            metric_settings=scores.settings,
            real_metrics=scores.real,
            appearance=_appearance(generated, real),
            compression=marks,
            per_class=scores.details.get("per_class"),
            memorization=memorization,
            training=training.describe() if memorization and isinstance(training, TrainingImages) else None,
            warnings=warnings,
            device=str(device),
            batch_size=self.execution.batch_size,
            world_size=self.execution.ranks.world_size,
        )

    def _metrics(self, images: ImageSet, generated: FeatureStats, training: TrainingImages | str | None) -> Scores:
        classes = self.reference.info.classes
        known = training if isinstance(training, TrainingImages) else None
        inputs = MetricInputs(
            generated,
            self.reference.stats,
            self.execution.device,
            inception_logits=self.extractor.inception_logits,
            classes=classes if not images.classes or images.classes == classes else (),
            training=known.reference.stats if known else None,
            baseline=known.baseline(self.reference, self.execution) if known else None,
        )
        return compute_metrics(inputs, self.options.metrics)

    def _training_images(self, run: Run | None) -> TrainingImages | str | None:
        """Opened once for all targets that were trained on the same ones."""
        if not self.options.memorization or self.reference.statistics.record.is_foreign:
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


def _appearance(generated: FeatureStats, real: FeatureStats) -> dict[str, AppearanceInfo] | None:
    """Properties of the images themselves; None against statistics of another program, which hold no images."""
    if generated.survey is None or real.survey is None:
        return None
    compared = compare_appearance(generated.survey.appearance, real.survey.appearance)
    return {name: AppearanceInfo(**values) for name, values in compared.items()}


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
    """Load the extractor, and the features of the reference, or the images they are made of.

    Args:
        reference: data SPEC of the real images, or a file of statistics.
        extractor: a name that `load_extractor` knows, or one.
        extractor_weights: local weights of it.
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
        with execution.ranks.first_alone():  # rank 0 downloads before the others look for the file
            extractor = load_extractor(extractor, weights=extractor_weights, device=execution.device)
    opened = open_reference(reference, extractor, execution, image_size=image_size, check_size=check_size)
    return Evaluator(extractor, opened, options or ScoringOptions(), execution, image_size)


def evaluate(
    evaluators: Sequence[Evaluator],
    path: Path,
    *,
    num_images: int | None = None,
    sampling: SamplingConfig | None = None,
    part: tuple[int, int] = (0, 1),
    output: Path | None = None,
) -> list[Evaluation]:
    """Open or sample the images of a target once, and score them by each evaluator.

    Args:
        evaluators: of one reference and execution, at least one.
        path: a run (which is sampled), a samples file, or a folder, archive or pack of images.
        num_images: how many; None takes 50,000 of a run and all of anything else.
        sampling: how to sample a run.
        part: (k, K): the k-th of K disjoint parts of images that exist already.
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
        lambda: open_target(path, sampling, execution, num_images=num_images, image_size=first.image_size, part=part),
        execution.ranks,
    )
    return Target(images, path, sampling, time.monotonic() - started)


def output_of(evaluator: Evaluator, output: Path | None, *, several: bool) -> Path | None:
    """Where an evaluator writes: what was named, with the evaluator's name in it where there are several."""
    if output is None or not several:
        return output
    return output.with_name(f"{output.stem}-{evaluator.extractor.info.label}.json")


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of the block to `seconds[name]`."""
    started = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
