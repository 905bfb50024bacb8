"""`driftkit export`: the network of a run for other programs, with a model card."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, option, show_line

MODEL, FILES = "Model", "Output"


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run that generates images.", show_default=False)
    ],
    format: Annotated[
        str,
        option("--format", help="File format: safetensors, onnx (needs the extra onnx) or torchscript.", panel=MODEL),
    ] = "safetensors",
    weights: Annotated[
        str, option("--weights", help="Weights: ema, or raw: the last ones, not averaged.", panel=MODEL)
    ] = "ema",
    step: Annotated[
        int | None, option("--step", help="Step of the checkpoint.", panel=MODEL, default="the last one")
    ] = None,
    output: Annotated[
        Path | None,
        option(
            "--output",
            "-o",
            help="Folder of the model, README.md and model.json.",
            panel=FILES,
            default="RUN/exports/FORMAT",
        ),
    ] = None,
    force: Annotated[bool, option("--force", help="Replace an earlier export in that folder.", panel=FILES)] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Export the network of a run as one file, with a model card.

    [bold]Examples[/bold]

      driftkit export outputs/drift_mocov2
      driftkit export outputs/drift_mocov2 --format onnx --output models/drift
      driftkit export outputs/ddpm --format torchscript --weights raw
    """
    from driftkit.errors import UsageError
    from driftkit.stages.export import export
    from driftkit.storage.run_folder import Run
    from driftkit.storage.writable import require_writable

    if weights not in ("ema", "raw"):
        raise UsageError(f"`weights` {weights}: expected ema or raw")
    opened = Run.open(run)
    require_writable(output or run / "exports" / "export", "--output", folder=True)
    made = export(opened, output, format=format, weights=weights, step=step, force=force)  # type: ignore[arg-type]
    document = {"export": str(made.folder), "path": str(made.model), **made.document}

    def show() -> None:
        difference = made.document["difference"]
        checked = f", within {difference['largest']:.1e} of the network" if difference else ""
        show_line(f"{made.document['graph']} ({format}, {weights} weights, step {made.document['step']}){checked}")
        show_line(f"{made.model}\ncard: {made.folder / 'README.md'}")

    emit(document, as_json=as_json, show=show)
    return document
