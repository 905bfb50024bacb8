"""The comparison as a record, and as one HTML page that needs nothing but itself: no network, no other file."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, Field

from driftkit.comparison.agreement import Pair, scored_runs
from driftkit.comparison.formats import (
    format_count,
    format_metric,
    format_rate,
    format_score,
    format_seconds,
    format_spread,
    method_label,
)
from driftkit.comparison.pictures import Evolution, RunFigure
from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_table import RANDOM_WEIGHTS, SMALL_N, UNFINISHED, EqualBudget, ScoreTable
from driftkit.comparison.speed import Speed
from driftkit.errors import ArtifactError
from driftkit.methods.registry import METHODS
from driftkit.metrics.registry import REQUIRED, quantities
from driftkit.runtime.drawing import Figure
from driftkit.storage.files import sha256, write_bytes
from driftkit.storage.records import Record

LOUD = ("kin evaluator", RANDOM_WEIGHTS)
SPARK_WIDTH, SPARK_HEIGHT = 88, 22


class SpeedSection(BaseModel):
    """Measured speeds, and what was held equal; no settings where nothing was measured."""

    settings: dict[str, Any] | None = None
    results: list[Speed] = Field(default_factory=list)


class ComparisonRecord(Record):
    """compare.json: everything the report shows.

    Attributes:
        differences: config key -> value of each run.
        skipped: arguments that are no runs, with `path` and `reason`.
        records: one flat record per score, the rows of compare.csv.
        budgets: key of a score table -> scores at equal cost.
        figures: name -> file.
        files: file -> its sha256 and size in bytes.
    """

    kind: ClassVar[str] = "comparison"

    driftkit: str
    created: str
    findings: list[str] = Field(default_factory=list)
    cautions: list[str] = Field(default_factory=list)
    pairs: list[Pair] = Field(default_factory=list)
    runs: list[RunSummary]
    encoders: list[RunSummary] = Field(default_factory=list)
    differences: dict[str, list[Any]] = Field(default_factory=dict)
    skipped: list[dict[str, str]] = Field(default_factory=list)
    score_tables: list[ScoreTable] = Field(default_factory=list)
    records: list[dict[str, Any]] = Field(default_factory=list)
    budgets: dict[str, list[EqualBudget]] = Field(default_factory=dict)
    speed: SpeedSection = SpeedSection()
    notes: list[str] = Field(default_factory=list)
    figures: dict[str, str] = Field(default_factory=dict)
    files: dict[str, dict[str, Any]] = Field(default_factory=dict)


def write_comparison(output: Path, record: ComparisonRecord, content: Mapping[str, bytes]) -> ComparisonRecord:
    """Write files, by their name in the folder, and compare.json with checksums; remove an earlier one's figures.

    No other process may write the folder.
    """
    path = output / "compare.json"
    try:
        earlier = ComparisonRecord.read(path)
    except ArtifactError:  # there is none, or it cannot be read
        earlier = None
    if earlier is not None:  # its files are replaced one by one, so it lists none of them from now on
        earlier.model_copy(update={"files": {}}).write(path)
    for name, data in content.items():
        write_bytes(output / name, data)
    remove_stale_figures(output, earlier.figures.values() if earlier else (), kept=content)
    checksums = {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in content.items()}
    record = record.model_copy(update={"files": checksums})
    record.write(path)
    return record


def remove_stale_figures(output: Path, named: Iterable[str], *, kept: Container[str]) -> None:
    """Remove figures that an earlier comparison names, from the folder of figures and nowhere else."""
    for name in named:
        path = output / "figures" / Path(name).name
        for stale in (path, path.with_suffix(".svg")):
            if f"figures/{stale.name}" not in kept and stale.is_file():
                stale.unlink()


def render_report(
    record: ComparisonRecord,
    *,
    figures: Mapping[str, Sequence[Figure]],
    colours: Mapping[str, int],
    evolutions: Sequence[Evolution] = (),
) -> str:
    """The page: HTML in which every name and number that came from a file is escaped.

    Its policy runs no script but its own and loads nothing. The record is embedded as JSON for reuse.

    Args:
        figures: section ("curves", "grids", "neighbours", or as in `charts.all_charts`) -> its pictures.
        colours: run label -> index in the palette.
    """
    environment = Environment(
        loader=PackageLoader("driftkit.comparison"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(
        count=format_count, seconds=format_seconds, spread=format_spread, score=format_score,
        embedded=embedded_json, data_uri=data_uri, spark=sparkline_points, value=config_value,
    )  # fmt: skip
    style, script = (
        (files("driftkit.comparison") / "templates" / name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    order = {label: place for place, label in enumerate(scored_runs(record.score_tables))}

    def place(label: str) -> int:
        return order.get(label, len(order))

    by_run = {
        name: sorted((f for f in figures.get(name, ()) if isinstance(f, RunFigure)), key=lambda f: place(f.run))
        for name in ("grids", "neighbours")
    }
    speeds = sorted(record.speed.results, key=lambda s: -s.images_per_second)
    methods = [METHODS[name] for name in dict.fromkeys(run.method for run in record.runs) if name in METHODS]
    return environment.get_template("report.html.j2").render(
        record=record,
        document=record.document(),
        views={table.key: table_view(table, record) for table in record.score_tables},
        speeds=speeds,
        rates=aligned([format_rate(s.images_per_second) for s in speeds]),
        times=aligned([format_score(1000 / s.images_per_second) for s in speeds]),
        runs=sorted(record.runs, key=lambda run: place(run.label)),
        figures={**figures, "curves": figures.get("curves", ()), **by_run},
        evolutions=sorted(evolutions, key=lambda e: place(e.run)),
        colours=colours,
        conclusion=conclusion(record),
        scored=[scored_setup(figure, record) for figure in by_run["grids"]],
        curve_notes=list(dict.fromkeys(method.curves_note for method in methods if method.curves_note)),
        curves=list(dict.fromkeys(curve for method in methods for curve in method.curves if curve.key != "loss")),
        quantities=[q for q in quantities().values() if q.column and q.key != REQUIRED],
        required=quantities()[REQUIRED],
        loud=LOUD,
        small_n=SMALL_N,
        random_weights=RANDOM_WEIGHTS,
        unfinished=UNFINISHED,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def _source(text: str) -> str:
    """The content as a content security policy names it: nothing else of its kind is allowed."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def table_view(table: ScoreTable, record: ComparisonRecord) -> dict[str, Any]:
    """What the page shows of a score table next to its rows: columns that any row has, budgets."""
    runs = {run.label: run for run in record.runs}
    columns = table.columns()
    texts = {
        quantity.key: aligned([format_metric(row.metrics.get(quantity.key), quantity) for row in table.all_rows])
        for quantity in (quantities()[REQUIRED], *columns)
    }
    rows = [
        {
            "row": row,
            "run": runs.get(row.run),
            "shown": {key: column[number] for key, column in texts.items()},
            "best": row is table.best(row.run) or not row.kinship.counts,
        }
        for number, row in enumerate(table.all_rows)
    ]
    budgets = record.budgets.get(table.key, [])
    return {
        "rows": rows,
        "columns": columns,
        "small": any(SMALL_N in row.badges for row in table.all_rows),
        "warnings": [(", ".join(runs), warning) for warning, runs in _warnings(table).items()],
        "hidden": sum(not entry["best"] for entry in rows),
        "training": budget_view([b for b in budgets if b.cost != "nfe"]),
        "nfe": budget_view([b for b in budgets if b.cost == "nfe"]),
    }


