"""`driftkit probe-encoder`: the feature shapes an encoder gives, and on real images what drifting would see."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftkit.cli.output import JsonOption, emit, option, progress_bars

WHAT, DATA, FILES = "What to probe", "Measuring on images", "Where it goes"
WIDTH = 100


def command(
    encoder: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A name of --list, timm:MODEL, or the folder of a MAE or classifier run.",
            show_default=False,
        ),
    ] = None,
    list_encoders: Annotated[
        bool, option("--list", help="Print the table of encoders, and stop.", panel=WHAT, envvar=None)
    ] = False,
    input_size: Annotated[
        int | None, option("--input-size", help="Side in pixels the encoder sees.", panel=WHAT, default="its own, 224")
    ] = None,
    resize: Annotated[
        str, option("--resize", help="How images get there: bicubic or bilinear.", panel=WHAT)
    ] = "bicubic",
    image_size: Annotated[
        int | None,
        option(
            "--image-size", help="Side in pixels of the images.", panel=WHAT, default="of the data, 32, or the run's"
        ),
    ] = None,
    features: Annotated[
        str | None,
        option(
            "--features",
            help="Feature set: multires, paper, paper-full, last, global or locations.",
            panel=WHAT,
            default="the encoder's own",
        ),
    ] = None,
    taps: Annotated[
        str | None,
        option(
            "--taps", help="Layers whose maps are used, for example block6,block12.", panel=WHAT, default="the table's"
        ),
    ] = None,
    map_norm: Annotated[
        str | None,
        option(
            "--map-norm",
            help="Normalisation of the maps: none, layer (each position) or final (the network's last norm).",
            panel=WHAT,
            default="the encoder's own",
        ),
    ] = None,
    encoder_weights: Annotated[
        Path | None,
        option("--encoder-weights", help="Local file with the weights.", panel=WHAT, default="cache, then hub"),
    ] = None,
    random_weights: Annotated[
        bool, option("--random-weights", help="Do without weights: shapes do not depend on them.", panel=WHAT)
    ] = False,
    batch_size: Annotated[
        int | None,
        option("--batch-size", "-b", help="Generated images per step, on all ranks.", panel=WHAT, default="128"),
    ] = None,
    data: Annotated[
        str | None,
        option(
            "--data",
            "-d",
            help="Real images to measure on: shapes, cifar10, a folder, a .zip or .tar, or a pack.",
            panel=DATA,
            default="none: shapes only",
        ),
    ] = None,
    num_images: Annotated[
        int, option("--num-images", "-n", help="How many, in equal shares of the classes.", panel=DATA)
    ] = 2000,
    taus: Annotated[
        str, option("--taus", help="Temperatures to try, over the mean distance, with commas.", panel=DATA)
    ] = "0.02,0.05,0.1,0.2,0.5",
    speed: Annotated[
        bool | None,
        option(
            "--speed/--no-speed", help="Time the encoder at 32, 64, 112 and 224 px.", panel=DATA, default="with --data"
        ),
    ] = None,
    speed_seconds: Annotated[
        float, option("--speed-seconds", help="Most seconds per batch of 8; larger sizes are skipped.", panel=DATA)
    ] = 10.0,
    seed: Annotated[int, option("--seed", help="Every random draw follows from it.", panel=DATA)] = 0,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.", panel=DATA)] = "auto",
    output: Annotated[
        Path | None, option("--output", "-o", help="Folder of probe.json and probe.png.", panel=FILES, default="none")
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show what an encoder gives the drifting field; with --data, whether drifting would work with it, and why not.

    [bold]Examples[/bold]

      driftkit probe-encoder --list
      driftkit probe-encoder dinov2-multires --random-weights
      driftkit probe-encoder timm:vit_small_patch16_dinov3 --taps block4,block8,block12 --random-weights
      driftkit probe-encoder mocov2 --encoder-weights moco_v2_800ep_pretrain.pth.tar
      driftkit probe-encoder outputs/mae --data cifar10 --output outputs/probe-mae
      driftkit probe-encoder outputs/mae --json

    Without --data: maps, vectors, field calls and memory. With it, wrong images of known kinds (noisy, blurred,
    shuffled, of one class, ...) play the generator, and each feature group is judged by the drift they get.
    """
    from driftkit.errors import UsageError
    from driftkit.runtime.device import resolve_device

    if list_encoders:
        return _list(as_json)
    if encoder is None:
        raise UsageError(
            "NAME is missing: give a name of driftkit probe-encoder --list, timm:MODEL, or a MAE or classifier run"
        )
    from driftkit.stages.probe_encoder import Probing, probe_encoder
    from driftkit.storage.writable import require_writable

    for name, value in (("--input-size", input_size), ("--image-size", image_size)):
        if value is not None and not 8 <= value <= 4096:
            raise UsageError(f"{name} {value}: expected a side between 8 and 4096 pixels")
    if resize not in ("bicubic", "bilinear"):
        raise UsageError(f"--resize {resize}: expected bicubic or bilinear")
    if map_norm not in (None, "none", "layer", "final"):
        raise UsageError(f"--map-norm {map_norm}: expected none, layer or final")
    if batch_size is not None and batch_size < 8:
        raise UsageError(f"--batch-size {batch_size}: expected at least 8 images")
    if not 32 <= num_images <= 20_000:
        raise UsageError(f"--num-images {num_images}: expected 32 to 20000; 2000 to 5000 are enough")
    if not 0 < speed_seconds < float("inf"):
        raise UsageError(f"--speed-seconds {speed_seconds}: expected a number above 0")
    if output is not None:
        require_writable(output, "--output", folder=True)
    probing = Probing(
        data=data,
        num_images=num_images,
        batch_size=batch_size,
        taus=_parse_taus(taus),
        seed=seed,
        speed=speed,
        speed_seconds=speed_seconds,
    )
    with progress_bars() as report:
        document = probe_encoder(
            encoder,
            image_size=image_size,
            input_size=input_size,
            weights=encoder_weights,
            random_weights=random_weights,
            taps=[tap.strip() for tap in taps.split(",")] if taps else None,
            map_norm=map_norm,  # type: ignore[arg-type]
            resize=resize,  # type: ignore[arg-type]
            features=features,
            probing=probing,
            device=resolve_device(device),
            output=output,
            report=report,
        )
    emit(document, as_json=as_json, show=lambda: _show(document))
    return document


