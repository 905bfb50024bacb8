"""The comparison as one HTML page that needs nothing but itself: no network, no other file."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from driftkit.comparison.budgets import EqualBudget, nfe_budgets, training_budgets
from driftkit.comparison.formats import (
    METRIC_NAMES,
    format_count,
    format_metric,
    format_rate,
    format_score,
    format_seconds,
    format_spread,
    method_name,
)
from driftkit.comparison.pictures import Evolution
from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_records import speed_of
from driftkit.comparison.score_table import RANDOM_WEIGHTS, SMALL_N, ScoreRow, ScoreTable
from driftkit.comparison.speed import Speed
from driftkit.runtime.drawing import Figure

LOUD = ("kin evaluator", RANDOM_WEIGHTS)
SPARK_WIDTH, SPARK_HEIGHT = 88, 22


def render_report(
    document: Mapping[str, Any],
    *,
    runs: Sequence[RunSummary],
    encoders: Sequence[RunSummary],
    tables: Sequence[ScoreTable],
    speeds: Sequence[Speed],
    figures: Mapping[str, Sequence[Figure]],
    colours: Mapping[str, int],
    evolutions: Sequence[Evolution] = (),
) -> str:
    """The page.

    Args:
        document: the comparison as JSON data, embedded for reuse; its findings, notes, skipped folders and settings
            are shown.
        runs: the compared runs.
        encoders: runs that train encoders, listed apart.
        tables: score tables, one per evaluator.
        speeds: sampling speeds.
        figures: section ("curves", "grids", "neighbours", or the key of a score table) -> its pictures.
        colours: run label -> place in the palette.
        evolutions: frames of the runs' trainings.

    Returns:
        HTML in which every name and number that came from a file is escaped, and whose policy runs no script but its
        own and loads nothing.
    """
    environment = Environment(
        loader=PackageLoader("driftkit.comparison"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(
        count=format_count,
        seconds=format_seconds,
        metric=format_metric,
        spread=format_spread,
        score=format_score,
        rate=format_rate,
        embedded=embedded_json,
        data_uri=data_uri,
        method=method_name,
        spark=sparkline_points,
        value=config_value,
    )
    style, script = _asset("report.css"), _asset("report.js")
    return environment.get_template("report.html.j2").render(
        document=document,
        runs=runs,
        encoders=encoders,
        tables=tables,
        views={table.key: table_view(table, runs, speeds) for table in tables},
        speeds=sorted(speeds, key=lambda s: -s.images_per_second),
        figures={"curves": (), "grids": (), "neighbours": (), **figures},
        evolutions=evolutions,
        colours=colours,
        headline=headline(runs, tables, speeds),
        loud=LOUD,
        small_n=SMALL_N,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def _asset(name: str) -> str:
    return (files("driftkit.comparison") / "templates" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """The content as a policy names it: nothing else of its kind is let in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def table_view(table: ScoreTable, runs: Sequence[RunSummary], speeds: Sequence[Speed]) -> dict[str, Any]:
    """What the page shows of a score table beside its rows: columns that any row has, speeds, budgets."""
    known = {run.label: run for run in runs}
    rows = [
        {
            "row": row,
            "run": known.get(row.run),
            "speed": speed_of(speeds, row.run, row.sampler, row.nfe),
            "best": row is table.best(row.run) or not row.kinship.counts,
        }
        for row in (*table.rows, *table.apart)
    ]
    return {
        "rows": rows,
        "metrics": metric_columns([*table.rows, *table.apart]),
        "timed": any(entry["speed"] for entry in rows),
        "small": any(SMALL_N in row.badges for row in (*table.rows, *table.apart)),
        "drifting": any(run.drift_norm is not None for run in runs),
        "hidden": sum(not entry["best"] for entry in rows),
        "training": budget_view(training_budgets(table, runs)),
        "nfe": budget_view(nfe_budgets(table)),
    }


def budget_view(budgets: Sequence[EqualBudget]) -> dict[str, Any] | None:
    """Budgets as columns and runs as rows, the best of all budgets first; None where there is nothing."""
    if not budgets:
        return None
    labels = dict.fromkeys(label for budget in budgets for label in budget.cells)

    def best(label: str) -> float:
        return min((cell.fid for b in budgets if (cell := b.cells.get(label))), default=float("inf"))

    winners = [min((c.fid for c in b.cells.values() if c), default=None) for b in budgets]
    return {"budgets": budgets, "runs": sorted(labels, key=best), "winners": winners}


def metric_columns(rows: Sequence[ScoreRow]) -> dict[str, str]:
    """The scores beside FID that any of the rows has: key -> column heading."""
    return {key: name for key, name in METRIC_NAMES.items() if any(key in row.metrics for row in rows)}


def headline(runs: Sequence[RunSummary], tables: Sequence[ScoreTable], speeds: Sequence[Speed]) -> str:
    """One sentence that says what was compared, without a verdict that the numbers would not bear."""
    kinds: dict[str, int] = {}
    for run in runs:
        name = method_name(run.method).replace("Drifting", "drifting")
        kinds[name] = kinds.get(name, 0) + 1
    named = " and ".join(f"{count} {kind} run{'s' if count > 1 else ''}" for kind, count in kinds.items())
    data = {run.data_digest or run.data: run.data for run in runs if run.data}
    on = f" on {', '.join(str(name) for name in data.values())}" if data else ""
    parts = [f"{named}{on}"]
    if len(tables) == 1:
        parts.append(f"scored as {tables[0].name} by {tables[0].title}")
    elif tables:
        parts.append(f"scored in {len(tables)} ways whose numbers stay apart")
    else:
        parts.append("not scored yet")
    if speeds:
        parts.append("timed under equal settings")
    sentence = ", ".join(parts) + "."
    return sentence[:1].upper() + sentence[1:]


def sparkline_points(run: RunSummary) -> str:
    """The drift norm of a run, or else its loss, as points of an SVG polyline of 88 x 22."""
    key = "drift_norm" if run.drift_norm is not None else "loss"
    values = [v for point in run.curve if (v := point[key]) is not None]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = SPARK_WIDTH / (len(values) - 1)
    return " ".join(
        f"{i * step:.1f},{1 + (SPARK_HEIGHT - 2) * (1 - (v - low) / span):.1f}" for i, v in enumerate(values)
    )


def config_value(value: Any) -> str:
    """A config value as it stands in a config file; a dash for None."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def embedded_json(document: Mapping[str, Any]) -> Markup:
    """JSON that no HTML parser can mistake for markup: `</script>` and `<!--` lose their angle brackets."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    """A picture as part of the page."""
    return f"data:{media_type};base64," + base64.b64encode(content).decode("ascii")
