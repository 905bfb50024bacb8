"""`driftkit prefetch`: weights and CIFAR-10, brought before they are needed."""

from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, note, option


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Encoders as driftkit doctor lists them, inception, evaluator:dinov2, cifar10.",
            show_default=False,
            show_envvar=False,
        ),
    ] = None,
    everything: Annotated[bool, option("--all", help="All of them: many files, several GB.")] = False,
    force: Annotated[bool, option("--force", help="Fetch again what is here.")] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Fetch weights and CIFAR-10 for machines or times without a network, and check what came.

    [bold]Examples[/bold]

      driftkit prefetch mocov2 inception cifar10
      driftkit prefetch evaluator:dinov2          the judge of driftkit fid --features dinov2, not an encoder
      driftkit prefetch --all --json
    """
    from driftkit.errors import MissingError
    from driftkit.stages.prefetch import prefetch, select

    done = prefetch(select(names or (), everything=everything), force=force, report=note)
    failed = [one.item.name for one in done if one.state == "failed"]
    document = {"ok": not failed, "files": [one.document() for one in done]}
    emit(document, as_json=as_json, show=lambda: _show(document))
    if failed:
        raise MissingError(f"{len(failed)} of {len(done)} are missing: {', '.join(failed)}; the reasons stand above")
    return document


def _show(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    here = [file for file in document["files"] if file["state"] != "failed"]
    table = Table("name", "state", "size", "sha256", "checked", "path", box=None, padding=(0, 2, 0, 0))
    table.columns[2].justify = "right"
    for column in table.columns[:5]:
        column.no_wrap = True
    table.columns[5].overflow = "fold"
    for file in here:
        state = "[green]fetched[/]" if file["state"] == "fetched" else "present"
        digest = (file["sha256"] or "-")[:8]
        table.add_row(file["name"], state, decimal(file["bytes"]), digest, file["checked"], escape(file["path"]))
    if here:
        console.print(table)
    for file in document["files"]:
        if file["state"] == "failed":
            console.print(f"[red]missing[/] [bold]{file['name']}[/]: {escape(file['reason'])}", soft_wrap=True)
