"""Score tables that never mix evaluators, rows of runs that differ in their seed alone, equal budgets, the CSV."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from driftkit.comparison.run_summary import CLASS_CONDITIONAL, COSTS, RunSummary, curve_keys
from driftkit.comparison.speed import Speed, speed_of
from driftkit.encoders.lineage import Kinship
from driftkit.metrics.base import Quantity
from driftkit.metrics.memorization import NEAR_SHARE
from driftkit.metrics.registry import REQUIRED, quantities
from driftkit.scoring.evaluation_record import (
    AppearanceInfo,
    EvaluationRecord,
    ExtractorInfo,
    ReferenceInfo,
    SamplingInfo,
)
from driftkit.storage.files import digest_json
from driftkit.training.conditions import EVERY_CLASS

SMALL_COUNT = 10_000
RANDOM_WEIGHTS = "random weights"
RAW_WEIGHTS = "raw weights"
SOME_CLASSES = "some classes alone"
SMALL_N = "small N"
UNFINISHED = "not finished"
NEAR_COPIES = "near copies of training images"
ON_TRAINING_DATA = "against its training images"
UNRECORDED = Kinship("related", "how near evaluator and training encoder are is not recorded")

LabelledEvaluation = tuple[str, EvaluationRecord]
"""Label of a run, and one of its evaluations."""


@dataclass(frozen=True)
class ScoreRow:
    """One sampler setup of one run, scored with one or more seeds of the noise.

    Attributes:
        metrics: means over the seeds.
        spread: standard deviations over the seeds; of one seed, those that metrics give themselves.
        scores: values of the ranking metric, lower is better, one per seed.
        floor: the real-vs-real floor of the ranking metric, by the same evaluator.
        badges: short warnings that stand next to the number wherever it is shown.
        guidance: its scale, 1 for none; None where the run is unconditional.
        kinship: how near the evaluator is to the run's training encoder.
        appearance: plain properties of the images next to those of real ones; see `metrics.survey`.
    """

    run: str
    method: str | None
    sampler: str | None
    nfe: int | None
    weights: str | None
    step: int | None
    seeds: list[int | None]
    guidance: float | None
    metrics: dict[str, float]
    spread: dict[str, float]
    scores: list[float]
    floor: float | None
    floor_images: int | None
    badges: list[str]
    warnings: list[str]
    kinship: Kinship = UNRECORDED
    appearance: dict[str, AppearanceInfo] = field(default_factory=dict)

    @property
    def is_of_all_classes(self) -> bool:
        """Whether the images were to be of all classes, as those of the reference are."""
        return SOME_CLASSES not in self.badges

    @property
    def score(self) -> float:
        """The mean of the ranking metric, lower is better."""
        return self.metrics[REQUIRED]

    @property
    def score_sd(self) -> float | None:
        """Standard deviation of `scores`; None for one seed."""
        return self.spread.get(REQUIRED)


@dataclass(frozen=True)
class GroupRow:
    """Runs that differ in their training seed alone, sampled alike."""

    kind: str
    runs: list[str]
    seeds: list[int | None]
    sampler: str | None
    nfe: int | None
    weights: str | None
    scores: list[float]
    mean: float
    sd: float


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one evaluator, one reference and one count of images, best first: only these may be compared.

    Attributes:
        name: of the ranking score, for example "fid@50000".
        rows: the last step of every sampler setup, of runs that the evaluator is independent of.
        related: the same of runs whose training encoder it is kin or related to; they rank nothing.
        history: `rows` at all steps that were scored.
    """

    key: str
    name: str
    title: str
    extractor: ExtractorInfo
    reference: ReferenceInfo
    num_images: int
    rows: list[ScoreRow]
    history: list[ScoreRow]
    groups: list[GroupRow] = field(default_factory=list)
    related: list[ScoreRow] = field(default_factory=list)

    @property
    def all_rows(self) -> list[ScoreRow]:
        return [*self.rows, *self.related]

    def best(self, run: str) -> ScoreRow | None:
        """The best row of all classes of a run that the evaluator is independent of, None where it has none."""
        return next((row for row in self.rows if row.run == run and row.is_of_all_classes), None)

    def best_related(self, run: str) -> ScoreRow | None:
        """The best row of all classes of a run that the evaluator is related to, None where it has none."""
        rows = (row for row in self.related if row.run == run and row.is_of_all_classes)
        return next((row for row in rows if row.kinship.degree == "related"), None)

    def columns(self) -> list[Quantity]:
        """Numbers next to the ranking score that any row has."""
        shown = [quantity for key, quantity in quantities().items() if quantity.column and key != REQUIRED]
        return [quantity for quantity in shown if any(quantity.key in row.metrics for row in self.all_rows)]

    def has(self, run: str) -> bool:
        """Whether there is any score of the run."""
        return any(row.run == run for row in self.all_rows)


