"""One flat record per score, with everything that belongs beside it: what the page's tables and the CSV are made of."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_table import ScoreRow, ScoreTable
from driftkit.comparison.speed import Speed

FIELDS = (
    "table", "score", "evaluator", "evaluator_weights", "reference", "reference_digest", "num_images", "rank", "run",
    "group", "kind", "method", "encoder", "feature_set", "training_seed", "step", "sampler", "nfe", "weights", "fid",
    "fid_sd", "fid_values", "floor", "floor_images", "kid_mean", "kid_sd", "precision", "recall", "density",
    "coverage", "inception_score_mean", "nearest_ratio", "near_share", "class_entropy", "images_per_second",
    "speed_scaled", "kinship", "kinship_reason",
    "steps", "images_seen", "train_seconds", "parameters", "peak_memory_gib", "drift_norm", "spread",
    "loss", "badges", "warnings", "path",
)  # fmt: skip


def score_records(
    tables: Sequence[ScoreTable], runs: Sequence[RunSummary], speeds: Sequence[Speed]
) -> list[dict[str, Any]]:
    """All rows of all tables, best first within each; those without a rank are of evaluators that rank nothing.

    Runs without a score follow with empty fields.
    """
    known = {run.label: run for run in runs}
    records = []
    for table in tables:
        ranked: list[tuple[int | None, ScoreRow]] = list(enumerate(table.rows, start=1))
        for rank, row in ranked + [(None, row) for row in table.apart]:
            head = {
                "table": table.key,
                "score": table.name,
                "evaluator": table.extractor["name"],
                "evaluator_weights": table.extractor["weights_digest"],
                "reference": table.reference["spec"],
                "reference_digest": table.reference["digest"],
                "num_images": table.num_images,
                "rank": rank,
            }
            records.append({**_run_fields(known.get(row.run)), **head, **_row_fields(row, speeds)})
    scored = {row.run for table in tables for row in (*table.rows, *table.apart)}
    records += [{**_run_fields(run), "run": run.label} for run in runs if run.label not in scored]
    return [{field: record.get(field) for field in FIELDS} for record in records]


def speed_of(speeds: Sequence[Speed], run: str, sampler: str | None, nfe: int | None) -> Speed | None:
    """The measured speed of a way of sampling; options of a sampler (eta) do not change how fast it is."""
    name = (sampler or "").split(" ")[0]
    return next((s for s in speeds if (s.run, s.sampler, s.nfe) == (run, name, nfe)), None)


def _run_fields(run: RunSummary | None) -> dict[str, Any]:
    if run is None:
        return {}
    same = ("group", "kind", "method", "encoder", "feature_set", "steps", "images_seen", "train_seconds", "parameters",
            "peak_memory_gib", "drift_norm", "spread", "loss", "path")  # fmt: skip
    return {**{key: getattr(run, key) for key in same}, "training_seed": run.seed, "warnings": "; ".join(run.warnings)}


def _row_fields(row: ScoreRow, speeds: Sequence[Speed]) -> dict[str, Any]:
    speed = speed_of(speeds, row.run, row.sampler, row.nfe)
    metrics = ("fid", "kid_mean", "precision", "recall", "density", "coverage", "inception_score_mean", "nearest_ratio",
               "near_share", "class_entropy")  # fmt: skip
    return {
        "run": row.run,
        "step": row.step,
        "sampler": row.sampler,
        "nfe": row.nfe,
        "weights": row.weights,
        **{key: row.metrics.get(key) for key in metrics},
        "fid_sd": row.spread.get("fid"),
        "fid_values": " ".join(f"{value:.6g}" for value in row.fid_values),
        "kid_sd": row.spread.get("kid_mean"),
        "floor": row.floor,
        "floor_images": row.floor_images,
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
    writer.writerow(FIELDS)
    writer.writerows([_cell(record[field]) for field in FIELDS] for record in records)
    return memory.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value
