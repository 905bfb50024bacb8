"""`driftkit train`: one trainer for every method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from rich.table import Table

from driftkit.cli.completion import BY_NAME, choices
from driftkit.cli.options import Given, typed_place, with_settings
from driftkit.cli.output import JsonOption, emit, note, option
from driftkit.config.layers import preset_names
from driftkit.methods.registry import DEFAULT_METHOD, METHODS
from driftkit.runtime.environment import read_launch
from driftkit.runtime.terminal import open_console
from driftkit.training.train_config import FILES, TRAINING, TrainConfig

METHOD = "Method"


@with_settings("train", TrainConfig)
def command(
    objective: Annotated[
        str | None,
        option(
            "--objective",
            help="Method: what is trained.",
            panel=METHOD,
            notes=[f"default: {DEFAULT_METHOD}"],
            metavar="|".join(METHODS),
            autocompletion=choices(METHODS),
        ),
    ] = None,
    preset: Annotated[
        str | None,
        option(
            "--preset",
            "-p",
            help=f"Named settings to start from: {', '.join(preset_names())}.",
            panel=METHOD,
            metavar="NAME",
            autocompletion=choices(preset_names()),
        ),
    ] = None,
    given: Given = Given(),  # noqa: B008
    device: Annotated[
        str,
        option(
            "--device",
            help="Where it trains; auto: on a GPU if there is one.",
            panel=TRAINING,
            notes=["default: auto"],
            metavar="auto|cpu|cuda",
            autocompletion=BY_NAME["device"],
        ),
    ] = "auto",
    output: Annotated[
        Path | None,
        option(
            "--output",
            "-o",
            help="Run folder.",
            panel=FILES,
            notes=["default: outputs/OBJECTIVE_ENCODER"],
            metavar="PATH",
            callback=typed_place,
        ),
    ] = None,
    resume: Annotated[
        str,
        option(
            "--resume",
            help="auto: resume the run in the folder; never: refuse such a folder.",
            panel=FILES,
            notes=["default: auto"],
            metavar="auto|never",
            autocompletion=choices(["auto", "never"]),
        ),
    ] = "auto",
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            help="Print the values that are not defaults, with their origin, and the cost of a step, and stop. "
            "With --device cuda it counts for a GPU that need not exist.",
            panel=FILES,
        ),
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any] | None:
    """Train a network into one run folder; the same command again resumes it.

    [bold]Examples[/bold]

      driftkit train --encoder mocov2
      driftkit train --objective ddpm --data photos.zip --image-size 64
      driftkit train --objective mae --preset cpu --output outputs/mae
      driftkit train --encoder outputs/mae --preset cpu --steps 500
      driftkit train --encoder outputs/mae --encoder "mocov2?input_size=64"
      torchrun --nproc-per-node=8 -m driftkit train --encoder mocov2

    A config value is taken from, later ones winning: default, --preset, --config file, DRIFTKIT_TRAIN_* variable
    (DRIFTKIT_TRAIN_STEPS=500), --set, named option. With torchrun the drifting field sees all ranks' images.
    """
    from driftkit.config.layers import flatten
    from driftkit.errors import UsageError
    from driftkit.stages.train import missing_inputs, train
    from driftkit.storage.writable import require_writable
    from driftkit.training.train_config import default_output, resolve_config

    if resume not in ("auto", "never"):
        raise UsageError(f"`resume` {resume}: expected auto or never")
    resolved, origins = resolve_config(
        objective=objective,
        preset=preset,
        file=given.file,
        environment=given.environment,
        assignments=given.assignments,
        options=given.options,
    )
    folder = output or default_output(resolved)
    if dry_run:
        if read_launch().rank > 0:  # torchrun starts the line many times; one prints it
            return None
        values = resolved.model_dump(mode="json")
        document: dict[str, Any] = {"output": str(folder), "config": values, "origins": origins}
        document |= _budget(resolved, device) | {"missing": missing_inputs(resolved)}
        emit(document, as_json=as_json, show=lambda: _show_plan(flatten(values), origins, folder, document))
        return document
    require_writable(folder, "`output`", folder=True)
    result = train(resolved, folder, origins=origins, device=device, resume=resume)  # type: ignore[arg-type]
    result.ranks.stop()
    if not result.ranks.is_main:
        return None
    manifest = result.run.manifest()
    if result.resumed_from == manifest.step:
        note(f"{folder}: already done")
    keys = {"state", "step", "images_seen", "train_seconds", "parameters", "encoder", "device", "peak_memory_gib"}
    document = {"run": str(folder), "resumed_from": result.resumed_from, **manifest.model_dump(include=keys)}
    emit(document, as_json=as_json, show=lambda: _show_run(document))
    return document


def _budget(config: Any, device: str) -> dict[str, Any]:
    """What a step will cost, or why that is not known yet."""
    from driftkit.errors import ArtifactError
    from driftkit.runtime.device import planned_device
    from driftkit.training.budget import training_budget

    try:
        return {"budget": training_budget(config, ranks=read_launch().world_size, device=planned_device(device))}
    except ArtifactError as error:  # the encoder of a pipeline whose earlier stage has not run
        return {"budget": None, "budget_unknown": str(error)}


ALWAYS_SHOWN = ("data.spec", "trainer.steps", "trainer.batch_size", "trainer.learning_rate")


def _show_plan(values: dict[str, Any], origins: dict[str, str], folder: Path, document: dict[str, Any]) -> None:
    table = Table("key", "value", "from", title=escape(f"config of {folder}"), title_justify="left")
    shown = [key for key in values if key in ALWAYS_SHOWN or origins.get(key, "default") != "default"]
    for key in shown:
        table.add_row(key, escape(str(values[key])), escape(origins.get(key, "default")))
    open_console(most=100).print(table)
    open_console(most=100).print(f"{len(values) - len(shown)} further keys have their default; --json has them all")
    if document["budget"] is None:
        open_console(most=100).print(escape(f"cost of a step unknown: {document['budget_unknown']}"))
    else:
        open_console(most=100).print(*budget_table(document["budget"]), sep="\n")
    for line in document["missing"]:
        open_console(most=100).print(f"[yellow]missing:[/] {escape(line)}")


def _show_run(document: dict[str, Any]) -> None:
    folder = escape(document["run"])
    pictures = f"pictures in {folder}/samples, " if any(Path(document["run"], "samples").glob("*.png")) else ""
    open_console(most=100, highlight=False).print(
        f"[bold]{folder}[/bold]: {document['state']} at step {document['step']:,}, {document['images_seen']:,} images, "
        f"{document['train_seconds']:.0f} s on {document['device']}\n"
        f"{pictures}weights in {folder}/checkpoints"
    )


GIB, TERA = 2**30, 1e12


def budget_table(budget: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """A column per number of GPUs or processes, what the counts leave out, and a line per piece of advice."""
    steps, shapes = budget["steps"], budget["shapes"]
    one = "GPU" if shapes["device"] == "cuda" else "process"
    many = "GPUs" if shapes["device"] == "cuda" else "processes"
    table = Table(title=f"cost of a step of {budget['images']} images, per rank", title_justify="left")
    table.add_column("")
    for number, step in enumerate(steps):
        count = f"{step['ranks']} {one if step['ranks'] == 1 else many}"
        table.add_column(f"{count} (this run)" if number == 0 else count, justify="right")
    for name, number in budget["step_images"].items():
        table.add_row(f"{name}, of all ranks" if name == "groups" else name, *(str(number) for _ in steps))
    table.add_row("images", *(str(step["images_per_rank"]) for step in steps))
    drifting = shapes["batch"] is not None
    rows = {
        "features received, MiB": ("gathered_bytes", 2**20, drifting),
        "gradients received, MiB": ("gradient_bytes", 2**20, True),
        "trained network, TFLOP": ("network_flops", TERA, True),
        "encoder, TFLOP": ("encoder_flops", TERA, drifting),
        "field, TFLOP": ("field_flops", TERA, drifting),
        "memory, GiB": ("memory_bytes", GIB, True),
        "  weights and optimizer": ("state_bytes", GIB, True),
        "  kept for backward": ("saved_bytes", GIB, True),
        "  gathered features": ("feature_bytes", GIB, drifting),
        "  field": ("field_bytes", GIB, drifting),
    }
    for label, (key, unit, shown) in rows.items():
        if shown:
            table.add_row(label, *(f"{step[key] / unit:,.3g}" for step in steps))
    where = "a GPU" if shapes["device"] == "cuda" else "a CPU"
    network = f"trained network: {shapes['parameters'] / 1e6:,.3g} M parameters"
    counted = f"memory: {shapes['dtype']} on {where}, without what lives for a moment only"
    return table, "; ".join([network, counted, *budget["assumed"]]), *budget["advice"]
