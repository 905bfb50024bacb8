"""Several evaluations of one target: over disjoint seeds, and over all checkpoints of a run."""

import contextlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from driftkit.config.sampling_config import SamplingConfig
from driftkit.errors import ArtifactError, NotFoundError, RefusedError, UsageError
from driftkit.metrics.registry import REQUIRED
from driftkit.runtime.drawing import INK, PALETTES, draw_figure, legend, plain_label, scale_y
from driftkit.scoring.evaluation_record import (
    CurvePoint,
    CurveRecord,
    EvaluationRecord,
    RepeatsRecord,
    Spread,
    file_label,
)
from driftkit.scoring.evaluator import Evaluation, Evaluator, Target, evaluate, open_once, output_of
from driftkit.scoring.image_set import DEFAULT_NUM_IMAGES, is_run
from driftkit.storage.files import write_bytes
from driftkit.storage.run_folder import Run

FIGURE_MARGIN = 1.15


def evaluate_repeats(
    evaluators: Sequence[Evaluator],
    target: Path,
    repeats: int,
    *,
    num_images: int | None = None,
    sampling: SamplingConfig | None = None,
    output: Path | None = None,
) -> list[Evaluation[RepeatsRecord]]:
    """Score a run with `repeats` seeds from its seed on, or as many disjoint parts of images that exist already.

    Every score is written as an evaluation of its own; the summary of each evaluator has mean, standard deviation and
    all values. UsageError: fewer than two repeats, or too few images for disjoint parts.
    """
    if repeats < 2:
        raise UsageError(f"`repeats` {repeats}: expected at least 2")
    sampling = sampling or SamplingConfig()
    rounds: list[list[Evaluation[EvaluationRecord]]] = []
    of_run = is_run(target)
    stem, ending = (None, ".json") if output is None else (output.with_suffix(""), ".json")
    if stem is None and not of_run:
        by = "" if len(evaluators) > 1 else f".{evaluators[0].extractor.info.label}"  # each of several adds its own
        reference = evaluators[0].reference.info.digest[:8]
        count = "" if num_images is None else f"-n{num_images}"
        name = target.name.removesuffix(".safetensors")
        stem, ending = target.with_name(f"{name}{by}.{reference}{count}"), ".evaluation.json"
    for number in range(repeats):
        file = None if stem is None else stem.with_name(f"{stem.name}-{number + 1}-of-{repeats}{ending}")
        chosen = sampling.model_copy(update={"seed": sampling.seed + number}) if of_run else sampling
        part = (0, 1) if of_run else (number, repeats)
        rounds.append(evaluate(evaluators, target, num_images=num_images, sampling=chosen, part=part, output=file))
    if not evaluators[0].is_main:
        return [Evaluation(None, target)]
    series = []
    for evaluator, evaluations in zip(evaluators, zip(*rounds, strict=True), strict=True):
        first = evaluations[0].path
        path = output_of(evaluator, output, several=len(evaluators) > 1)
        path = path or first.parent / "repeats" / f"{first.stem.replace(f'-1-of-{repeats}', '')}-repeats-{repeats}.json"
        record = _summarize(evaluations)
        record.write(path)
        series.append(Evaluation(record, path))
    return series


def _summarize(evaluations: Sequence[Evaluation[EvaluationRecord]]) -> RepeatsRecord:
    """Means as metrics, with the standard deviation of the sample (over n - 1) and all values of each."""
    records = [one.record for one in evaluations if one.record is not None]
    names = [name for name in records[0].metrics if all(name in record.metrics for record in records)]
    spread = {}
    for name in names:
        values = [record.metrics[name] for record in records]
        spread[name] = Spread(mean=statistics.fmean(values), sd=statistics.stdev(values), values=values)
    return RepeatsRecord(
        **records[0].shared(),
        metrics={name: entry.mean for name, entry in spread.items()},
        seeds=[None if record.sampling is None else record.sampling.seed for record in records],
        spread=spread,
        warnings=list(dict.fromkeys(warning for record in records for warning in record.warnings)),
        evaluations=[str(one.path) for one in evaluations],
    )


