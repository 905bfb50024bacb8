"""`driftkit sample`: images of a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, option, progress_bars, show_line

HOW, FILES = "How to sample", "Where it goes"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a drift or ddpm run.", show_default=False)],
    num_images: Annotated[int, option("--num-images", "-n", help="How many images.", panel=HOW)] = 64,
    sampler: Annotated[
        str | None,
        option(
            "--sampler",
            help="one-step; ddim, ddpm or dpm-solver.",
            panel=HOW,
            default="one-step, or ddim for ddpm runs",
        ),
    ] = None,
    nfe: Annotated[
        int | None,
        option(
            "--nfe", help="Network evaluations per image.", panel=HOW, default="1; ddim 50; dpm-solver 20; ddpm 1000"
        ),
    ] = None,
    seed: Annotated[int, option("--seed", help="Image i is a function of (seed, i).", panel=HOW)] = 0,
    weights: Annotated[str, option("--weights", help="ema, or raw: the last weights.", panel=HOW)] = "ema",
    step: Annotated[
        int | None, option("--step", help="Checkpoint to sample.", panel=HOW, default="the last one")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        option("--set", help="Sampler option as key=value, for example eta=1.0; repeatable.", panel=HOW),
    ] = None,
    precision: Annotated[
        str | None,
        option(
            "--precision",
            help="float32, bfloat16, or auto: bfloat16 where it gains.",
            panel=HOW,
            default="as in training",
        ),
    ] = None,
    batch_size: Annotated[int, option("--batch-size", "-b", help="Images at a time.", panel=HOW)] = 256,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.", panel=HOW)] = "auto",
    output: Annotated[
        Path | None,
        option(
            "--output", "-o", help="Safetensors file; JSON and PNG go beside it.", panel=FILES, default="in RUN/samples"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Generate images with a trained run: one safetensors file (uint8 [N,3,H,W]), its JSON record and a PNG grid.

    [bold]Examples[/bold]

      driftkit sample outputs/drift_mocov2
      driftkit sample outputs/ddpm --num-images 1000 --sampler dpm-solver --nfe 20
      driftkit sample outputs/ddpm --sampler ddim --nfe 100 --set eta=1.0 --seed 7
    """
    from driftkit.config.layers import parse_assignments
    from driftkit.errors import UsageError
    from driftkit.runtime.device import resolve_device
    from driftkit.stages.sample import sample
    from driftkit.storage.run_folder import Run
    from driftkit.storage.writable import require_replaceable, require_writable

    if weights not in ("ema", "raw"):
        raise UsageError(f"--weights {weights}: expected ema or raw")
    if precision not in (None, "auto", "float32", "bfloat16"):
        raise UsageError(f"--precision {precision}: expected auto, float32 or bfloat16")
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected at least 1")
    if output is not None and output.suffix != ".safetensors":
        raise UsageError(f"--output {output}: expected a name that ends in .safetensors")
    place = resolve_device(device)
    opened = Run.open(run)
    require_writable(output or run / "samples" / "samples.safetensors", "--output")
    if output is not None:
        require_replaceable(output, "--output", "samples")
    with progress_bars() as report:
        made = sample(
            opened,
            output,
            num_images=num_images,
            sampler=sampler,
            nfe=nfe,
            seed=seed,
            weights=weights,
            step=step,
            options=parse_assignments(assignments or ()),
            precision=precision,
            batch_size=batch_size,
            device=place,
            advance=lambda count: report("sample", count, num_images),
        )
    document = {
        "samples": str(made.path),
        "grid": str(made.path.with_suffix(".png")),
        **made.record.model_dump(mode="json"),
    }

    def show() -> None:
        show_line(f"{num_images} images ({made.record.sampler}, {made.record.nfe} NFE, {weights} weights): {made.path}")
        show_line(f"grid: {made.path.with_suffix('.png')}")

    emit(document, as_json=as_json, show=show)
    return document
