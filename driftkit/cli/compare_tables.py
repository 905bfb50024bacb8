"""A comparison in the terminal: tables of at most 100 columns with small curves."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from driftkit.comparison.formats import (
    format_count,
    format_rate,
    format_score,
    format_seconds,
    format_share,
    format_spread,
    sparkline,
)
from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_records import speed_of
from driftkit.comparison.score_table import SMALL_N, ScoreRow, ScoreTable
from driftkit.comparison.speed import Speed
from driftkit.runtime.terminal import open_console

WIDTH = 100
SPARK = 10
MOST_ROWS = 12


def show(made: Any) -> None:
    """Print a `stages.compare.Comparison`."""
    console = open_console(width=WIDTH, highlight=False)
    console.print(runs_table(made.runs, made.encoders))
    for table in made.tables:
        console.print(scores_table(table, made.speeds))
        if table.groups:
            console.print(groups_table(table))
    if made.speeds:
        console.print(speeds_table(made.speeds, made.document["speed"]["settings"]))
    for sentence in made.document["findings"]:
        console.print(escape(sentence))
    for sentence in (*made.document["cautions"], *made.document["notes"]):
        console.print(f"[yellow]note:[/yellow] {escape(sentence)}")
    console.print(escape(str(made.report)), soft_wrap=True)


def _table(title: str) -> Table:
    return Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def runs_table(runs: list[RunSummary], encoders: list[RunSummary]) -> Table:
    """What was spent on each run, with the curve of its drift norm or loss."""
    table = _table("runs")
    table.add_column("run", overflow="fold")
    for heading in ("seed", "steps", "images", "params", "train", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("drift norm / loss", no_wrap=True, min_width=SPARK + 7)
    for run in (*runs, *encoders):
        key = "drift_norm" if run.drift_norm is not None else "loss"
        curve = sparkline([point[key] for point in run.curve], width=SPARK)
        last = run.drift_norm if run.drift_norm is not None else run.loss
        style = "dim" if run in encoders else ""
        table.add_row(
            f"{escape(run.label)}\n[dim]{escape(run.kind)}[/dim]"
            + ("\n[yellow]random weights[/yellow]" if run.random_weights else ""),
            format_count(run.seed),
            format_count(run.steps),
            format_count(run.images_seen),
            format_count(run.parameters),
            format_seconds(run.train_seconds),
            "–" if run.peak_memory_gib is None else f"{run.peak_memory_gib:.1f} GiB",
            f"{curve} {format_score(last)}" if curve else format_score(last),
            style=style,
        )
    return table


def scores_table(scores: ScoreTable, speeds: list[Speed]) -> Table:
    """The best rows, and at least the best of every run."""
    table = _table(f"{scores.name} by {scores.title}")
    table.add_column("run", overflow="fold")
    table.add_column("sampler", overflow="fold")
    for heading in ("NFE", scores.name, "floor", "KID", "precision", "recall", "images/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [r for i, r in enumerate(scores.rows) if i < MOST_ROWS or r is scores.best(r.run)]
    for row in rows:
        table.add_row(*_score_cells(row, speeds))
    for row in scores.apart:
        table.add_row(*_score_cells(row, speeds), style="dim")
    if len(rows) < len(scores.rows):
        table.caption = f"{len(scores.rows) - len(rows)} further ways of sampling are in the report"
        table.caption_justify = "left"
    return table


def _score_cells(row: ScoreRow, speeds: list[Speed]) -> list[str]:
    spread = f" ± {format_spread(row.spread['fid'])}" if "fid" in row.spread else ""
    speed = speed_of(speeds, row.run, row.sampler, row.nfe)
    badges = [badge for badge in row.badges if badge != SMALL_N]  # that of the whole table, said below it
    return [
        escape(row.run) + "".join(f"\n[yellow]{escape(badge)}[/yellow]" for badge in badges),
        escape(row.sampler or "–"),
        format_count(row.nfe),
        f"[bold]{format_score(row.metrics['fid'])}[/bold]{spread}",
        format_score(row.floor),
        format_score(row.metrics.get("kid_mean")),
        *(format_share(row.metrics.get(key)) for key in ("precision", "recall")),
        format_rate(speed.images_per_second if speed else None),
    ]


def groups_table(scores: ScoreTable) -> Table:
    """Means over training seeds."""
    table = _table(f"{scores.name} across training seeds")
    table.add_column("runs", overflow="fold")
    for heading in ("NFE", "mean ± sd", "all values"):
        table.add_column(heading, justify="right", overflow="fold")
    for group in scores.groups:
        table.add_row(
            escape(group.kind),
            format_count(group.nfe),
            f"{format_score(group.fid_mean)} ± {format_spread(group.fid_sd)}",
            ", ".join(format_score(value) for value in group.fid_values),
        )
    return table


def speeds_table(speeds: list[Speed], settings: dict[str, Any]) -> Table:
    """Images per second of every run at its default sampler's usual NFE."""
    compiled = "compiled" if settings["compiled"] else "not compiled"
    about = f"{settings['device']}, {settings['dtype']}, batch {settings['batch_size']}, {compiled}"
    table = _table(f"speed: {about}")
    table.add_column("run", overflow="fold")
    table.add_column("sampler")
    for heading in ("NFE", "images/s", "ms per image"):
        table.add_column(heading, justify="right", no_wrap=True)
    ranked = sorted(speeds, key=lambda s: -s.images_per_second)
    for speed in ranked[:MOST_ROWS]:
        rate = format_rate(speed.images_per_second)
        table.add_row(
            escape(speed.run),
            escape(speed.sampler),
            str(speed.nfe),
            f"{rate} (scaled from {speed.measured_nfe} NFE)" if speed.scaled else rate,
            format_score(1000 / speed.images_per_second),
        )
    return table