def score_tables(evaluations: Iterable[LabelledEvaluation], runs: Sequence[RunSummary] = ()) -> list[ScoreTable]:
    """One table per evaluator, reference and count of images, the fullest first, of evaluations by label of the run.

    Warnings in the runs' summaries become badges, and runs of one group share a group row.
    """
    summaries = {run.label: run for run in runs}
    groups: dict[str, list[LabelledEvaluation]] = {}
    copying: set[tuple[Any, ...]] = set()
    for label, record in evaluations:
        groups.setdefault(evaluator_key(record), []).append((label, record))
        if record.metrics.get("near_share", 0) > NEAR_SHARE:
            copying.add(_images_key(label, record))
    tables = [_table(key, members, summaries, copying) for key, members in groups.items()]

    def place(t: ScoreTable) -> tuple[Any, ...]:
        return (-len({r.run for r in t.rows}), t.extractor.name == "pixels", -len(t.rows), -t.num_images, t.title)

    return sorted(tables, key=place)


def evaluator_key(record: EvaluationRecord) -> str:
    """Equal for evaluations whose numbers may stand in one column."""
    extractor = record.extractor
    return digest_json(
        [extractor.name, extractor.weights_digest, extractor.resize, record.reference.digest, record.num_images]
    )[:12]


def _setup_key(label: str, record: EvaluationRecord) -> tuple[Any, ...]:
    """Equal for evaluations of a run that differ in nothing but evaluator and seed; the step comes last."""
    sampling = _sampling_of(record)
    return (label, sampling.label, sampling.asked_classes, sampling.nfe, sampling.weights, sampling.step)


def _images_key(label: str, record: EvaluationRecord) -> tuple[Any, ...]:
    """Equal for evaluations of the same images."""
    return (*_setup_key(label, record), _sampling_of(record).seed, record.num_images)


def _table(
    key: str, members: list[LabelledEvaluation], runs: Mapping[str, RunSummary], copying: set[tuple[Any, ...]]
) -> ScoreTable:
    setups: dict[tuple[Any, ...], list[EvaluationRecord]] = {}
    for label, record in members:
        setups.setdefault(_setup_key(label, record), []).append(record)
    history: list[ScoreRow] = []
    latest: dict[tuple[Any, ...], ScoreRow] = {}
    for setup, records in setups.items():
        # The newest of every seed, of all metrics if there is one: a score made twice is no second draw of the noise.
        in_order = sorted(records, key=lambda r: (r.selection is None, r.created))
        newest = {_sampling_of(record).seed: record for record in in_order}
        records = [newest[seed] for seed in dict.fromkeys(_sampling_of(record).seed for record in records)]
        copies = any(_images_key(setup[0], record) in copying for record in records)
        row = _row(setup[0], records, runs.get(setup[0]), copies=copies)
        history.append(row)
        before = latest.get(setup[:-1])
        if before is None or (row.step or 0) >= (before.step or 0):
            latest[setup[:-1]] = row
    ranked = sorted(latest.values(), key=lambda r: (r.score, r.nfe or 0, r.run))
    rows = [row for row in ranked if row.kinship.counts]
    first = members[0][1]
    return ScoreTable(
        key=key,
        name=f"{REQUIRED}@{first.num_images}",
        title=f"{first.extractor.name} against {first.reference.spec}",
        extractor=first.extractor,
        reference=first.reference,
        num_images=first.num_images,
        rows=rows,
        history=sorted((r for r in history if r.kinship.counts), key=lambda r: (r.run, r.nfe or 0, r.step or 0)),
        groups=_group_rows(rows, runs),
        related=[row for row in ranked if not row.kinship.counts],
    )


def _sampling_of(record: EvaluationRecord) -> SamplingInfo:
    return record.sampling or SamplingInfo()


