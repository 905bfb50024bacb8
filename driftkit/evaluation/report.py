"""The comparison as one HTML page that needs nothing but itself: no network, no other file."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from driftkit.evaluation.figures import Figure
from driftkit.evaluation.speed import Speed
from driftkit.evaluation.table import (
    RunSummary,
    ScoreRow,
    ScoreTable,
    format_count,
    format_score,
    format_seconds,
    format_share,
)

METHOD_NAMES = {"drift": "Drifting", "ddpm": "DDPM", "mae": "MAE"}
METRIC_NAMES = {
    "kid_mean": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "inception_score_mean": "IS",
}


def render_report(
    document: Mapping[str, Any],
    *,
    runs: Sequence[RunSummary],
    encoders: Sequence[RunSummary],
    tables: Sequence[ScoreTable],
    speeds: Sequence[Speed],
    figures: Mapping[str, Sequence[Figure]],
    colours: Mapping[str, int],
) -> str:
    """The page.

    Args:
        document: the comparison as JSON data, embedded for reuse; its notes, skipped folders and settings are shown.
        runs: the compared runs.
        encoders: MAE runs, listed apart.
        tables: score tables, one per evaluator.
        speeds: sampling speeds.
        figures: section ("curves", "grids", "speed", or the key of a score table) -> its pictures.
        colours: run label -> place in the palette.

    Returns:
        HTML in which every name and number that came from a file is escaped.
    """
    environment = Environment(
        loader=PackageLoader("driftkit.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(
        count=format_count,
        seconds=format_seconds,
        metric=format_metric,
        spread=lambda value: f"{value:.2g}",
        score=format_score,
        embedded=embedded_json,
        data_uri=data_uri,
        method=lambda name: METHOD_NAMES.get(name, name),
    )
    return environment.get_template("report.html.j2").render(
        document=document,
        runs=runs,
        encoders=encoders,
        tables=tables,
        metrics={table.key: metric_columns(table.rows) for table in tables},
        speeds=sorted(speeds, key=lambda s: -s.images_per_second),
        figures={"curves": (), "grids": (), "speed": (), **figures},
        colours=colours,
        cards=[card(run, tables, speeds) for run in runs],
        headline=headline(runs, tables, speeds),
    )


def metric_columns(rows: Sequence[ScoreRow]) -> dict[str, str]:
    """The scores beside FID that any of the rows has: key -> column heading."""
    return {key: name for key, name in METRIC_NAMES.items() if any(key in row.metrics for row in rows)}


def card(run: RunSummary, tables: Sequence[ScoreTable], speeds: Sequence[Speed]) -> dict[str, Any]:
    """What one wants to know of a run first: its best score in the fullest table, and how fast it samples."""
    table = next((t for t in tables if any(r.run == run.label for r in t.rows)), None)
    best = next(r for r in table.rows if r.run == run.label) if table else None
    rates = [s for s in speeds if s.run == run.label]
    nfe = best.nfe if best else None
    # The speed that belongs to the score, where it was measured at that NFE; else the fastest, with its own NFE.
    speed = next((s for s in rates if s.nfe == nfe), max(rates, key=lambda s: s.images_per_second, default=None))
    return {"run": run, "table": table, "best": best, "speed": speed}


def headline(runs: Sequence[RunSummary], tables: Sequence[ScoreTable], speeds: Sequence[Speed]) -> str:
    """One sentence that says what was compared, without a verdict that the numbers would not bear."""
    kinds: dict[str, int] = {}
    for run in runs:
        name = METHOD_NAMES.get(run.method, run.method).replace("Drifting", "drifting")
        kinds[name] = kinds.get(name, 0) + 1
    named = " and ".join(f"{count} {kind} run{'s' if count > 1 else ''}" for kind, count in kinds.items())
    data = sorted({run.data for run in runs if run.data})
    on = f" on {', '.join(data)}" if data else ""
    parts = [f"{named}{on}"]
    if len(tables) == 1:
        parts.append(f"scored as {tables[0].name} by {tables[0].title}")
    elif tables:
        parts.append(f"scored by {len(tables)} evaluators whose numbers stay apart")
    else:
        parts.append("not scored yet")
    if speeds:
        parts.append("timed under equal settings")
    return ", ".join(parts) + "."


def format_metric(value: float | None, key: str) -> str:
    """Shares with three decimals, everything else with four digits."""
    return format_share(value) if key in ("precision", "recall") else format_score(value)


def embedded_json(document: Mapping[str, Any]) -> Markup:
    """JSON that no HTML parser can mistake for markup: `</script>` and `<!--` lose their angle brackets."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def data_uri(png: bytes) -> str:
    """A picture as part of the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
