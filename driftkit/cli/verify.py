"""`driftkit verify`: whether files are what was written."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli import completion
from driftkit.cli.options import typed_place
from driftkit.cli.output import JsonOption, emit

COLOURS = {"in use": "cyan", "unknown": "dim"}


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="Runs, packs, caches, statistics, samples, evaluations, or folders of these.",
            autocompletion=completion.runs,
            callback=typed_place,
        ),
    ],
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Read files and compare them with their checksums; name what is damaged, and what to do.

    [bold]Examples[/bold]

      driftkit verify outputs/drift
      driftkit verify outputs data ~/.cache/driftkit
      driftkit verify data/photos.safetensors --json

    A problem is a flipped bit, a file cut off, swapped or missing, or one of a newer version: exit code 3. What a
    killed process left half-written, and files that driftkit does not know, are notes. Nothing is changed.
    """
    from driftkit.errors import ArtifactError
    from driftkit.stages.verify import verify

    found = verify(paths)
    document = found.document()
    emit(document, as_json=as_json, show=lambda: _show(document))
    if not found.ok:
        count = len(document["problems"])
        raise ArtifactError(f"{count} problem{'s' if count > 1 else ''} in what was read; each is named with its fix")
    return document


def _show(document: dict[str, Any]) -> None:
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from driftkit.runtime.terminal import open_console

    console = open_console(highlight=False)
    for title, rows in (("problems", document["problems"]), ("notes", document["notes"])):
        if not rows:
            continue
        table = Table("state", f"file and {title[:-1]}", box=None, padding=(0, 2, 0, 0))
        table.columns[0].no_wrap, table.columns[1].overflow = True, "fold"
        for row in rows:
            colour = "red" if title == "problems" else COLOURS.get(row["kind"], "yellow")
            text = f"[bold]{escape(row['path'])}[/]: {escape(row.get('problem') or row['note'])}"
            table.add_row(f"[{colour}]{row['kind']}[/]", text)
            if "fix" in row:
                table.add_row("", f"fix: {escape(row['fix'])}")
        console.print(table)
    checked = ", ".join(f"{kind} ({count})" for kind, count in document["checked"].items())
    console.print(f"[bold]as written:[/] {escape(checked or 'nothing')}; {decimal(document['bytes'])} read")
