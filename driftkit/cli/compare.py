"""`driftkit compare`: runs side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli import completion
from driftkit.cli.options import typed_place, with_settings
from driftkit.cli.output import JsonOption, emit, note, progress_bars
from driftkit.comparison.compare_config import CompareConfig


@with_settings("compare", CompareConfig)
def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders; others are skipped and named.",
            autocompletion=completion.runs,
            callback=typed_place,
        ),
    ],
    settings: CompareConfig,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Compare runs: scores with their floors, cost, curves, sample grids and speed, as tables and one report.html.

    [bold]Examples[/bold]

      driftkit compare outputs/*
      driftkit compare outputs/drift_mocov2 outputs/ddpm --output outputs/comparison
      driftkit compare outputs/* --evaluate --reference cifar10 --num-images 10000
      driftkit compare outputs/* --evaluate -r photos.zip --extractor pixels
      driftkit compare outputs/* --no-speed --json
    """
    from driftkit.cli.compare_tables import show
    from driftkit.stages.compare import compare

    with progress_bars() as report:
        comparison = compare(runs, settings, report=report, notify=note)
    for entry in comparison.record.skipped:
        note(f"skipped {entry['path']}: {entry['reason']}")
    document = {"report": str(comparison.report), **comparison.record.document()}
    emit(document, as_json=as_json, show=lambda: show(comparison))
    return document