def evaluate_checkpoints(
    evaluators: Sequence[Evaluator],
    target: Path,
    *,
    num_images: int | None = None,
    sampling: SamplingConfig | None = None,
) -> list[Evaluation[CurveRecord]]:
    """Score all checkpoints of a run, and write each evaluator's curve of score against step with its figure.

    Evaluations that exist already, of the same weights, images, extractor and seed, are not made again. A
    checkpoint whose score is refused (a network that has just begun) is a point without a score that says why.

    Raises:
        UsageError: no run, or a step given.
        ArtifactError: the run has no checkpoint.
        RefusedError: no checkpoint could be scored.
    """
    sampling = sampling or SamplingConfig()
    if not is_run(target):
        raise UsageError(f"`all_checkpoints`: {target} is no run")
    if sampling.step is not None:
        raise UsageError("`all_checkpoints` and `step` exclude each other: remove one")
    run, count = Run.open(target), num_images or DEFAULT_NUM_IMAGES
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise NotFoundError(f"{target} holds no checkpoint yet")
    known = {}
    for path in run.evaluation_paths():
        with contextlib.suppress(ArtifactError):  # cut off or of something else: it is evaluated again
            scored = EvaluationRecord.read(path)
            known[scored.identity] = Evaluation(scored, path)
    points: list[list[CurvePoint]] = [[] for _ in evaluators]
    last: list[EvaluationRecord | None] = [None for _ in evaluators]
    for checkpoint in checkpoints:
        chosen = sampling.model_copy(update={"step": checkpoint.step})
        state = checkpoint.state()
        point = CurvePoint(step=checkpoint.step, images_seen=state.images_seen, train_seconds=state.train_seconds)
        opened: Target | None = None  # sampled once, and only if an evaluator has not scored it before
        for number, evaluator in enumerate(evaluators):
            evaluation = known.get(evaluator.identity(run, count, chosen))
            if evaluation is not None and evaluator.is_main:
                evaluator.execution.notify(f"step {checkpoint.step}: evaluated before")
            try:
                if evaluation is None:
                    opened = opened or open_once(evaluators, target, num_images=num_images, sampling=chosen)
                    evaluation = evaluator.score(opened)
            except RefusedError as error:
                points[number].append(point.model_copy(update={"refused": str(error)}))
                evaluator.execution.notify(f"step {checkpoint.step}: {error}")
                continue
            last[number] = evaluation.record or last[number]
            metrics = None if evaluation.record is None else evaluation.record.metrics
            update = {"metrics": metrics, "evaluation": str(evaluation.path)}
            points[number].append(point.model_copy(update=update))
    if not evaluators[0].is_main:
        return [Evaluation(None, target)]
    curves = [_write_curve(run, record, curve) for record, curve in zip(last, points, strict=True) if record]
    if not curves:
        raise RefusedError(f"{target}: none of {len(points[0])} checkpoints could be scored: {points[0][-1].refused}")
    return curves


def _write_curve(run: Run, last: EvaluationRecord, points: Sequence[CurvePoint]) -> Evaluation[CurveRecord]:
    assert last.sampling is not None
    label = f"{last.extractor.label}-{last.sampling.file_label}-n{last.num_images}-seed{last.sampling.seed}"
    path = run.path / "evaluations" / "curves" / f"{file_label(f'{label}-{last.reference.digest[:8]}')}.json"
    figure = path.with_suffix(".png")
    record = CurveRecord(**last.shared(), points=points, figure=figure.name)
    write_bytes(figure, draw_curve(record))
    record.write(path)
    return Evaluation(record, path)


def draw_curve(record: CurveRecord) -> bytes:
    """A PNG of score against step, with the real-vs-real floor; refused checkpoints are crosses at the top."""
    scored = [(point.step, point.metrics[REQUIRED]) for point in record.points if point.metrics]
    refused = [point.step for point in record.points if not point.metrics]
    floor = record.floor
    values = [value for _, value in scored]
    values += [floor.metrics[REQUIRED]] if floor and floor.metrics[REQUIRED] > 0 else []

    def draw(axes: Any, theme: str) -> None:
        main, _, _, _, _, wrong, *_ = PALETTES[theme]
        axes.plot(*zip(*scored, strict=True), marker="o", color=main, label=record.name)
        if floor:
            axes.axhline(floor.metrics[REQUIRED], color=INK[theme], linewidth=1, linestyle=(0, (1, 2)),
                         label=f"real images, {floor.num_images:,} against {floor.num_images:,}")  # fmt: skip
        if refused:
            top = [max(value for _, value in scored) * FIGURE_MARGIN] * len(refused)
            axes.plot(refused, top, linestyle="", marker="x", color=wrong, label="not scorable")
        scale_y(axes, values)
        axes.set_xlim(left=0)
        axes.set_xlabel("training step")
        axes.set_ylabel(plain_label(f"{record.name} by {record.extractor.name}"))
        axes.set_title(plain_label(str(record.run)), fontsize=10, loc="right", color=INK[theme])
        legend(axes, theme)

    return draw_figure(draw, name="score-curve", alt="", caption="", height=3.8, entries=1 + bool(floor)).png
