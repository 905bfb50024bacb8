"""`driftkit sample`: images of a run."""

from typing import Any

from driftkit.cli.options import RunArgument, with_settings
from driftkit.cli.output import JsonOption, emit, note, progress_bars, show_line
from driftkit.stages.sample import SampleConfig, sample


@with_settings("sample", SampleConfig)
def command(
    run: RunArgument,
    settings: SampleConfig,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Generate images with a trained run, and write them with a JSON record and a PNG grid.

    They are one safetensors file (images, uint8 [N,3,H,W]), a folder of PNGs, an npz or a zip. The same command resumes
    one that was stopped.

    Keys of --set that are no settings of this command are options of the sampler, for example eta=1.0.

    [bold]Examples[/bold]

      driftkit sample outputs/drift_mocov2
      driftkit sample outputs/ddpm --num-images 1000 --sampler dpm-solver --nfe 20
      driftkit sample outputs/ddpm --sampler ddim --nfe 100 --set eta=1.0 --seed 7
      driftkit sample outputs/ddpm --class cat,dog --guidance 2
      driftkit sample outputs/ddpm --num-images 50000 --output samples --format png
    """
    from driftkit.training.conditions import conditions_label  # loads torch

    with progress_bars() as report:
        samples = sample(run, settings, report=report, notify=note)
    record = samples.record
    document = {"samples": str(samples.path), "grid": str(samples.grid), **record.model_dump(mode="json")}

    def show() -> None:
        asked = conditions_label(record.asked_classes, record.guidance)
        setup = f"{record.sampler}{asked}, {record.nfe} NFE, {record.weights} weights"
        there = " were there already" if samples.kept == record.num_images else ""
        show_line(f"{record.num_images} images{there} ({setup}): {samples.path}")
        show_line(f"grid: {samples.grid}")

    emit(document, as_json=as_json, show=show)
    return document
