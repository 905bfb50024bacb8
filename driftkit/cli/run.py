"""`driftkit run`: a staged pipeline."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, note, option, show_line

TORCHRUN_PROCESSES = 8  # in the lines that --dry-run shows


def command(
    pipeline: Annotated[Path, typer.Argument(metavar="PIPELINE", help="TOML file of stages.", show_default=False)],
    output: Annotated[
        Path | None, option("--output", "-o", help="Folder that {output} stands for.", default="the file's own")
    ] = None,
    stages: Annotated[list[str] | None, option("--stage", help="Run only the stage of this name; repeatable.")] = None,
    nproc: Annotated[
        int | None,
        option(
            "--nproc",
            help="Start every train and fid stage by torchrun with this many processes.",
            default="the file's own",
        ),
    ] = None,
    force: Annotated[bool, option("--force", help="Run stages that are done, too.")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="Print every stage's command and whether it would run.")] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Run a pipeline of stages; a stage whose inputs and config are unchanged is skipped.

    [bold]Examples[/bold]

      driftkit run pipelines/demo.toml
      driftkit run pipelines/demo.toml --dry-run
      driftkit run pipelines/demo.toml --stage drift --stage report
      driftkit run pipelines/cifar10-encoders.toml --nproc 8
    """
    import contextlib
    import shlex
    import sys

    from driftkit.cli.app import check, invoke
    from driftkit.errors import UsageError
    from driftkit.stages.run import Stage, is_done, load_pipeline, require_stages, run_pipeline
    from driftkit.storage.writable import require_writable

    if nproc is not None and nproc < 1:
        raise UsageError(f"--nproc {nproc}: expected at least 1 process")
    loaded = load_pipeline(pipeline, output=output, nproc=nproc)
    for stage in loaded.stages:
        check([stage.command, *stage.arguments], where=f"{pipeline}: stage {stage.name}")
    require_stages(loaded, stages or ())
    if dry_run:
        plan = [
            {
                "name": s.name,
                "state": "done" if is_done(loaded, s) else "would run",
                "command": shlex.join(s.command_line()),
                # By hand, on one GPU and on several of one machine, where the field sees as many times the images.
                **(
                    {
                        "one_process": shlex.join(s.command_line(1)),
                        "torchrun": shlex.join(s.command_line(max(s.nproc, TORCHRUN_PROCESSES))),
                    }
                    if s.command == "train"
                    else {}
                ),
            }
            for s in loaded.stages
            if not stages or s.name in stages
        ]
        document: dict[str, Any] = {"pipeline": loaded.name, "output": str(loaded.output), "stages": plan}

        def show_plan() -> None:
            for row in plan:
                lines = [row["one_process"], row["torchrun"]] if "torchrun" in row else [row["command"]]
                show_line("\n  ".join([f"{row['name']} ({row['state']})", *lines]))
            note(
                f"--batch-size counts per process: {TORCHRUN_PROCESSES} processes see {TORCHRUN_PROCESSES} times the "
                f"images per step; one sees as many with {TORCHRUN_PROCESSES} times the --batch-size and --micro-batch"
            )

        emit(document, as_json=as_json, show=show_plan)
        return document

    require_writable(loaded.output, "--output", folder=True)

    def report(number: int, stage: Stage, state: str, seconds: float) -> None:
        line = f"[{number}/{len(loaded.stages)}] {stage.name}: {state}"
        note(
            line
            + (
                f" in {seconds:.0f} s"
                if state == "done"
                else f": {shlex.join(stage.command_line())}"
                if state == "runs"
                else ""
            )
        )

    def execute(arguments: Any) -> Any:
        # What stages print is progress of the pipeline where its own result is to be the only document on stdout.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            return invoke(arguments)

    records = run_pipeline(loaded, execute, only=stages or (), force=force, report=report)
    document = {"pipeline": loaded.name, "output": str(loaded.output), "stages": records}

    def show() -> None:
        done = sum(r["state"] == "done" for r in records)
        seconds = sum(r.get("seconds", 0) for r in records)
        show_line(
            f"{loaded.name}: {done} stages run in {seconds:.0f} s, {len(records) - done} unchanged; "
            f"results in {loaded.output}"
        )

    emit(document, as_json=as_json, show=show)
    return document
