"""A comparison in the terminal: tables of at most 100 columns with small curves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from driftkit.cli.options import with_flags
from driftkit.comparison.formats import (
    format_count,
    format_metric,
    format_rate,
    format_score,
    format_seconds,
    format_spread,
    sparkline,
)
from driftkit.comparison.report import SpeedSection
from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_table import SMALL_N, ScoreRow, ScoreTable
from driftkit.comparison.speed import Speed, speed_of
from driftkit.metrics.base import Quantity
from driftkit.runtime.terminal import open_console

if TYPE_CHECKING:
    from driftkit.stages.compare import Comparison

WIDTH = 100
SPARK = 6
MAX_ROWS = 12
MAX_METRICS = 3  # columns next to the ranking score


def show(comparison: "Comparison") -> None:
    """Print all tables, then the findings, cautions and notes."""
    console, record = open_console(most=WIDTH, highlight=False), comparison.record
    console.print(runs_table(record.runs, record.encoders))
    for table in record.score_tables:
        console.print(scores_table(table, record.speed.results))
        if table.groups:
            console.print(groups_table(table))
    if record.speed.results:
        console.print(speeds_table(record.speed))
    for sentence in record.findings:
        console.print(escape(sentence))
    for sentence in (*record.cautions, *record.notes):
        console.print(f"[yellow]note:[/yellow] {escape(with_flags(sentence, 'compare'))}")
    console.print(escape(str(comparison.report)), soft_wrap=True)


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table with columns of names, which may be folded, and of numbers."""
    table = Table(
        title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    for heading in names:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def runs_table(runs: list[RunSummary], encoders: list[RunSummary]) -> Table:
    """The cost of each run, with its main training curve."""
    table = _table("runs", ("run",), ("seed", "steps", "images", "params", "train", "memory"))
    table.add_column("progress", width=SPARK + 7)  # so that 80 columns have room for the name of an encoder
    for run in (*runs, *encoders):
        curve = run.main_curve
        progress = "–"
        if curve is not None:
            line = sparkline([point.get(curve.key) for point in run.curve], width=SPARK)
            progress = f"{line} {format_score(run.signals[curve.key])}".strip() + f"\n[dim]{escape(curve.label)}[/dim]"
        kind = escape(run.kind).replace(" · ", "\n")
        table.add_row(
            f"{escape(run.label)}\n[dim]{kind}[/dim]"
            + ("\n[yellow]random weights[/yellow]" if run.random_weights else ""),
            format_count(run.seed),
            format_count(run.steps),
            format_count(run.images_seen),
            format_count(run.parameters),
            format_seconds(run.train_seconds),
            "–" if run.peak_memory_gib is None else f"{run.peak_memory_gib:.1f} GiB",
            progress,
            style="dim" if run in encoders else "",
        )
    return table


def scores_table(scores: ScoreTable, speeds: list[Speed]) -> Table:
    """The best rows, and at least the best of every run, with the first metrics that any row has."""
    metrics = scores.columns()[:MAX_METRICS]
    numbers = ("NFE", scores.name, "floor", *(quantity.label for quantity in metrics), "images/s")
    table = _table(f"{scores.name} by {scores.title}", ("run", "sampler"), numbers)
    table.columns[1].no_wrap = True
    rows = [r for i, r in enumerate(scores.rows) if i < MAX_ROWS or r is scores.best(r.run)]
    # What holds of all rows is said once: few images are a caution on the whole table, the rest is its caption.
    common = set.intersection(*(set(row.badges) for row in (*rows, *scores.related)))
    for row in rows:
        table.add_row(*_score_cells(row, metrics, speeds, common))
    for row in scores.related:
        table.add_row(*_score_cells(row, metrics, speeds, common), style="dim")
    lines = [f"[yellow]{escape(badge)}[/yellow]" for badge in sorted(common - {SMALL_N})]
    if further := len(scores.rows) - len(rows):
        lines.append(f"further sampler setups in the report: {further}")
    if lines:
        table.caption, table.caption_justify = "\n".join(lines), "left"
    return table


def _score_cells(row: ScoreRow, metrics: list[Quantity], speeds: list[Speed], common: set[str]) -> list[str]:
    spread = f" ± {format_spread(row.score_sd)}" if row.score_sd is not None else ""
    speed = speed_of(speeds, row.run, row.sampler, row.nfe)
    badges = [badge for badge in row.badges if badge != SMALL_N and badge not in common]
    return [
        escape(row.run) + "".join(f"\n[yellow]{escape(badge)}[/yellow]" for badge in badges),
        escape(row.sampler or "–"),
        format_count(row.nfe),
        f"[bold]{format_score(row.score)}[/bold]{spread}",
        format_score(row.floor),
        *(format_metric(row.metrics.get(quantity.key), quantity) for quantity in metrics),
        format_rate(speed.images_per_second if speed else None),
    ]


def groups_table(scores: ScoreTable) -> Table:
    """Means over training seeds."""
    table = _table(f"{scores.name} across training seeds", ("runs",), ("NFE", "mean ± sd"))
    table.add_column("all values", justify="right", overflow="fold")
    for group in scores.groups:
        table.add_row(
            escape(group.kind),
            format_count(group.nfe),
            f"{format_score(group.mean)} ± {format_spread(group.sd)}",
            ", ".join(format_score(value) for value in group.scores),
        )
    return table


def speeds_table(speed: SpeedSection) -> Table:
    """Images per second of the fastest sampler setups."""
    settings = speed.settings or {}
    compiled = "compiled" if settings.get("compiled") else "not compiled"
    setup = f"{settings.get('device')}, {settings.get('dtype')}, batch {settings.get('batch_size')}, {compiled}"
    table = _table(f"speed: {setup}", ("run", "sampler"), ("NFE", "images/s", "ms per image"))
    for result in sorted(speed.results, key=lambda s: -s.images_per_second)[:MAX_ROWS]:
        rate = format_rate(result.images_per_second)
        table.add_row(
            escape(result.run),
            escape(result.sampler),
            str(result.nfe),
            f"{rate} (scaled from {result.measured_nfe} NFE)" if result.scaled else rate,
            format_score(1000 / result.images_per_second),
        )
    return table
