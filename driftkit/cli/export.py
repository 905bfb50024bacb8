"""`driftkit export`: the network of a run for other programs, with a model card."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, option, show_line

WHAT, FILES = "What is exported", "Where it goes"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a drift or ddpm run.", show_default=False)],
    format: Annotated[
        str, option("--format", help="safetensors, onnx (needs the extra onnx) or torchscript.", panel=WHAT)
    ] = "safetensors",
    weights: Annotated[str, option("--weights", help="ema, or raw: the last weights.", panel=WHAT)] = "ema",
    step: Annotated[
        int | None, option("--step", help="Checkpoint to export.", panel=WHAT, default="the last one")
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
    """Export the network of a run with a model card: noise to images of a drifting run, the denoiser of a DDPM.

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
        raise UsageError(f"--weights {weights}: expected ema or raw")
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
