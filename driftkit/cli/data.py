"""`driftkit data`: importing images."""

from typing import Annotated, Any

import typer

from driftkit.cli.options import typed_place, with_settings
from driftkit.cli.output import JsonOption, emit, facts_table
from driftkit.datasets.spec import FORMATS
from driftkit.stages.data import ImportConfig, import_data


@with_settings("data", ImportConfig)
def command(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC", help="Images, named as in the list above, with ?key=value behind.", callback=typed_place
        ),
    ],
    settings: ImportConfig,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Import images into one memory-mapped pack (uint8 [N,3,H,W] and labels) and show its card.

    [bold]Examples[/bold]

      driftkit data shapes --grid shapes.png
      driftkit data "shapes?split=test&image_size=16&palette=primary" --json
      driftkit data cifar10:test
      driftkit data photos.zip --image-size 64 --output data/photos.safetensors
      driftkit data "imagenet-train-{000000..000146}.tar" --image-size 64
      driftkit data photos.zip --clusters 20 --output data/clusters.safetensors

    [bold]What can be named[/bold], here and by --data and --reference
    """
    pack, path = import_data(spec, settings)
    document = {
        **pack.card.model_dump(mode="json", exclude={"classes"}),
        "classes": pack.class_counts(),
        "path": str(path),
        "grid": None if settings.grid is None else str(settings.grid),
    }
    emit(document, as_json=as_json, show=lambda: _show(document))
    return document


def _formats() -> str:
    """The rows of FORMATS as lines of the help text."""
    rows = [row for rows in FORMATS.values() for row in rows]
    width = max(len(row.looks) for row in rows)
    return "\n".join(f"      {row.looks:{width}}  {row.what}" for row in rows)


command.__doc__ = f"{command.__doc__}\n{_formats()}\n"


def _show(document: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from driftkit.runtime.terminal import open_console

    console = open_console(highlight=False)
    source = document["source"]
    options = ", ".join(f"{key}={value}" for key, value in source["options"].items())
    facts = [
        ("images", f"{document['count']:,} of {document['width']}x{document['height']} px"),
        ("label", escape(document["label"])),
        ("path", escape(document["path"])),
        ("sha256", document["sha256"]),
        ("source", escape(source["spec"] + (f" ({options})" if options else ""))),
    ]
    if source["verified"] is not None:
        facts.append(
            ("checksums", "as published" if source["verified"] else "[yellow]differ from the published ones[/]")
        )
    facts += [("note", escape(text)) for text in document["notes"]]
    if document["grid"]:
        facts.append(("grid", escape(document["grid"])))
    console.print(facts_table(facts))
    classes = Table("class", "images")
    classes.columns[1].justify = "right"
    shown = list(document["classes"].items())
    for name, count in shown[:30]:
        classes.add_row(escape(name), f"{count:,}")
    if len(shown) > 30:
        classes.add_row(f"and {len(shown) - 30} more", f"{sum(count for _, count in shown[30:]):,}")
    console.print(classes)
