"""`driftkit train`: one trainer for drifting, DDPM and MAE."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, note, option

WHAT, HOW, FILES = "What to train", "How to train", "Where it goes"

# Named options and the config keys they set.
CONFIG_KEYS = {
    "encoder": "objective.encoder",
    "encoder_weights": "objective.encoder_weights",
    "random_weights": "objective.random_weights",
    "input_size": "objective.input_size",
    "resize": "objective.resize",
    "features": "objective.feature_set",
    "taps": "objective.taps",
    "map_norm": "objective.map_norm",
    "cache_features": "objective.cache_features",
    "data": "data.spec",
    "image_size": "data.image_size",
    "steps": "trainer.steps",
    "batch_size": "trainer.batch_size",
    "learning_rate": "trainer.learning_rate",
    "micro_batch": "trainer.micro_batch",
    "precision": "trainer.precision",
    "compile": "trainer.compile",
    "checkpoint_every": "trainer.checkpoint_every",
    "sample_every": "trainer.sample_every",
    "eval_every": "evaluation.every",
    "fail_on_collapse": "trainer.fail_on_collapse",
    "seed": "seed",
}


def command(
    context: typer.Context,
    objective: Annotated[
        str | None,
        option("--objective", help="What to minimise: drift, ddpm, mae or classifier.", panel=WHAT, default="drift"),
    ] = None,
    encoder: Annotated[
        str | None,
        option(
            "--encoder",
            "-e",
            help="Encoder of the drift objective: a name, timm:MODEL, or the folder of a MAE or classifier run.",
            panel=WHAT,
            default="dinov2-multires",
        ),
    ] = None,
    encoder_weights: Annotated[
        str | None,
        option(
            "--encoder-weights", help="Local file with the encoder's weights.", panel=WHAT, default="cache, then hub"
        ),
    ] = None,
    random_weights: Annotated[
        bool | None, option("--random-weights", help="Leave the encoder untrained: shapes and speed only.", panel=WHAT)
    ] = None,
    input_size: Annotated[
        int | None,
        option("--input-size", help="Side in pixels the encoder sees.", panel=WHAT, default="the encoder's own"),
    ] = None,
    resize: Annotated[
        str | None,
        option("--resize", help="How images get there: bicubic or bilinear.", panel=WHAT, default="bicubic"),
    ] = None,
    features: Annotated[
        str | None,
        option(
            "--features",
            help="Feature set: multires, paper, paper-full, last, global or locations.",
            panel=WHAT,
            default="the encoder's own",
        ),
    ] = None,
    taps: Annotated[
        str | None,
        option(
            "--taps", help="Layers whose maps are used, for example block6,block12.", panel=WHAT, default="the table's"
        ),
    ] = None,
    map_norm: Annotated[
        str | None,
        option(
            "--map-norm",
            help="Normalisation of the maps: none, layer (each position) or final (the network's last norm).",
            panel=WHAT,
            default="the encoder's own",
        ),
    ] = None,
    data: Annotated[
        str | None,
        option(
            "--data",
            "-d",
            help="Images: shapes, cifar10, a folder, a .zip or .tar, or a pack.",
            panel=WHAT,
            default="cifar10",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        option("--image-size", help="Side in pixels to which images are brought.", panel=WHAT, default="as they are"),
    ] = None,
    preset: Annotated[
        str | None, option("--preset", "-p", help="Named settings to start from, for example cpu.", panel=HOW)
    ] = None,
    config: Annotated[
        Path | None, option("--config", help="TOML file with config sections, over the preset.", panel=HOW)
    ] = None,
    steps: Annotated[
        int | None, option("--steps", help="Optimizer steps of the run.", panel=HOW, default="50000")
    ] = None,
    batch_size: Annotated[
        int | None, option("--batch-size", "-b", help="Images per rank and step.", panel=HOW, default="128")
    ] = None,
    micro_batch: Annotated[
        int | None,
        option(
            "--micro-batch",
            help="Images in the networks at a time: less memory, the same gradient (dropout draws other masks), since "
            "the drifting field still sees the whole batch; accumulating gradients of small batches would be another, "
            "worse field.",
            panel=HOW,
            default="the whole batch",
        ),
    ] = None,
    cache_features: Annotated[
        bool | None,
        option(
            "--cache-features/--no-cache-features",
            help="Compute the features of real images once, and map them from disk.",
            panel=HOW,
            default="no-cache-features",
            envvar="DRIFTKIT_TRAIN_CACHE_FEATURES",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, option("--learning-rate", help="AdamW learning rate.", panel=HOW, default="0.0002")
    ] = None,
    precision: Annotated[
        str | None,
        option("--precision", help="float32, bfloat16, or auto: bfloat16 where it gains.", panel=HOW, default="auto"),
    ] = None,
    compile_network: Annotated[
        bool | None,
        option(
            "--compile/--no-compile",
            help="Compile the trained network and the frozen encoder.",
            panel=HOW,
            default="on a GPU, when 2,000 steps are left",
            envvar="DRIFTKIT_TRAIN_COMPILE",
        ),
    ] = None,
    fail_on_collapse: Annotated[
        bool | None,
        option(
            "--fail-on-collapse/--no-fail-on-collapse",
            help="Save and end with exit code 5 when generated features collapse (500 steps with less than a tenth of "
            "the spread of real ones: trainer.collapse_spread, .collapse_patience); else it warns. Drift only.",
            panel=HOW,
            default="no-fail-on-collapse",
            envvar="DRIFTKIT_TRAIN_FAIL_ON_COLLAPSE",
        ),
    ] = None,
    seed: Annotated[
        int | None, option("--seed", help="Every random draw follows from it.", panel=HOW, default="0")
    ] = None,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.", panel=HOW)] = "auto",
    assignments: Annotated[
        list[str] | None,
        option(
            "--set",
            help="Any other config value, as section.key=value; repeatable.",
            panel=HOW,
            envvar="DRIFTKIT_TRAIN_SET",
        ),
    ] = None,
    output: Annotated[
        Path | None, option("--output", "-o", help="Run folder.", panel=FILES, default="outputs/OBJECTIVE_ENCODER")
    ] = None,
    checkpoint_every: Annotated[
        int | None, option("--checkpoint-every", help="Steps between checkpoints.", panel=FILES, default="1000")
    ] = None,
    sample_every: Annotated[
        int | None, option("--sample-every", help="Steps between sample grids.", panel=FILES, default="500")
    ] = None,
    eval_every: Annotated[
        int | None,
        option(
            "--eval-every",
            help="Steps between fid scores of the averaged weights; by whom, against what and of how many images: "
            "--set evaluation.extractor, .reference, .num_images.",
            panel=FILES,
            default="0: none",
        ),
    ] = None,
    resume: Annotated[
        str, option("--resume", help="auto: go on with what the folder holds; never: refuse to.", panel=FILES)
    ] = "auto",
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            help="Print the resolved config with the origin of every value and what a step will cost, and stop. "
            "With --device cuda it counts for a GPU that need not be here.",
            panel=FILES,
        ),
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any] | None:
    """Train a drifting generator, a DDPM or a MAE encoder into one run folder; the same command again resumes it.

    [bold]Examples[/bold]

      driftkit train --encoder mocov2
      driftkit train --objective ddpm --data photos.zip --image-size 64
      driftkit train --objective mae --preset cpu --output outputs/mae
      driftkit train --encoder outputs/mae --preset cpu --steps 500
      torchrun --nproc-per-node=8 -m driftkit train --encoder mocov2

    A config value is taken from, later ones winning: class default, --preset, --config file, DRIFTKIT_TRAIN_*
    variable (DRIFTKIT_TRAIN_STEPS=500), --set, named option. With torchrun the drifting field sees all ranks' images.
    """
    from driftkit.config.layers import flatten
    from driftkit.errors import UsageError
    from driftkit.stages.train import train
    from driftkit.storage.writable import require_writable
    from driftkit.training.train_config import default_output, resolve_config

    if resume not in ("auto", "never"):
        raise UsageError(f"--resume {resume}: expected auto or never")
    given, from_environment = _given(context)
    resolved, origins = resolve_config(
        objective=objective,
        preset=preset,
        file=config,
        environment=from_environment,
        assignments=assignments or (),
        options=given,
    )
    folder = output or default_output(resolved)
    if dry_run:
        if int(os.environ.get("RANK", "0")) > 0:  # torchrun starts the line many times, and it is to be said once
            return None
        values = resolved.model_dump(mode="json")
        document: dict[str, Any] = {"output": str(folder), "config": values, "origins": origins}
        document |= _budget(resolved, device)
        emit(document, as_json=as_json, show=lambda: _show_plan(flatten(values), origins, folder, document))
        return document
    require_writable(folder, "--output", folder=True)
    result = train(resolved, folder, origins=origins, device=device, resume=resume)  # type: ignore[arg-type]
    result.ranks.stop()
    if not result.ranks.is_main:
        return None
    manifest = result.run.manifest()
    if result.resumed_from is not None:
        already = "already done" if result.resumed_from == manifest.step else f"resumed from step {result.resumed_from}"
        note(f"{folder}: {already}")
    keys = ("state", "step", "images_seen", "train_seconds", "parameters", "encoder", "device", "peak_memory_gib")
    document = {
        "run": str(folder),
        "resumed_from": result.resumed_from,
        **{key: getattr(manifest, key) for key in keys},
    }
    emit(document, as_json=as_json, show=lambda: _show_run(document))
    return document


def _given(context: typer.Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config values from named options, and from environment variables, each as nested sections."""
    from driftkit.config.layers import merge, nest

    layers: dict[str, list[Any]] = {"COMMANDLINE": [], "ENVIRONMENT": []}
    for name, value in context.params.items():
        key = CONFIG_KEYS.get("compile" if name == "compile_network" else name)
        source = context.get_parameter_source(name)
        if key and value is not None and source is not None and source.name in layers:
            value = [tap.strip() for tap in value.split(",")] if name == "taps" else value
            layers[source.name].append((name, nest(key, value)))
    return merge(layers["COMMANDLINE"])[0], merge(layers["ENVIRONMENT"])[0]


