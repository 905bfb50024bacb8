"""`driftkit data`: importing images."""

from typing import Annotated, Any

import typer

from driftkit.cli.options import with_settings
from driftkit.cli.output import JsonOption, emit
from driftkit.stages.data import ImportConfig, import_data


@with_settings("data", ImportConfig)
def command(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC", help="shapes, cifar10, a folder, a .zip or .tar of images, or a pack.", show_default=False
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
      driftkit data photos.zip --image-size 64 --limit 5000 --output data/photos.safetensors
    """
    pack, path = import_data(spec, settings)
    document = {
        **pack.card.model_dump(mode="json", exclude={"format", "classes"}),
        "classes": pack.class_counts(),
        "path": str(path),
        "grid": None if settings.grid is None else str(settings.grid),
    }
    emit(document, as_json=as_json, show=lambda: _show(document))
    return document


def _show(document: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from driftkit.runtime.terminal import open_console

    console = open_console(highlight=False)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    source = document["source"]
    options = ", ".join(f"{key}={value}" for key, value in source["options"].items())
    facts.add_row("images", f"{document['count']:,} of {document['width']}x{document['height']} px")
    facts.add_row("label", escape(document["label"]))
    facts.add_row("path", escape(document["path"]))
    facts.add_row("sha256", document["sha256"])
    facts.add_row("source", escape(source["spec"] + (f" ({options})" if options else "")))
    if source["verified"] is not None:
        facts.add_row(
            "checksums", "as published" if source["verified"] else "[yellow]differ from the published ones[/]"
        )
    for text in document["notes"]:
        facts.add_row("note", escape(text))
    if document["grid"]:
        facts.add_row("grid", escape(document["grid"]))
    console.print(facts)
    classes = Table("class", "images")
    classes.columns[1].justify = "right"
    shown = list(document["classes"].items())
    for name, count in shown[:30]:
        classes.add_row(escape(name), f"{count:,}")
    if len(shown) > 30:
        classes.add_row(f"and {len(shown) - 30} more", f"{sum(count for _, count in shown[30:]):,}")
    console.print(classes)
