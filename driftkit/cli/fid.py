"""`driftkit fid`: scores of generated images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, option, progress_bars

JUDGE, HOW, FILES = "What judges", "How a run is sampled", "Where it goes"


def command(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES|RUN",
            help="A run, a samples file, or a folder, archive or pack of images.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str,
        option("--reference", "-r", help="Real images: shapes, cifar10, a folder, an archive or a pack.", panel=JUDGE),
    ],
    features: Annotated[
        str,
        option("--features", help="inception, dinov2, or encoder:RUN with the folder of a MAE run.", panel=JUDGE),
    ] = "inception",
    features_weights: Annotated[
        Path | None,
        option(
            "--features-weights", help="Local weights file of the judge.", panel=JUDGE, default="cache, then download"
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        option("--num-images", "-n", help="How many images.", panel=JUDGE, default="50000 of a run, else all"),
    ] = None,
    image_size: Annotated[
        int | None,
        option("--image-size", help="Side in pixels to resize the reference to.", panel=JUDGE, default="as it is"),
    ] = None,
    sampler: Annotated[
        str | None,
        option("--sampler", help="one-step; ddim, ddpm or dpm-solver.", panel=HOW, default="one-step, or ddim"),
    ] = None,
    nfe: Annotated[
        int | None,
        option("--nfe", help="Network evaluations per image.", panel=HOW, default="1; ddim 50; dpm-solver 20"),
    ] = None,
    weights: Annotated[
        str | None, option("--weights", help="ema, or raw: the last weights.", panel=HOW, default="ema")
    ] = None,
    seed: Annotated[
        int | None, option("--seed", help="Image i is a function of (seed, i).", panel=HOW, default="0")
    ] = None,
    step: Annotated[
        int | None, option("--step", help="Checkpoint to sample.", panel=HOW, default="the last one")
    ] = None,
    batch_size: Annotated[
        int, option("--batch-size", "-b", help="Images at a time; changes speed, not scores.", panel=HOW)
    ] = 64,
    allow_collapsed: Annotated[
        bool,
        option("--allow-collapsed", help="Score images that are all alike, too (an untrained network).", panel=JUDGE),
    ] = False,
    repeats: Annotated[
        int, option("--repeats", help="Times a run is sampled and scored, each with its own seed.", panel=HOW)
    ] = 1,
    no_cache: Annotated[
        bool, option("--no-cache", help="Compute the reference's features anew and keep nothing.", panel=JUDGE)
    ] = False,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.", panel=HOW)] = "auto",
    output: Annotated[
        Path | None,
        option("--output", "-o", help="JSON file.", panel=FILES, default="in RUN/evaluations, or beside the samples"),
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Score images against real ones: FID, KID, precision and recall, beside what real images would score.

    [bold]Examples[/bold]

      driftkit fid outputs/drift_mocov2 --reference cifar10
      driftkit fid outputs/ddpm -r cifar10-test.zip --features encoder:outputs/mae -n 5000 --nfe 20
      driftkit fid outputs/ddpm/samples/ddim.safetensors -r shapes --features encoder:outputs/mae
    """
    from driftkit.errors import UsageError
    from driftkit.runtime.device import resolve_device
    from driftkit.stages.fid import Sampling, evaluate

    if weights not in (None, "ema", "raw"):
        raise UsageError(f"--weights {weights}: expected ema or raw")
    if image_size is not None and not 8 <= image_size <= 4096:
        raise UsageError(f"--image-size {image_size}: expected a side between 8 and 4096 pixels")
    if output is not None and output.suffix != ".json":
        raise UsageError(f"--output {output}: expected a name that ends in .json")
    with progress_bars() as report:
        made = evaluate(
            target,
            reference,
            features=features,
            features_weights=features_weights,
            num_images=num_images,
            sampling=Sampling(sampler=sampler, nfe=nfe, weights=weights, seed=seed, step=step),  # type: ignore[arg-type]
            image_size=image_size,
            batch_size=batch_size,
            device=resolve_device(device),
            output=output,
            allow_collapsed=allow_collapsed,
            repeats=repeats,
            use_cache=not no_cache,
            report=report,
        )
    document = {"evaluation": str(made.path), **made.document}
    emit(document, as_json=as_json, show=lambda: _show(document))
    return document


def _show(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=100, highlight=False)
    metrics, floor, extractor, reference = (document[k] for k in ("metrics", "floor", "extractor", "reference"))
    how = (
        f"{document['sampler']}, {document['nfe']} NFE, {document['weights']} weights"
        if document["sampler"]
        else "images"
    )
    console.print(f"[bold]{escape(document['run'] or document['target'])}[/bold]  {escape(how)}")
    console.print(
        escape(
            f"judged by {extractor['name']} ({extractor['dim']} features, weights {extractor['weights_digest'][:8]}) "
            f"against {reference['count']:,} images of {reference['spec']} ({reference['digest'][:8]})"
        )
    )
    if document["own_teacher"]:
        console.print("[bold red]judged by its own teacher[/bold red]: the encoder it was trained with")
    table = Table("score", "value", "real images would get")
    real = f"{floor['fid']:.4g} (two halves of {floor['num_images']:,})" if floor else "-"
    repeated = document.get("repeats")
    sd = f" ± {repeated['metrics']['fid']['sd']:.2g}" if repeated else ""
    table.add_row(document["name"], f"[bold]{metrics['fid']:.4g}[/bold]{sd}", real)
    if "kid_mean" in metrics:
        table.add_row("kid", f"{metrics['kid_mean']:.3g} ± {metrics['kid_std']:.2g}", "0")
    for key in ("precision", "recall", "density", "coverage"):
        if key in metrics:
            table.add_row(key, f"{metrics[key]:.3f}", "")
    if "inception_score_mean" in metrics:
        table.add_row("IS", f"{metrics['inception_score_mean']:.3f} ± {metrics['inception_score_std']:.2g}", "")
    console.print(table)
    if repeated:
        values = " ".join(f"{value:.4g}" for value in repeated["metrics"]["fid"]["values"])
        console.print(f"means over {len(repeated['seeds'])} seeds; {document['name']} ± sd of {values}")
    for warning in document["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    console.print(escape(document["evaluation"]), soft_wrap=True)
