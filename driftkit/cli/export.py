"""`driftkit export`: the network of a run for other programs, with a model card."""

from typing import Any

from driftkit.cli.options import RunArgument, with_settings
from driftkit.cli.output import JsonOption, emit, show_line
from driftkit.config.export_config import ExportConfig


@with_settings("export", ExportConfig)
def command(
    run: RunArgument,
    settings: ExportConfig,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Export the network of a run as one file or a small run folder, with a model card.

    [bold]Examples[/bold]

      driftkit export outputs/drift_mocov2
      driftkit export outputs/drift_mocov2 --format onnx --output models/drift
      driftkit export outputs/ddpm --format torchscript --weights raw
      driftkit export outputs/drift --format run --dtype bfloat16 -o models/small
    """
    from driftkit.stages.export import export
    from driftkit.storage.run_folder import Run
    from driftkit.storage.writable import require_writable

    opened = Run.open(run)
    require_writable(settings.output or run / "exports" / "export", "`output`", folder=True)
    made = export(opened, settings)
    document = {"export": str(made.folder), "path": str(made.model), **made.document}

    def show() -> None:
        difference = made.document["difference"]
        checked = f", within {difference['largest']:.1e} of the network" if difference else ""
        setup = f"{settings.format}, {settings.weights} weights, step {made.document['step']}"
        show_line(f"{made.document['graph']} ({setup}){checked}")
        show_line(f"{made.model}\ncard: {made.folder / 'README.md'}")

    emit(document, as_json=as_json, show=show)
    return document