def _row(label: str, records: list[EvaluationRecord], run: RunSummary | None, *, copies: bool) -> ScoreRow:
    """One row of the evaluations that differ in nothing but the seed."""
    first = records[0]
    values: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.metrics.items():
            values.setdefault(key, []).append(value)
    spread = {key: statistics.stdev(v) for key, v in values.items() if len(v) > 1}
    for key, quantity in quantities().items():
        if key not in spread and quantity.spread in values:
            spread[key] = values[quantity.spread][0]
    sampling, kinship = _sampling_of(first), first.kinship or UNRECORDED
    signs = {
        CLASS_CONDITIONAL: bool(sampling.classes) if run is None else run.learned_labels,
        SOME_CLASSES: sampling.asked_classes not in (None, (EVERY_CLASS,)),
        f"{kinship.degree} evaluator": not kinship.counts,
        RANDOM_WEIGHTS: run is not None and run.random_weights,
        f"{sampling.weights} weights": sampling.weights not in (None, "ema"),
        ON_TRAINING_DATA: first.reference.is_training_data,
        SMALL_N: first.num_images < SMALL_COUNT,
        NEAR_COPIES: copies,
        UNFINISHED: run is not None and not run.finished,
    }
    return ScoreRow(
        run=label,
        method=sampling.method,
        sampler=sampling.label,
        nfe=sampling.nfe,
        weights=sampling.weights,
        step=sampling.step,
        seeds=[_sampling_of(record).seed for record in records],
        guidance=sampling.guidance,
        metrics={key: statistics.fmean(v) for key, v in values.items()},
        spread=spread,
        scores=values[REQUIRED],
        floor=first.floor.metrics.get(REQUIRED) if first.floor else None,
        floor_images=first.floor.num_images if first.floor else None,
        badges=[badge for badge, applies in signs.items() if applies],
        warnings=list(dict.fromkeys(w for record in records for w in record.warnings)),
        kinship=kinship,
        appearance=dict(first.appearance or {}),
    )


def _group_rows(rows: Sequence[ScoreRow], runs: Mapping[str, RunSummary]) -> list[GroupRow]:
    """A row for every group of at least two runs whose training seeds differ, best mean first."""
    groups: dict[tuple[Any, ...], list[ScoreRow]] = {}
    for row in rows:
        if row.run in runs:
            groups.setdefault((runs[row.run].group, row.sampler, row.nfe, row.weights), []).append(row)
    result = []
    for members in groups.values():
        seeds = [runs[row.run].seed for row in members]
        if len(set(seeds)) < 2:
            continue
        scores, first = [row.score for row in members], members[0]
        kind, labels = runs[first.run].kind, [row.run for row in members]
        setup, mean, sd = (first.sampler, first.nfe, first.weights), statistics.fmean(scores), statistics.stdev(scores)
        result.append(GroupRow(kind, labels, seeds, *setup, scores, mean, sd))
    return sorted(result, key=lambda g: g.mean)


@dataclass(frozen=True)
class BudgetCell:
    """The best score of a run within a budget, of which its checkpoint `spent` a part."""

    score: float
    spent: float
    step: int | None
    sampler: str | None
    nfe: int | None


@dataclass(frozen=True)
class EqualBudget:
    """A budget ("step", "images", "seconds" or "nfe") of that amount, and run label -> the best score within it."""

    cost: str
    amount: float
    cells: dict[str, BudgetCell | None]


def training_budgets(table: ScoreTable, runs: Sequence[RunSummary]) -> list[EqualBudget]:
    """Scores at the largest number of steps, images and seconds that every trained run was scored at or beyond.

    A run is shown with its best score of all checkpoints within the budget, in any sampler setup of all classes. Runs
    without any training cost nothing and fit every budget. A cost is skipped where fewer than two trained runs tell it.
    """
    summaries = {run.label: run for run in runs}
    budgets = []
    for cost in COSTS:
        spent: dict[str, list[tuple[float, ScoreRow]]] = {}
        for row in table.history:
            run = summaries.get(row.run)
            value = None if run is None or not row.is_of_all_classes else run.cost_at(row.step or 0, cost)
            if value is not None:
                spent.setdefault(row.run, []).append((value, row))
        totals = [total for rows in spent.values() if (total := max(value for value, _ in rows)) > 0]
        if len(totals) >= 2:
            amount = min(totals)
            budgets.append(EqualBudget(cost, amount, {run: _within(rows, amount) for run, rows in spent.items()}))
    return budgets


