"""`driftkit compare`: runs side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, note, option, progress_bars

SCORES, SPEED, PICTURES, FILES = "Missing scores", "How speed is measured", "Pictures", "Where it goes"


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; what is no run is left out and named.", show_default=False),
    ],
    evaluate: Annotated[
        bool,
        option("--evaluate", help="First score what has no score yet, into the runs; needs --reference.", panel=SCORES),
    ] = False,
    reference: Annotated[
        str | None,
        option(
            "--reference",
            "-r",
            help="Real images to score against, or a file of statistics, as in fid.",
            panel=SCORES,
            default="none",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        option("--features", help="Evaluator, as in fid; repeat it for several.", panel=SCORES, default="inception"),
    ] = None,
    features_weights: Annotated[
        Path | None,
        option("--features-weights", help="Local weights file of the evaluator.", panel=SCORES, default="as in fid"),
    ] = None,
    num_images: Annotated[
        int | None, option("--num-images", "-n", help="Images per score.", panel=SCORES, default="50000")
    ] = None,
    nfe: Annotated[
        str, option("--nfe", help="Network evaluations at which ddim and dpm-solver are scored.", panel=SCORES)
    ] = "1,2,5,10,20,50,100",
    all_checkpoints: Annotated[
        bool, option("--all-checkpoints", help="Score every kept checkpoint, not only the last.", panel=SCORES)
    ] = False,
    allow_collapsed: Annotated[
        bool, option("--allow-collapsed", help="Score even images that are all alike.", panel=SCORES)
    ] = False,
    neighbours: Annotated[
        bool, option("--neighbours/--no-neighbours", help="Show the real images nearest to samples.", panel=PICTURES)
    ] = True,
    neighbours_in: Annotated[
        str | None,
        option("--neighbours-in", help="Images to seek them in.", panel=PICTURES, default="each run's training images"),
    ] = None,
    neighbours_by: Annotated[
        str, option("--neighbours-by", help="pixels, or features: those of the first --features.", panel=PICTURES)
    ] = "pixels",
    speed: Annotated[
        bool,
        option("--speed/--no-speed", help="Time every scored way of sampling, and DDIM at 10, 50, 100.", panel=SPEED),
    ] = True,
    speed_batch: Annotated[
        int | None,
        option("--speed-batch", help="Images at a time, for all runs.", panel=SPEED, default="16, or 256 on CUDA"),
    ] = None,
    speed_seconds: Annotated[
        float, option("--speed-seconds", help="Most seconds to spend on one run; then times are scaled.", panel=SPEED)
    ] = 20.0,
    speed_compile: Annotated[
        bool, option("--speed-compile", help="Compile all networks before they are timed.", panel=SPEED)
    ] = False,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.", panel=SPEED)] = "auto",
    output: Annotated[
        Path, option("--output", "-o", help="Folder of report.html, its data and its figures.", panel=FILES)
    ] = Path("outputs/comparison"),
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Compare runs: scores with their floors, cost, curves, sample grids and speed, as tables and one report.html.

    [bold]Examples[/bold]

      driftkit compare outputs/*
      driftkit compare outputs/drift_mocov2 outputs/ddpm --output outputs/comparison
      driftkit compare outputs/* --evaluate --reference cifar10 --num-images 10000
      driftkit compare outputs/* --evaluate -r photos.zip --features pixels
      driftkit compare outputs/* --no-speed --json
    """
    from driftkit.cli.compare_tables import show
    from driftkit.comparison.missing_scores import MissingScores
    from driftkit.comparison.run_pictures import NeighbourSearch
    from driftkit.comparison.speed import SpeedSettings
    from driftkit.datasets.sources import resolve
    from driftkit.errors import UsageError
    from driftkit.runtime.device import autocast_dtype, resolve_device
    from driftkit.stages.compare import compare
    from driftkit.storage.writable import require_writable

    if speed_batch is not None and speed_batch < 1:
        raise UsageError(f"--speed-batch {speed_batch}: expected at least 1")
    if not 0 < speed_seconds < float("inf"):
        raise UsageError(f"--speed-seconds {speed_seconds}: expected a number above 0")
    require_writable(output, "--output", folder=True)
    if evaluate and reference is None:
        raise UsageError("--evaluate: expected --reference SPEC, the real images to score against")
    if reference is not None and not evaluate:
        raise UsageError(f"--reference {reference}: scores are made with --evaluate only; add it")
    if neighbours_by not in ("pixels", "features"):
        raise UsageError(f"--neighbours-by {neighbours_by}: expected pixels or features")
    if num_images is not None and num_images < 10:
        raise UsageError(f"--num-images {num_images}: expected at least 10")
    evaluators = tuple(dict.fromkeys(features or ["inception"]))
    if len(evaluators) > 1 and features_weights is not None:
        raise UsageError(
            f"--features-weights: belongs to one evaluator, got {', '.join(evaluators)}; give one --features"
        )
    budgets = parse_nfe(nfe)
    if neighbours and neighbours_in is not None:
        resolve(neighbours_in, allow_download=False)
    place = resolve_device(device)
    missing = None
    if reference is not None:
        missing = MissingScores(
            reference,
            evaluators,
            features_weights,
            num_images,
            nfe=budgets,
            all_checkpoints=all_checkpoints,
            allow_collapsed=allow_collapsed,
            device=place,
        )
    extractor = None
    if neighbours and neighbours_by == "features":
        from driftkit.scoring.extractors import load_extractor

        extractor = load_extractor(evaluators[0], weights=features_weights, device=place)
    settings = SpeedSettings(
        device=place,
        dtype=autocast_dtype("auto", place),
        batch_size=speed_batch or (256 if place.type == "cuda" else 16),
        compiled=speed_compile,
        budget_seconds=speed_seconds,
    )
    with progress_bars() as report:
        made = compare(
            runs,
            output,
            missing=missing,
            speed=settings if speed else None,
            neighbours=NeighbourSearch(neighbours_in, extractor) if neighbours else None,
            device=place,
            report=report,
            tell=note,
        )
    for entry in made.document["skipped"]:
        note(f"left out {entry['path']}: {entry['reason']}")
    document = {"report": str(made.report), **made.document}
    emit(document, as_json=as_json, show=lambda: show(made))
    return document


def parse_nfe(words: str) -> tuple[int, ...]:
    """ "1,2,5" -> (1, 2, 5), sorted, each once.

    Raises:
        UsageError: a word that is no whole number from 1 on.
    """
    from driftkit.errors import UsageError

    parts = [word.strip() for word in words.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UsageError(f"--nfe {words}: expected whole numbers from 1 on with commas between, for example 1,10,50")
    return tuple(sorted({int(part) for part in parts}))
