"""Scoring as a command: open extractors and reference, then score a target once, repeatedly or over its checkpoints."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from driftkit.config.places import EXPANDED
from driftkit.config.sampling_config import SAMPLING, SamplingConfig
from driftkit.config.settings import DEVICE_HELP, DISTINCT, ONE_OR_MORE, Device, Option
from driftkit.errors import UsageError
from driftkit.runtime.progress import Report, no_report

if TYPE_CHECKING:  # torch is loaded when images are scored, not for --help
    from driftkit.scoring.evaluation_record import CurveRecord, EvaluationRecord, RepeatsRecord
    from driftkit.scoring.evaluator import Evaluation

SCORING, FILES = "Scores", "Where it goes"


class FidConfig(SamplingConfig):
    """Settings of `driftkit fid`."""

    reference: Annotated[str, EXPANDED, Option(SCORING, ("--reference", "-r"))] = Field(
        description="real images, named as driftkit data --help lists, or a file of statistics"
    )
    extractor: Annotated[tuple[str, ...], EXPANDED, ONE_OR_MORE, DISTINCT, Option(SCORING)] = Field(
        ("inception",),
        min_length=1,
        description="feature extractor: inception, dinov2, clip, efficientnet-lite2 (installed), pixels, timm:MODEL or "
        "encoder:RUN of a MAE or classifier run; repeat it for several in one pass over the images",
    )
    extractor_weights: Annotated[Path | None, EXPANDED, Option(SCORING, default="cache, then download")] = Field(
        None, description="local weights file of the extractor"
    )
    metrics: Annotated[tuple[str, ...] | None, Option(SCORING, default="all that apply")] = Field(
        None,
        description="some of kid, per_class, mmd, manifold, inception_score and memorization, separated by commas; fid "
        "is always computed",
    )
    num_images: Annotated[int | None, Option(SCORING, ("--num-images", "-n"), default="50000 of a run, else all")] = (
        Field(None, ge=1, description="number of images to score; fewer than 10 are refused")
    )
    image_size: Annotated[int | None, Option(SCORING, default="as a run's training images, else as it is")] = Field(
        None, ge=8, le=4096, description="side in pixels to which the reference is resized"
    )
    allow_collapsed: Annotated[bool, Option(SCORING)] = Field(
        False, description="score images that are all alike (an untrained network) instead of refusing"
    )
    allow_jpeg: Annotated[bool, Option(SCORING)] = Field(
        False, description="allow JPEG samples against a lossless reference"
    )
    training: Annotated[str | None, EXPANDED, Option(SCORING, default="the run's own, else the reference")] = Field(
        None, description="training set for the memorization check"
    )
    memorization: Annotated[bool, Option(SCORING)] = Field(
        True, description="search for copies of training images, in the features of the first extractor"
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Option(SAMPLING)] = Field(
        "float32", description="number format of a run's network; auto: bfloat16 on GPUs that compute in it"
    )
    batch_size: Annotated[int | None, Option(SAMPLING, ("--batch-size", "-b"), default="64; 256 on a GPU")] = Field(
        None, ge=1, description="images at a time; changes speed, not scores"
    )
    repeats: Annotated[int | None, Option(SAMPLING, default="score once")] = Field(
        None,
        ge=2,
        description="score so many seeds of a run, or disjoint parts of given images: mean, standard deviation and all "
        "values",
    )
    all_checkpoints: Annotated[bool, Option(SAMPLING)] = Field(
        False, description="score every kept checkpoint of the run: a curve of score against step"
    )
    device: Annotated[Device, Option(SAMPLING)] = Field("auto", description=DEVICE_HELP)
    cache: Annotated[bool, Option(FILES)] = Field(
        True, description="keep features of real images in DRIFTKIT_CACHE, and use those that are there"
    )
    write_statistics: Annotated[Path | None, EXPANDED, Option(FILES, default="none")] = Field(
        None, description="also write the reference's statistics to this file, which --reference takes"
    )
    output: Annotated[Path | None, EXPANDED, Option(FILES, ("--output", "-o"), default="in RUN/evaluations")] = Field(
        None, description="JSON file"
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        parts = (value,) if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            return value
        return tuple(name.strip() for part in parts for name in str(part).split(",") if name.strip())


def fid(
    target: Path,
    config: FidConfig,
    *,
    report: Report = no_report,
    notify: Callable[[str], None] = lambda line: None,
) -> "list[Evaluation[EvaluationRecord | RepeatsRecord | CurveRecord]]":
    """Score a run, a samples file or any images against real ones by each extractor, and write the records.

    Returns:
        One result of each extractor; nothing on ranks other than the first, which alone reports and notifies.

    Raises:
        UsageError: settings that do not fit each other or the target.
        ArtifactError: target, reference or weights are absent or damaged.
        RefusedError: a number would mislead: too few, identical or flat images, values or features that are not
            finite or hardly vary, another size or file format than the reference.
    """
    from driftkit.metrics.registry import select_metrics
    from driftkit.runtime.device import choose_threads, resolve_device
    from driftkit.runtime.ranks import Ranks, local_rank
    from driftkit.scoring.evaluator import ScoringOptions, evaluate, open_evaluators, output_of
    from driftkit.scoring.image_set import ScoringExecution, default_batch_size, is_run, read_target, require_target
    from driftkit.scoring.series import evaluate_checkpoints, evaluate_repeats
    from driftkit.storage.run_folder import Run
    from driftkit.storage.writable import require_replaceable

    _require_consistent(target, config)
    metrics = select_metrics(config.metrics)
    options = ScoringOptions(metrics, config.training, config.allow_collapsed, config.allow_jpeg)
    options = options if config.memorization else options.without_memorization()
    device = resolve_device(config.device, local_rank=local_rank())
    # Features travel between processes as CPU tensors, whatever device makes them.
    ranks = Ranks.start(device_type="cpu")

    @functools.cache
    def check_target(reference_size: int | None) -> None:
        """Called when the reference was read, and before any feature is computed."""
        require_target(target, config, reference_size=reference_size)
        read_target(target, reference_size=reference_size)
        choose_threads(device)

    try:
        execution = ScoringExecution(config.batch_size or default_batch_size(device), device, ranks, config.cache)
        if ranks.is_main:
            execution = replace(execution, report=report, notify=notify)
        evaluators = open_evaluators(
            config.reference,
            config.extractor,
            options=options,
            extractor_weights=config.extractor_weights,
            execution=execution,
            image_size=config.image_size or (Run.open(target).resized_to if is_run(target) else None),
            check_size=check_target,
        )
        for evaluator in evaluators:  # each of several extractors has a file of its own, whose name is known only now
            file = output_of(evaluator, config.output, several=len(evaluators) > 1)
            if file is not None:
                require_replaceable(file, "`output`", "evaluation")
        if config.write_statistics is not None:
            evaluators[0].write_statistics(config.write_statistics)
        results: Sequence[Evaluation[EvaluationRecord | RepeatsRecord | CurveRecord]]
        if config.all_checkpoints:
            results = evaluate_checkpoints(evaluators, target, num_images=config.num_images, sampling=config)
        elif config.repeats is not None:
            results = evaluate_repeats(
                evaluators, target, config.repeats, num_images=config.num_images, sampling=config, output=config.output
            )
        else:
            results = evaluate(evaluators, target, num_images=config.num_images, sampling=config, output=config.output)
        return [result for result in results if result.record is not None]
    finally:
        ranks.stop()


def _require_consistent(target: Path, config: FidConfig) -> None:
    """Refuse before the hours of scoring what needs neither images nor weights, or results that cannot be written."""
    from driftkit.datasets.sources import resolve
    from driftkit.scoring.image_set import is_run, is_there, require_target
    from driftkit.storage.writable import require_replaceable, require_writable

    if is_run(target):  # what it cannot do is said before weights are asked for that it does not need
        require_target(target, config, reference_size=None)
    if len(config.extractor) > 1 and (config.extractor_weights or config.write_statistics):
        key = "extractor_weights" if config.extractor_weights else "write_statistics"
        raise UsageError(f"`{key}`: belongs to one extractor, got {', '.join(config.extractor)}; give one `extractor`")
    if config.output is not None and config.output.suffix != ".json":
        raise UsageError(f"`output` {config.output}: expected a name that ends in .json")
    if config.write_statistics is not None and config.write_statistics.suffix != ".safetensors":
        raise UsageError(f"`write_statistics` {config.write_statistics}: expected a name that ends in .safetensors")
    if config.training is not None and config.memorization:
        resolve(config.training, allow_download=False)
    if config.all_checkpoints and (config.repeats is not None or config.output is not None):
        key = "repeats" if config.repeats is not None else "output"
        raise UsageError(f"`all_checkpoints` and `{key}` exclude each other: remove one")
    if config.all_checkpoints and is_there(target) and not is_run(target):
        raise UsageError(f"`all_checkpoints`: {target} is no run")
    default = target / "evaluations" / "score.json" if is_run(target) else target.parent / "score.json"
    if is_there(target):
        require_writable(config.output or default, "`output`")
    if config.output is not None:
        require_replaceable(config.output, "`output`", "evaluation")
    if config.write_statistics is not None:
        require_writable(config.write_statistics, "`write_statistics`")
        require_replaceable(config.write_statistics, "`write_statistics`", "statistics")
