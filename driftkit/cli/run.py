"""`driftkit run`: a staged pipeline."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli import completion
from driftkit.cli.options import typed_place, with_settings
from driftkit.cli.output import JsonOption, emit, note, show_line
from driftkit.config.pipeline_file import Pipeline, RunConfig, Stage, load_pipeline

TORCHRUN_PROCESSES = 8  # in the lines that --dry-run shows


@with_settings("run", RunConfig)
def command(
    pipeline: Annotated[
        Path,
        typer.Argument(
            metavar="PIPELINE", help="TOML file of stages.", autocompletion=completion.pipelines, callback=typed_place
        ),
    ],
    settings: RunConfig,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Run a pipeline of stages; a stage whose inputs and settings are unchanged is skipped.

    [bold]Examples[/bold]

      driftkit run pipelines/demo.toml
      driftkit run pipelines/demo.toml --dry-run
      driftkit run pipelines/demo.toml --stage drift --stage report
      driftkit run pipelines/cifar10-encoders.toml --nproc 8
    """
    from driftkit.cli.app import check, invoke
    from driftkit.stages.run import require_stages, run_pipeline
    from driftkit.storage.writable import require_writable

    loaded = load_pipeline(pipeline, output=settings.output, nproc=settings.nproc)
    for stage in loaded.stages:
        check([stage.command, *stage.arguments], where=f"{pipeline}: stage {stage.name}")
    require_stages(loaded, settings.stage)
    if settings.dry_run:
        return _plan(loaded, settings.stage, as_json=as_json)
    require_writable(loaded.output, "`output`", folder=True)

    def report(number: int, stage: Stage, state: str, seconds: float, left: str) -> None:
        left = f" ({left})" if left else ""
        details = {"runs": f"{left}: {shlex.join(stage.command_line())}", "done": f" in {seconds:.0f} s"}
        note(f"stage {number} of {len(loaded.stages)}, {stage.name}: {state}{details.get(state, '')}")

    def execute(arguments: Any) -> Any:
        # With --json the pipeline's own document is the only one on stdout.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            return invoke(arguments)

    rows = run_pipeline(loaded, execute, only=settings.stage, force=settings.force, report=report)
    document = {"pipeline": loaded.name, "output": str(loaded.output), "stages": rows}

    def show() -> None:
        ran = [row["seconds"] for row in rows if row["state"] == "done"]
        unchanged = len(rows) - len(ran)
        show_line(
            f"{loaded.name}: {len(ran)} stages run in {sum(ran):.0f} s, {unchanged} unchanged; "
            f"results in {loaded.output}"
        )

    emit(document, as_json=as_json, show=show)
    return document


def _plan(pipeline: Pipeline, only: tuple[str, ...], *, as_json: bool) -> dict[str, Any]:
    """Print the stages, their commands and whether they would run."""
    from driftkit.stages.run import is_done

    rows = []
    for stage in pipeline.stages:
        if only and stage.name not in only:
            continue
        state = "done" if is_done(pipeline, stage) else "would run"
        row = {"name": stage.name, "state": state, "command": shlex.join(stage.command_line())}
        if stage.command == "train":  # by hand, on one GPU and on several of one machine
            row["one_process"] = shlex.join(stage.command_line(1))
            row["torchrun"] = shlex.join(stage.command_line(max(stage.nproc, TORCHRUN_PROCESSES)))
        rows.append(row)
    document: dict[str, Any] = {"pipeline": pipeline.name, "output": str(pipeline.output), "stages": rows}

    def show() -> None:
        for row in rows:
            lines = [row["one_process"], row["torchrun"]] if "torchrun" in row else [row["command"]]
            show_line("\n  ".join([f"{row['name']} ({row['state']})", *lines]))
        note(
            f"--batch-size counts per process: {TORCHRUN_PROCESSES} processes see {TORCHRUN_PROCESSES} times the "
            f"images per step; one sees as many with {TORCHRUN_PROCESSES} times the --batch-size and --micro-batch"
        )

    emit(document, as_json=as_json, show=show)
    return document
