"""`driftkit fid`: scores of generated images."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.fid_table import show
from driftkit.cli.output import JsonOption, emit, note, option, progress_bars

JUDGE, HOW, FILES = "Evaluator and images", "How a run is sampled", "Where it goes"


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
        option(
            "--reference",
            "-r",
            help="Real images (shapes, cifar10, a folder, an archive, a pack), or a file of statistics.",
            panel=JUDGE,
        ),
    ],
    features: Annotated[
        list[str] | None,
        option(
            "--features",
            help="Evaluator: inception, dinov2, clip, efficientnet-lite2 (installed), pixels, timm:MODEL, or "
            "encoder:RUN of a MAE or classifier run. Repeat it for several in one pass over the images.",
            panel=JUDGE,
            default="inception",
        ),
    ] = None,
    features_weights: Annotated[
        Path | None,
        option(
            "--features-weights",
            help="Local weights file of the evaluator, if there is one.",
            panel=JUDGE,
            default="cache, then download",
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
    precision: Annotated[
        str | None,
        option(
            "--precision",
            help="Number format of a run's network: float32, bfloat16, or auto: bfloat16 where it gains.",
            panel=HOW,
            default="float32",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        option(
            "--batch-size",
            "-b",
            help="Images at a time; changes speed, not scores.",
            panel=HOW,
            default="64; 256 on a GPU",
        ),
    ] = None,
    allow_collapsed: Annotated[
        bool,
        option("--allow-collapsed", help="Score images that are all alike, too (an untrained network).", panel=JUDGE),
    ] = False,
    allow_jpeg: Annotated[
        bool,
        option("--allow-jpeg", help="Score images stored as JPEG against others, too.", panel=JUDGE),
    ] = False,
    training: Annotated[
        str | None,
        option(
            "--training",
            help="Training images among which copies are looked for.",
            panel=JUDGE,
            default="the run's own, else the reference",
        ),
    ] = None,
    memorisation: Annotated[
        bool,
        option(
            "--memorisation/--no-memorisation",
            help="Look for copies of training images, in the features of the first evaluator.",
            panel=JUDGE,
        ),
    ] = True,
    repeats: Annotated[
        int | None,
        option(
            "--repeats",
            help="Score that many seeds (of a run) or disjoint parts (of images): mean, sd and all values.",
            panel=HOW,
            default="1",
        ),
    ] = None,
    all_checkpoints: Annotated[
        bool,
        option("--all-checkpoints", help="Score every checkpoint of the run: score against step.", panel=HOW),
    ] = False,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.", panel=HOW)] = "auto",
    cache: Annotated[
        bool,
        option(
            "--cache/--no-cache",
            help="Keep features of real images in DRIFTKIT_CACHE, and use those that are there.",
            panel=FILES,
        ),
    ] = True,
    write_statistics: Annotated[
        Path | None,
        option(
            "--write-statistics",
            help="Also write the reference's statistics here, as a --reference for others.",
            panel=FILES,
            default="none",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option("--output", "-o", help="JSON file.", panel=FILES, default="in RUN/evaluations, or beside the samples"),
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any] | None:
    """Score images against real ones: FID and what it hides, beside what real images would score.

    [bold]Examples[/bold]

      driftkit fid outputs/drift_mocov2 --reference cifar10
      driftkit fid outputs/ddpm -r photos.zip --features efficientnet-lite2
      driftkit fid outputs/drift -r cifar10 --features encoder:outputs/mae
      driftkit fid outputs/drift -r cifar10 -n 5000 --repeats 3
      driftkit fid outputs/drift -r cifar10 -n 2000 --all-checkpoints
      torchrun --nproc-per-node=8 -m driftkit fid outputs/drift -r cifar10

    Scores of an evaluator that is kin to the run's training encoder are marked: they flatter it and rank nothing.
    Exit code 5 means that a number would mislead: collapse, copies of one image, other sizes, JPEG against PNG.
    """
    from driftkit.datasets.sources import resolve
    from driftkit.errors import UsageError
    from driftkit.runtime.device import resolve_device
    from driftkit.runtime.ranks import Ranks, local_rank
    from driftkit.scoring.evaluator import Judging, Sampling, evaluate_with, open_judge, output_of
    from driftkit.scoring.image_set import is_run
    from driftkit.scoring.series import evaluate_checkpoints, evaluate_repeats
    from driftkit.storage.writable import require_replaceable

    evaluators = list(dict.fromkeys(features or ["inception"]))
    if len(evaluators) > 1 and (features_weights or write_statistics):
        other = "--features-weights" if features_weights else "--write-statistics"
        raise UsageError(f"{other}: belongs to one evaluator, got {', '.join(evaluators)}; give one --features")
    _check(weights, precision, image_size, num_images, output, write_statistics)
    _require_places(target, output, write_statistics)
    if training is not None and memorisation:
        resolve(training, allow_download=False)
    if repeats is not None and repeats < 2:
        raise UsageError(f"--repeats {repeats}: expected at least 2")
    if all_checkpoints and (repeats is not None or output is not None):
        other = "--repeats" if repeats is not None else "--output"
        raise UsageError(f"--all-checkpoints and {other} exclude each other: leave one out")
    if all_checkpoints and target.exists() and not is_run(target):
        raise UsageError(f"--all-checkpoints: {target} is no run")
    place = resolve_device(device, local_rank=local_rank())
    # Features travel between processes as CPU tensors, whatever device makes them.
    ranks = Ranks.start(device_type="cpu")
    sampling = Sampling(sampler, nfe, weights, seed, step, precision)  # type: ignore[arg-type]
    try:
        with _progress(shown=ranks.is_main) as report:
            judges = [
                open_judge(
                    reference,
                    features=evaluator,
                    features_weights=features_weights,
                    image_size=image_size,
                    batch_size=batch_size,
                    device=place,
                    # Copies are the same for all: they are looked for in the features of the first one alone.
                    judging=Judging(memorisation and number == 0, training, allow_collapsed, allow_jpeg),
                    cache=cache,
                    first_target=(target, sampling),
                    ranks=ranks,
                    report=report,
                    tell=note if ranks.is_main else lambda line: None,
                )
                for number, evaluator in enumerate(evaluators)
            ]
            for judge in judges:
                file = output_of(judge, output, several=len(judges) > 1)
                if file is not None:
                    require_replaceable(file, "--output", "evaluation")
            if write_statistics is not None:
                judges[0].write_statistics(write_statistics)
            if all_checkpoints:
                made = evaluate_checkpoints(judges, target, num_images=num_images, sampling=sampling)
            elif repeats is not None:
                made = evaluate_repeats(
                    judges, target, repeats, num_images=num_images, sampling=sampling, output=output
                )
            else:
                made = evaluate_with(judges, target, num_images=num_images, sampling=sampling, output=output)
    finally:
        ranks.stop()
    if not ranks.is_main:
        return None
    documents = [{"evaluation": str(one.path), **one.document} for one in made]
    document = documents[0] if len(documents) == 1 else {"evaluations": documents}
    emit(document, as_json=as_json, show=lambda: show(documents))
    return document


def _check(
    weights: str | None,
    precision: str | None,
    image_size: int | None,
    num_images: int | None,
    output: Path | None,
    write_statistics: Path | None,
) -> None:
    from driftkit.errors import UsageError

    if weights not in (None, "ema", "raw"):
        raise UsageError(f"--weights {weights}: expected ema or raw")
    if precision not in (None, "auto", "float32", "bfloat16"):
        raise UsageError(f"--precision {precision}: expected auto, float32 or bfloat16")
    if image_size is not None and not 8 <= image_size <= 4096:
        raise UsageError(f"--image-size {image_size}: expected a side between 8 and 4096 pixels")
    if num_images is not None and num_images < 1:
        raise UsageError(f"--num-images {num_images}: expected at least 10")
    if output is not None and output.suffix != ".json":
        raise UsageError(f"--output {output}: expected a name that ends in .json")
    if write_statistics is not None and write_statistics.suffix != ".safetensors":
        raise UsageError(f"--write-statistics {write_statistics}: expected a name that ends in .safetensors")


def _require_places(target: Path, output: Path | None, statistics: Path | None) -> None:
    """Ask before the hours of scoring whether what they give can be written."""
    from driftkit.scoring.image_set import is_run
    from driftkit.storage.writable import require_replaceable, require_writable

    place = output
    if place is None:
        place = target / "evaluations" / "score.json" if is_run(target) else target.with_name("score.json")
    if target.exists():
        require_writable(place, "--output")
    if output is not None:
        require_replaceable(output, "--output", "evaluation")
    if statistics is not None:
        require_writable(statistics, "--write-statistics")
        require_replaceable(statistics, "--write-statistics", "statistics")


@contextlib.contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Bars of the first process; the others work in silence."""
    if not shown:
        yield lambda what, done, total: None
        return
    with progress_bars() as report:
        yield report