def _list(as_json: bool) -> dict[str, Any]:
    from driftkit.stages.probe_encoder import encoder_table

    document = {"encoders": encoder_table()}
    emit(document, as_json=as_json, show=lambda: _show_list(document["encoders"]))
    return document


def _show_list(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from driftkit.runtime.terminal import open_console

    table = Table(title="encoders", title_justify="left", show_lines=True)
    for column in ("name", "trained by", "maps", "input", "features", "licence", "here"):
        table.add_column(column, no_wrap=column in ("name", "input"))
    for row in rows:
        strides = row["strides"] or []
        sizes = ", ".join(str(side) for side in dict.fromkeys(strides))
        maps = row["reading"] if row["reading"] == "class token" else ", ".join(row["maps"])
        after_norm = {"final": " after the last norm", "layer": ", each position normalised"}.get(row["map_norm"], "")
        of_images = row["input_size"] is None
        table.add_row(
            row["name"] + ("" if of_images else f"\n[dim]{row['model']}[/dim]"),
            row["trained_by"] + ("\n[dim]with labels or captions[/dim]" if row["supervised"] else ""),
            f"{maps}{after_norm}"
            + (f"\n[dim]{'patch' if len(set(strides)) == 1 else 'strides'} {sizes}[/dim]" if strides else ""),
            "that of the images"
            if of_images
            else f"{row['input_size']} px, {row['normalisation']}\n"
            f"[dim]{row['interpolation']}, {row['parameters'] / 1e6:.1f} M[/dim]",
            row["feature_set"],
            row["licence"] or "–",
            "–" if of_images else "yes" if row["weights"] else "no",
        )
    console = open_console(width=None if open_console().is_terminal else 140, highlight=False)
    console.print(table)
    console.print(
        "also: timm:MODEL (any timm model with intermediate maps, --taps chooses them) and the folder, or "
        "encoder.safetensors, of a MAE run"
    )


def _parse_taus(text: str) -> tuple[float, ...]:
    from driftkit.errors import UsageError

    try:
        taus = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(
            f"--taus {text}: expected numbers with commas between them, for example 0.02,0.05,0.2"
        ) from None
    if not all(0 < tau < float("inf") for tau in taus):
        raise UsageError(f"--taus {text}: expected temperatures above 0")
    return tuple(taus)


def _show(document: dict[str, Any]) -> None:
    from rich.markup import escape

    from driftkit.runtime.terminal import open_console

    console = open_console(width=WIDTH, highlight=False)
    about = ", ".join(str(document[key]) for key in ("model", "trained_by", "licence") if key in document)
    console.print(f"[bold]{escape(document['encoder'])}[/bold]  {escape(about)}")
    console.print(
        f"{document['parameters'] / 1e6:.1f} M parameters, input {document['input_size']} px, {document['resize']}, "
        f"map norm {document['map_norm']}, "
        f"feature set {document['feature_set']}, weights {document['weights'][:12]}"
    )
    _show_shapes(console, document)
    if "groups" in document:
        _show_groups(console, document)
    if "speed" in document:
        _show_speed(console, document["speed"])
    if "verdict" in document:
        _show_verdict(console, document)
    for path in document.get("files", ()):
        console.print(escape(path), soft_wrap=True)


def _show_shapes(console: Any, document: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    maps = Table("map", "channels", "height", "width", "vectors", title="feature maps", title_justify="left")
    for row in document["maps"]:
        maps.add_row(escape(row["name"]), *(f"{row[key]:,}" for key in ("channels", "height", "width", "vectors")))
    console.print(maps)
    calls = Table(title="field calls per step", title_justify="left")
    for column in ("field call", "fields G", "channels C", "tensor", f"GFLOP at {document['memory']['batch_size']}"):
        calls.add_column(column, justify="right" if "GFLOP" in column else "left")
    for number, (row, gflop) in enumerate(zip(document["field_calls"], document["field_gflop"], strict=True), start=1):
        calls.add_row(
            str(number),
            f"{row['vectors']:,}",
            f"{row['channels']:,}",
            f"[{row['vectors']}, N, {row['channels']}]".replace("[", "\\["),
            f"{gflop:,.1f}",
        )
    console.print(calls)
    memory = document["memory"]
    chunk = memory["field_chunk_bytes"]
    console.print(
        f"memory at a batch of {memory['batch_size']}: features of generated and real images "
        f"{_mib(memory['features_bytes'])}, field {_mib(chunk['cpu'])} at a time on a CPU, "
        f"{_mib(chunk['cuda'])} on CUDA"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"


def _show_groups(console: Any, document: dict[str, Any]) -> None:
    """What each group sees, as shares of signal in percent at the best temperature."""
    from rich.markup import escape
    from rich.table import Table

    groups = document["groups"]
    faults = list(document["seen"])
    table = Table(title="signal in the drift, % at the best temperature", title_justify="left")
    table.add_column("group", no_wrap=True)
    for column in (*faults, "purity", "rank"):
        table.add_column(column, justify="right")
    for group in groups:
        cells = []
        for fault in faults:
            value = max(0.0, *group["separation"][fault]["signal"])
            colour = "red" if value < 0.15 else "green" if value >= 0.4 else "yellow"
            cells.append(f"[{colour}]{100 * value:.0f}[/{colour}]")
        purity = "–" if group["purity"] is None else f"{group['purity']:.0%}"
        table.add_row(escape(group["name"]), *cells, purity, f"{group['effective_rank']:.0f}")
    console.print(table)
    kernel = Table(title="points that weigh in (perplexity), by temperature", title_justify="left")
    kernel.add_column("group", no_wrap=True)
    for tau in document["probe"]["taus"]:
        kernel.add_column(f"{tau:g}", justify="right")
    kernel.add_column("verdict")
    for group in groups:
        perplexities = [f"{k['perplexity']:.0f}" for k in group["kernel"]]
        kernel.add_row(escape(group["name"]), *perplexities, escape(document["group_verdicts"][group["name"]]))
    console.print(kernel)


def _show_speed(console: Any, speeds: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("input", "forward", "forward + backward", "peak memory", "", title="images per second")
    table.title_justify = "left"
    for row in speeds:
        if row["skipped"]:
            table.add_row(f"{row['input_size']} px", "–", "–", "–", escape(row["skipped"]))
        else:
            table.add_row(
                f"{row['input_size']} px",
                f"{row['forward_per_s']:,.3g}",
                f"{row['forward_backward_per_s']:,.3g}",
                f"{row['peak_gib']:.2f} GiB",
                f"batches of {row['batch_size']}",
            )
    console.print(table)


def _show_verdict(console: Any, document: dict[str, Any]) -> None:
    from rich.markup import escape

    colour = {"good": "green", "usable": "yellow", "poor": "red"}[document["verdict"]]
    console.print(f"[bold {colour}]{document['verdict']}[/bold {colour}]  score {document['score']:.2f}")
    for reason in (*document["reasons"], *(f"not measured: {what}" for what in document["probe"]["omitted"])):
        console.print(f"  · {escape(reason)}")
