"""`driftkit sample`: images of a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli import completion
from driftkit.cli.options import with_settings
from driftkit.cli.output import JsonOption, emit, progress_bars, show_line
from driftkit.stages.sample import SampleConfig, sample


@with_settings("sample", SampleConfig)
def command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a run that generates images.", autocompletion=completion.runs),
    ],
    settings: SampleConfig,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Generate images with a trained run: one safetensors file (uint8 [N,3,H,W]), its JSON record and a PNG grid.

    Keys of --set that are no settings of this command are options of the sampler, for example eta=1.0.

    [bold]Examples[/bold]

      driftkit sample outputs/drift_mocov2
      driftkit sample outputs/ddpm --num-images 1000 --sampler dpm-solver --nfe 20
      driftkit sample outputs/ddpm --sampler ddim --nfe 100 --set eta=1.0 --seed 7
      driftkit sample outputs/ddpm --class cat,dog --guidance 2
    """
    from driftkit.training.conditions import conditions_label  # loads torch

    with progress_bars() as report:
        samples = sample(run, settings, report=report)
    grid, record = samples.path.with_suffix(".png"), samples.record
    document = {"samples": str(samples.path), "grid": str(grid), **record.model_dump(mode="json")}

    def show() -> None:
        asked = conditions_label(record.asked_classes, record.guidance)
        setup = f"{record.sampler}{asked}, {record.nfe} NFE, {record.weights} weights"
        show_line(f"{record.num_images} images ({setup}): {samples.path}")
        show_line(f"grid: {grid}")

    emit(document, as_json=as_json, show=show)
    return document
