"""`driftkit prefetch`: fetch weights and CIFAR-10 before they are needed."""

from typing import Annotated, Any

import typer

from driftkit.cli import completion
from driftkit.cli.output import JsonOption, emit, note, option


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Encoders of driftkit probe-encoder --list, timm:MODEL, inception, evaluator:dinov2, "
            "autoencoder:OWNER/NAME, cifar10.",
            show_envvar=False,
            autocompletion=completion.fetched,
        ),
    ] = None,
    everything: Annotated[bool, option("--all", help="All that is published: many files, several GB.")] = False,
    force: Annotated[bool, option("--force", help="Download again what is here.")] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Download weights and CIFAR-10 for machines or times without a network, and check them.

    [bold]Examples[/bold]

      driftkit prefetch mocov2 inception cifar10
      driftkit prefetch evaluator:dinov2    an evaluator of driftkit fid, no encoder
      driftkit prefetch --all --json
    """
    from driftkit.errors import NotFoundError
    from driftkit.stages.prefetch import PrefetchRecord, prefetch, select

    done = prefetch(select(names or (), everything=everything), force=force, report=note)
    failed = [one.name for one in done if one.state == "failed"]
    document = PrefetchRecord(ok=not failed, files=done).document()
    emit(document, as_json=as_json, show=lambda: _show(document))
    if failed:
        are = "is" if len(failed) == 1 else "are"
        raise NotFoundError(f"{len(failed)} of {len(done)} {are} missing: {', '.join(failed)}; the reasons stand above")
    return document


def _show(document: dict[str, Any]) -> None:
    from rich.filesize import decimal
    from rich.markup import escape

    from driftkit.runtime.terminal import open_console

    console = open_console(highlight=False)
    colours = {"fetched": "green", "present": "green", "failed": "red"}
    for file in document["files"]:
        state = "missing" if file["state"] == "failed" else file["state"]
        text = file["reason"]
        if text is None:
            digest = f"sha256 {file['sha256'][:8]}, " if file["sha256"] else ""
            text = f"{file['file']}, {decimal(file['bytes'])}, {digest}checked: {file['checked']}, {file['path']}"
        # A line each, left to the terminal to wrap: a path or an address that was folded cannot be copied.
        console.print(f"[{colours[file['state']]}]{state}[/] [bold]{file['name']}[/]: {escape(text)}", soft_wrap=True)
