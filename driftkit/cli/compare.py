"""`driftkit compare`: runs side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, note, option, progress_bars

SPEED, FILES = "How speed is measured", "Where it goes"
WIDTH = 100


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; what is no run is left out and named.", show_default=False),
    ],
    speed: Annotated[
        bool, option("--speed/--no-speed", help="Time one step against DDIM at 10, 50 and 100 NFE.", panel=SPEED)
    ] = True,
    speed_batch: Annotated[
        int | None,
        option("--speed-batch", help="Images at a time, for all runs.", panel=SPEED, default="16, or 256 on CUDA"),
    ] = None,
    speed_seconds: Annotated[
        float, option("--speed-seconds", help="Most seconds to spend on one sampler; then it is scaled.", panel=SPEED)
    ] = 20.0,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.", panel=SPEED)] = "auto",
    output: Annotated[
        Path, option("--output", "-o", help="Folder of report.html, compare.json and the figures.", panel=FILES)
    ] = Path("outputs/comparison"),
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Compare runs: scores with their floors, curves, sample grids and speed, as a table and one report.html.

    [bold]Examples[/bold]

      driftkit compare outputs/*
      driftkit compare outputs/drift_mocov2 outputs/ddpm --output outputs/comparison
      driftkit compare outputs/* --no-speed --json
    """
    import torch

    from driftkit.errors import UsageError
    from driftkit.evaluation.speed import SpeedSettings
    from driftkit.runtime.device import autocast_dtype, resolve_device
    from driftkit.stages.compare import compare

    if speed_batch is not None and speed_batch < 1:
        raise UsageError(f"--speed-batch {speed_batch}: expected at least 1")
    if not 0 < speed_seconds < float("inf"):
        raise UsageError(f"--speed-seconds {speed_seconds}: expected a number above 0")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: expected a folder, found a file")
    place: torch.device = resolve_device(device)
    settings = SpeedSettings(
        device=place,
        dtype=autocast_dtype("auto", place),
        batch_size=speed_batch or (256 if place.type == "cuda" else 16),
        budget_seconds=speed_seconds,
    )
    with progress_bars() as report:
        made = compare(runs, output, speed=settings if speed else None, device=place, report=report)
    for entry in made.document["skipped"]:
        note(f"left out {entry['path']}: {entry['reason']}")
    document = {"report": str(made.report), **made.document}
    emit(document, as_json=as_json, show=lambda: _show(made))
    return document


def _show(made: Any) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(width=WIDTH, highlight=False)
    _show_runs(console, made)
    for table in made.tables:
        _show_scores(console, table)
    if made.speeds:
        _show_speeds(console, made)
    for message in made.document["notes"]:
        console.print(f"[yellow]note:[/yellow] {escape(message)}")
    console.print(escape(str(made.report)), soft_wrap=True)


def _show_runs(console: Any, made: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from driftkit.evaluation.table import format_count, format_score, format_seconds

    table = Table(title="runs", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in ("run", "method", "encoder"):
        table.add_column(heading, overflow="fold")
    for heading in ("steps", "images", "params", "train", "images/s", "NFE"):
        table.add_column(heading, justify="right", no_wrap=True)
    fastest: dict[str, Any] = {}
    for speed in made.speeds:
        if speed.run not in fastest or speed.images_per_second > fastest[speed.run].images_per_second:
            fastest[speed.run] = speed
    for run in made.runs:
        speed = fastest.get(run.label)
        table.add_row(
            escape(run.label),
            escape(run.method),
            escape((run.encoder or "–") + (" (random weights)" if run.random_weights else "")),
            format_count(run.steps),
            format_count(run.images_seen),
            format_count(run.parameters),
            format_seconds(run.train_seconds),
            format_score(speed.images_per_second) if speed else "–",
            str(speed.nfe) if speed else "–",
        )
    for run in made.encoders:
        cells = (format_count(run.steps), format_count(run.images_seen), format_count(run.parameters))
        table.add_row(
            f"[dim]{escape(run.label)}[/dim]", run.method, "–", *cells, format_seconds(run.train_seconds), "–", "–"
        )
    console.print(table)


def _show_scores(console: Any, scores: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from driftkit.evaluation.table import format_count, format_score, format_share

    table = Table(
        title=escape(f"{scores.name} by {scores.title}"), title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    for heading in ("run", "sampler"):
        table.add_column(heading, overflow="fold")
    for heading in ("NFE", scores.name, "floor", "KID", "precision", "recall"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in scores.rows:
        spread = f" ± {row.spread['fid']:.2g}" if "fid" in row.spread else ""
        table.add_row(
            escape(row.run) + "".join(f"\n[yellow]{escape(badge)}[/yellow]" for badge in row.badges),
            escape(row.sampler or "–"),
            format_count(row.nfe),
            f"[bold]{format_score(row.metrics['fid'])}[/bold]{spread}",
            format_score(row.floor),
            format_score(row.metrics.get("kid_mean")),
            *(format_share(row.metrics.get(key)) for key in ("precision", "recall")),
        )
    console.print(table)


def _show_speeds(console: Any, made: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from driftkit.evaluation.table import format_score

    settings = made.document["speed"]["settings"]
    compiled = "compiled" if settings["compiled"] else "not compiled"
    about = f"{settings['device']}, {settings['dtype']}, batch {settings['batch_size']}, {compiled}"
    table = Table(title=escape(f"speed: {about}"), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    table.add_column("sampler")
    for heading in ("NFE", "images/s", "ms per image"):
        table.add_column(heading, justify="right", no_wrap=True)
    for speed in sorted(made.speeds, key=lambda s: -s.images_per_second):
        rate = format_score(speed.images_per_second)
        table.add_row(
            escape(speed.run),
            escape(speed.sampler),
            str(speed.nfe),
            f"{rate} (scaled from {speed.measured_nfe} NFE)" if speed.scaled else rate,
            format_score(1000 / speed.images_per_second),
        )
    console.print(table)