def _warnings(table: ScoreTable) -> dict[str, list[str]]:
    """The runs that each warning is about, each once."""
    runs: dict[str, list[str]] = {}
    for row in table.all_rows:
        for warning in row.warnings:
            names = runs.setdefault(warning, [])
            names += [] if row.run in names else [row.run]
    return runs


def budget_view(budgets: Sequence[EqualBudget]) -> dict[str, Any] | None:
    """Budgets as columns and runs as rows, the best of all budgets first; None where there is nothing."""
    if not budgets:
        return None
    labels = dict.fromkeys(label for budget in budgets for label in budget.cells)

    def best(label: str) -> float:
        return min((cell.score for b in budgets if (cell := b.cells.get(label))), default=float("inf"))

    winners = [min((c.score for c in b.cells.values() if c), default=None) for b in budgets]
    return {"budgets": budgets, "runs": sorted(labels, key=best), "winners": winners}


def conclusion(record: ComparisonRecord) -> str:
    """The first finding; where there is none, the methods that no independent evaluator has scored."""
    counts = Counter(method_label(run.method) for run in record.runs)
    methods = " and ".join(f"{count} {label} run{'s' if count > 1 else ''}" for label, count in counts.items())
    return record.findings[0] if record.findings else f"No independent evaluator has scored {methods}."


def scored_setup(figure: RunFigure, record: ComparisonRecord) -> str:
    """Method and NFE of the samples of a run, and its best score by an evaluator that is independent of it."""
    method = next(method_label(run.method) for run in record.runs if run.label == figure.run)
    shown = f"{method}, {figure.nfe} NFE"
    for table in record.score_tables:
        if (row := table.best(figure.run)) is not None:
            elsewhere = f" at {row.nfe} NFE" if row.nfe != figure.nfe else ""
            return f"{shown}, {table.name} {format_score(row.score)} by {table.extractor.name}{elsewhere}"
    return f"{shown}, no independent score"


def aligned(texts: Sequence[str]) -> list[str]:
    """Numbers of a column with spaces in place of absent decimals, so that their points stand below one another."""
    decimals = [0 if "e" in text else len(text.partition(".")[2]) for text in texts]
    longest = max(decimals, default=0)
    point, digit = "\u2008", "\u2007"  # spaces as wide as a point and as a digit
    return [
        text if "e" in text or count == longest else text + ("" if count else point) + digit * (longest - count)
        for text, count in zip(texts, decimals, strict=True)
    ]


def sparkline_points(run: RunSummary) -> str:
    """The main training curve of a run as points of an SVG polyline of 88 x 22."""
    curve = run.main_curve
    values = [v for point in run.curve if curve and (v := point.get(curve.key)) is not None]
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
    return f"data:{media_type};base64," + base64.b64encode(content).decode("ascii")
