"""`driftkit probe-encoder`: the feature shapes an encoder gives."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, option

WHAT = "What to probe"


def command(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="pixel, dinov2-multires, convnextv2, mocov2, or the folder of a MAE run.",
            show_default=False,
        ),
    ],
    input_size: Annotated[
        int | None, option("--input-size", help="Side in pixels the encoder sees.", panel=WHAT, default="its own, 224")
    ] = None,
    image_size: Annotated[
        int | None, option("--image-size", help="Side in pixels of the images.", panel=WHAT, default="32, or the run's")
    ] = None,
    features: Annotated[
        str | None,
        option(
            "--features", help="Feature set: multires, paper or locations.", panel=WHAT, default="the encoder's own"
        ),
    ] = None,
    encoder_weights: Annotated[
        Path | None,
        option("--encoder-weights", help="Local file with the weights.", panel=WHAT, default="cache, then hub"),
    ] = None,
    random_weights: Annotated[
        bool, option("--random-weights", help="Do without weights: shapes do not depend on them.", panel=WHAT)
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show the feature maps an encoder gives, the vectors made of them, and the field calls they cost.

    [bold]Examples[/bold]

      driftkit probe-encoder dinov2-multires --random-weights
      driftkit probe-encoder mocov2 --encoder-weights moco_v2_800ep_pretrain.pth.tar
      driftkit probe-encoder outputs/mae --json
    """
    from driftkit.errors import UsageError
    from driftkit.stages.probe import probe_encoder

    for name, value in (("--input-size", input_size), ("--image-size", image_size)):
        if value is not None and not 8 <= value <= 4096:
            raise UsageError(f"{name} {value}: expected a side between 8 and 4096 pixels")
    document = probe_encoder(
        encoder,
        image_size=image_size,
        input_size=input_size,
        weights=encoder_weights,
        random_weights=random_weights,
        features=features,
    )
    emit(document, as_json=as_json, show=lambda: _show(document))
    return document


def _show(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100, highlight=False)
    about = ", ".join(str(document[key]) for key in ("model", "trained_by", "licence") if key in document)
    console.print(f"[bold]{document['encoder']}[/bold]  {about}")
    console.print(
        f"{document['parameters'] / 1e6:.1f} M parameters, input {document['input_size']} px, "
        f"feature set {document['feature_set']}, weights {document['weights'][:12]}"
    )
    maps = Table("map", "channels", "height", "width", "vectors", title="feature maps", title_justify="left")
    for row in document["maps"]:
        maps.add_row(row["name"], *(f"{row[key]:,}" for key in ("channels", "height", "width", "vectors")))
    console.print(maps)
    calls = Table("field call", "fields G", "channels C", "tensor", title="field calls per step", title_justify="left")
    for number, row in enumerate(document["field_calls"], start=1):
        calls.add_row(
            str(number),
            f"{row['vectors']:,}",
            f"{row['channels']:,}",
            f"[{row['vectors']}, N, {row['channels']}]".replace("[", "\\["),
        )
    console.print(calls)