def nfe_budgets(table: ScoreTable) -> list[EqualBudget]:
    """The best score of every run with at most so many network evaluations per image, for every NFE that was scored."""
    by_run: dict[str, list[tuple[float, ScoreRow]]] = {}
    for row in table.rows:
        if row.nfe is not None and row.is_of_all_classes:
            by_run.setdefault(row.run, []).append((float(row.nfe), row))
    amounts = sorted({nfe for rows in by_run.values() for nfe, _ in rows})
    return [EqualBudget("nfe", a, {run: _within(rows, a) for run, rows in by_run.items()}) for a in amounts]


def _within(rows: Sequence[tuple[float, ScoreRow]], amount: float) -> BudgetCell | None:
    affordable = [(value, row) for value, row in rows if value <= amount * (1 + 1e-9)]
    if not affordable:
        return None
    value, row = min(affordable, key=lambda pair: pair[1].score)
    return BudgetCell(row.score, value, row.step, row.sampler, row.nfe)


VALUES = f"{REQUIRED}_values"
TABLE_FIELDS = ("table", "score", "evaluator", "evaluator_weights", "reference", "reference_digest", "num_images")
RUN_FIELDS = ("group", "kind", "method", "class_conditional", "encoder", "feature_set", "training_seed", "steps",
              "images_seen", "train_seconds", "parameters", "peak_memory_gib")  # fmt: skip
ROW_FIELDS = ("step", "sampler", "guidance", "nfe", "weights", VALUES, "floor", "floor_images")


def record_fields() -> tuple[str, ...]:
    """The columns of compare.csv: every metric with its standard deviation among them."""
    metrics = [column for key in quantities() for column in (key, f"{key}_sd")]
    return (*TABLE_FIELDS, "rank", "run", *RUN_FIELDS, *ROW_FIELDS, *metrics, "images_per_second", "speed_scaled",
            "kinship", "kinship_reason", *curve_keys(), "badges", "warnings", "path")  # fmt: skip


def score_records(
    tables: Sequence[ScoreTable], runs: Sequence[RunSummary], speeds: Sequence[Speed]
) -> list[dict[str, Any]]:
    """One flat record per score with everything that belongs to it, best first within each table.

    Scores of evaluators that rank nothing have no rank. Runs without a score follow with empty fields.
    """
    summaries = {run.label: run for run in runs}
    records: list[dict[str, Any]] = []
    for table in tables:
        by, real = table.extractor, table.reference
        values = (table.key, table.name, by.name, by.weights_digest, real.spec, real.digest, table.num_images)
        head = dict(zip(TABLE_FIELDS, values, strict=True))
        for place, row in enumerate(table.all_rows, start=1):
            run, rank = summaries.get(row.run), place if row.kinship.counts else None
            records.append({**head, "rank": rank, **(_run_fields(run) if run else {}), **_row_fields(row, speeds)})
    records += [_run_fields(run) for run in runs if not any(table.has(run.label) for table in tables)]
    return [{field: record.get(field) for field in record_fields()} for record in records]


def _run_fields(run: RunSummary) -> dict[str, Any]:
    return {
        "run": run.label,
        "training_seed": run.seed,
        **{key: getattr(run, key) for key in RUN_FIELDS if key != "training_seed"},
        **run.signals,
        "warnings": "; ".join(run.warnings),
        "path": run.path,
    }


def _row_fields(row: ScoreRow, speeds: Sequence[Speed]) -> dict[str, Any]:
    speed = speed_of(speeds, row.run, row.sampler, row.nfe)
    return {
        "run": row.run,
        **{key: getattr(row, key) for key in ROW_FIELDS if key != VALUES},
        VALUES: " ".join(f"{value:.6g}" for value in row.scores),
        **row.metrics,
        **{f"{key}_sd": sd for key, sd in row.spread.items()},
        "images_per_second": speed.images_per_second if speed else None,
        "speed_scaled": speed.scaled if speed else None,
        "kinship": row.kinship.degree,
        "kinship_reason": row.kinship.reason,
        "badges": "; ".join(row.badges),
        "warnings": "; ".join(row.warnings),
    }


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as CSV with a heading; text that a spreadsheet would take for a formula gets a quote in front."""
    memory = io.StringIO()
    writer = csv.writer(memory, lineterminator="\n")
    fields = record_fields()
    writer.writerow(fields)
    writer.writerows([_cell(record[field]) for field in fields] for record in records)
    return memory.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value
