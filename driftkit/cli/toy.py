"""`driftkit toy`: drifting on points in the plane, as pictures and numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftkit.cli.options import Given, typed_place, with_settings
from driftkit.cli.output import JsonOption, emit, show_line
from driftkit.config.layers import parse_assignments
from driftkit.errors import UsageError
from driftkit.stages.toy import gather_toys, toy
from driftkit.tutorial.toy_config import ToyConfig

if TYPE_CHECKING:
    from driftkit.tutorial.toy_record import ToyRecord, ToyScores, ToyTable

WIDTH = 100
GATHERED = ("output", "frames")  # settings of toys side by side


@with_settings("toy", ToyConfig)
def command(
    given: Given,
    toys: Annotated[
        list[Path] | None,
        typer.Argument(metavar="TOY", help="Folders of earlier toys, to show side by side.", callback=typed_place),
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Train a generator of points in the plane by drifting, in seconds; or show earlier toys side by side.

    [bold]Examples[/bold]

      driftkit run pipelines/toy.toml
      driftkit toy --points swiss-roll
      driftkit toy --points two-modes --start collapsed --output outputs/collapsed
      driftkit toy --points two-modes --repulsion 1.5 --seed 3 --json
      driftkit toy outputs/collapsed outputs/toy/swiss-roll-middle -o outputs/toys

    Writes toy.gif (real and generated points, and the field V at some of them), toy.png and toy.json.
    """
    settings = given.resolve(ToyConfig)
    if toys:
        _refuse_training_options(given)
        table = gather_toys(toys, settings)
        emit(table.document(), as_json=as_json, show=lambda: _show_table(table))
        return table.document()
    record = toy(settings)
    emit(record.document(), as_json=as_json, show=lambda: _show(record))
    return record.document()


def _refuse_training_options(given: Given) -> None:
    """What would do nothing to toys that are trained already; files and variables may be for others, too."""
    for key in {**parse_assignments(given.assignments), **given.options}:
        if key not in GATHERED:
            raise UsageError(
                f"`{key}` is for training a toy, and folders of trained ones are given; leave out one of them"
            )


def _show(record: "ToyRecord") -> None:
    scores = record.scores
    show_line(
        f"energy distance {scores.energy_distance:.4f} (real against real {scores.energy_distance_floor:.4f}), "
        f"drift norm {scores.drift_norm:.3f} (real {scores.drift_norm_floor:.3f}), {_modes(scores)} modes, "
        f"{scores.on_data:.0%} on the data; {record.path}"
    )


def _show_table(table: "ToyTable") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from driftkit.runtime.terminal import open_console

    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # which fits 80 columns
    shown.add_column("toy", no_wrap=True)
    for column in ("energy\ndistance", "\nreal", "drift\nnorm", "\nreal", "\nmodes", "on\ndata", "\nspacing"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in table.toys:
        scores = row.scores
        shown.add_row(
            escape(row.name),
            f"{scores.energy_distance:.4f}",
            f"[dim]{scores.energy_distance_floor:.4f}[/dim]",
            f"{scores.drift_norm:.3f}",
            f"[dim]{scores.drift_norm_floor:.3f}[/dim]",
            _modes(scores),
            f"{scores.on_data:.0%}",
            f"{scores.spacing:.2f}",
        )
    open_console(most=WIDTH, highlight=False).print(shown)
    show_line(f"side by side: {table.path}")


def _modes(scores: "ToyScores") -> str:
    return f"{scores.modes_covered} of {scores.num_modes}"
