"""`driftkit fid`: scores of generated images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli import completion
from driftkit.cli.fid_table import show
from driftkit.cli.options import typed_place, with_settings
from driftkit.cli.output import JsonOption, emit, note, progress_bars
from driftkit.stages.fid import FidConfig, fid


@with_settings("fid", FidConfig)
def command(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES|RUN",
            help="A run, a samples file, or a folder, archive or pack of images.",
            autocompletion=completion.runs,
            callback=typed_place,
        ),
    ],
    settings: FidConfig,
    as_json: JsonOption = False,
) -> dict[str, Any] | None:
    """Score images against real ones by FID and other metrics, each next to its real-vs-real floor.

    [bold]Examples[/bold]

      driftkit fid outputs/drift_mocov2 --reference cifar10
      driftkit fid outputs/ddpm -r photos.zip --extractor efficientnet-lite2
      driftkit fid outputs/drift -r cifar10 --extractor encoder:outputs/mae
      driftkit fid outputs/drift -r cifar10 --metrics fid,kid
      driftkit fid outputs/ddpm -r cifar10 -n 10000 --guidance 1.5
      driftkit fid outputs/drift -r cifar10 -n 5000 --repeats 3
      driftkit fid outputs/drift -r cifar10 -n 2000 --all-checkpoints
      torchrun --nproc-per-node=8 -m driftkit fid outputs/drift -r cifar10

    The floor is what as many real images score against the other real ones.
    An extractor is kin to the run's training encoder where both have the same weights, or the same architecture trained
    on the same images. Its scores are marked: they flatter the run and rank nothing. Exit code 5 means that a number
    would mislead: collapse, copies of one image, other sizes, JPEG against PNG.
    """
    with progress_bars() as report:
        results = fid(target, settings, report=report, notify=note)
    records = [(str(result.path), result.record) for result in results if result.record is not None]
    if not records:  # a rank other than the first
        return None
    documents = [{"evaluation": path, **record.document()} for path, record in records]
    document = documents[0] if len(documents) == 1 else {"evaluations": documents}
    emit(document, as_json=as_json, show=lambda: show(records))
    return document