def _budget(config: Any, device: str) -> dict[str, Any]:
    """What a step will cost, or why that cannot be told yet."""
    from driftkit.errors import ArtifactError
    from driftkit.runtime.device import planned_device
    from driftkit.training.budget import training_budget

    try:
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        return {"budget": training_budget(config, ranks=ranks, device=planned_device(device))}
    except ArtifactError as error:  # the encoder of a pipeline whose earlier stage has not run
        return {"budget": None, "budget_unknown": str(error)}


def _show_plan(values: dict[str, Any], origins: dict[str, str], folder: Path, document: dict[str, Any]) -> None:
    from rich.markup import escape

    from driftkit.cli.budget_table import budget_table
    from driftkit.runtime.terminal import open_console

    _show_config(values, origins, folder)
    if document["budget"] is None:
        open_console(width=100).print(escape(f"cost of a step unknown: {document['budget_unknown']}"))
    else:
        open_console(width=100).print(*budget_table(document["budget"]), sep="\n")


def _show_config(values: dict[str, Any], origins: dict[str, str], folder: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from driftkit.runtime.terminal import open_console

    table = Table("key", "value", "from", title=escape(f"config of {folder}"), title_justify="left")
    for key, value in values.items():
        table.add_row(key, escape(str(value)), escape(origins.get(key, "default")))
    open_console(width=100).print(table)


def _show_run(document: dict[str, Any]) -> None:
    from rich.markup import escape

    from driftkit.runtime.terminal import open_console

    folder = escape(document["run"])
    open_console(width=100, highlight=False).print(
        f"[bold]{folder}[/bold]: {document['state']} at step {document['step']:,}, {document['images_seen']:,} images, "
        f"{document['train_seconds']:.0f} s on {document['device']}\n"
        f"pictures in {folder}/samples, weights in {folder}/checkpoints"
    )
