"""`driftkit probe-encoder`: the feature shapes an encoder gives, and on real images what drifting would see."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from driftkit.cli import completion
from driftkit.cli.options import Given, with_settings
from driftkit.cli.output import JsonOption, emit, progress_bars
from driftkit.errors import UsageError
from driftkit.runtime.terminal import open_console
from driftkit.stages.probe_encoder import ProbeEncoderConfig, encoder_list, probe_encoder

if TYPE_CHECKING:
    from driftkit.encoders.encoder_config import EncoderCard
    from driftkit.probing.probe_record import EncoderList, EncoderSpeed, ProbeRecord

WIDTH = 100
LIST_WIDTH = 140  # of the table of encoders; narrower terminals get one with a line for each of its columns
LISTED = ("name", "trained by", "maps", "input", "feature set", "licence", "here")
MAP_NORMS = {"final": " after the last norm", "layer": ", each position normalized"}
COLOURS = {"good": "green", "usable": "yellow", "poor": "red"}


@with_settings("probe-encoder", ProbeEncoderConfig)
def command(
    given: Given,
    encoder: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="A name of --list, timm:MODEL, or the folder of a MAE or classifier run; or several, each as "
            "NAME?KEY=VALUE&... with the settings that are its own.",
            autocompletion=completion.encoders,
        ),
    ] = None,
    list_encoders: Annotated[
        bool, typer.Option("--list", help="Print the tables of encoders and feature sets, and stop.", show_envvar=False)
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show what features an encoder gives the drifting field; with --data, whether drifting works with them, and why.

    [bold]Examples[/bold]

      driftkit probe-encoder --list
      driftkit probe-encoder dinov2-multires --random-weights
      driftkit probe-encoder timm:resnet50 --taps layer2,layer3 --random-weights
      driftkit probe-encoder mocov2 --encoder-weights moco_v2_800ep_pretrain.pth.tar
      driftkit probe-encoder outputs/mae --data cifar10 --output outputs/probe-mae
      driftkit probe-encoder outputs/mae "mocov2?input_size=64"  both and together
      driftkit probe-encoder outputs/mae --json

    Without --data it shows maps, vectors, field calls and memory. With it, corrupted images (noisy, blurred, shuffled,
    of one class, ...) take the place of generated ones, and each feature group is rated by the drift that they get.
    """
    if list_encoders:
        listed = encoder_list()
        emit(listed.document(), as_json=as_json, show=lambda: _show_list(listed))
        return listed.document()
    if encoder:
        given = dataclasses.replace(given, options={**given.options, "encoder": encoder})
    config = given.resolve(ProbeEncoderConfig)
    if not config.encoder:
        raise UsageError(
            "NAME is missing: give a name of driftkit probe-encoder --list, timm:MODEL, or a MAE or classifier run"
        )
    with progress_bars() as report:
        record = probe_encoder(config, report=report)
    emit(record.document(), as_json=as_json, show=lambda: _show(record))
    return record.document()


def _show_list(listed: "EncoderList") -> None:
    console = open_console(most=LIST_WIDTH, highlight=False)
    table = Table(title="encoders", title_justify="left", show_lines=True)
    if console.width == LIST_WIDTH:
        for column in LISTED:
            table.add_column(column, no_wrap=column in ("name", "input"))
        for card in listed.encoders:
            table.add_row(*_list_row(card))
    else:
        table.add_column("name", no_wrap=True)
        table.add_column("about", overflow="fold")
        for card in listed.encoders:
            cells = [cell.replace("\n", ", ") for cell in _list_row(card)[1:]]
            about = [f"{title}: {cell}" for title, cell in zip(LISTED[1:], cells, strict=True)]
            table.add_row(card.name, "\n".join([*([f"model: {card.model}"] if card.model else []), *about]))
    feature_sets = Table("feature set", "vectors", title_justify="left")
    for row in listed.feature_sets:
        feature_sets.add_row(row.name, row.help)
    console.print(table)
    console.print(
        "also: timm:MODEL (any timm model with intermediate maps, --taps chooses them) and the folder, or "
        "encoder.safetensors, of a MAE run"
    )
    console.print(feature_sets)


def _list_row(card: "EncoderCard") -> tuple[str, ...]:
    sides = ", ".join(str(side) for side in dict.fromkeys(card.strides))
    maps = "class token" if card.reading == "class token" else ", ".join(card.maps)
    strides = f"\n[dim]{'patch' if len(set(card.strides)) == 1 else 'strides'} {sides}[/dim]" if sides else ""
    if card.input_size is None:
        seen, here = "that of the images", "–"
    else:
        seen = f"{card.input_size} px, {card.normalisation}\n"
        seen += f"[dim]{card.interpolation}, {card.parameters / 1e6:.1f} M[/dim]"
        here = "yes" if card.weights else "no"
    return (
        card.name + (f"\n[dim]{card.model}[/dim]" if card.model else ""),
        card.trained_by + ("\n[dim]with labels or captions[/dim]" if card.supervised else ""),
        f"{maps}{MAP_NORMS.get(card.map_norm or '', '')}{strides}",
        seen,
        card.feature_set,
        card.licence or "–",
        here,
    )


def _show(record: "ProbeRecord") -> None:
    console = open_console(most=WIDTH, highlight=False)
    for part in record.parts or ():
        _show(part)
        console.print()
    about = ", ".join(text for text in (record.model, record.trained_by, record.licence) if text)
    console.print(f"[bold]{escape(record.encoder)}[/bold]  {escape(about)}")
    console.print(
        f"{record.parameters / 1e6:.1f} M parameters, input {record.input_size} px, {record.resize}, "
        f"map norm {record.map_norm}, feature set {record.feature_set}, weights {record.weights[:12]}"
    )
    _show_shapes(console, record)
    if record.measurement is not None:
        _show_groups(console, record)
    if record.speed is not None:
        _show_speed(console, record.speed)
    if record.verdict is not None:
        _show_verdict(console, record)


def _show_shapes(console: Any, record: "ProbeRecord") -> None:
    maps = Table("map", "channels", "height", "width", "vectors", title="feature maps", title_justify="left")
    for row in record.maps:
        maps.add_row(escape(row.name), *(f"{n:,}" for n in (row.channels, row.height, row.width, row.vectors)))
    console.print(maps)
    memory = record.memory
    calls = Table(title=f"field calls per step of {memory.batch_size} images", title_justify="left")
    for column in ("field call", "fields G", "channels C", "tensor", "GFLOP"):
        calls.add_column(column, justify="right" if column == "GFLOP" else "left")
    for number, call in enumerate(record.field_calls, start=1):
        tensor = f"\\[{call.vectors}, N, {call.channels}]"
        calls.add_row(str(number), f"{call.vectors:,}", f"{call.channels:,}", tensor, f"{call.gflop:,.3g}")
    console.print(calls)
    chunk = memory.field_chunk_bytes
    console.print(
        f"memory at a batch of {memory.batch_size}: features of generated and real images "
        f"{_mib(memory.features_bytes)}, field {_mib(chunk['cpu'])} at a time on a CPU, {_mib(chunk['cuda'])} on CUDA"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"


def _show_groups(console: Any, record: "ProbeRecord") -> None:
    """Signal shares of each group in percent at the best temperature, and where its kernel works."""
    measurement, verdict = record.measurement, record.verdict
    assert measurement is not None
    assert verdict is not None
    # As many columns fit 80 characters without lines between them only.
    title = "signal in the drift, % at the best temperature"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("group", overflow="fold")
    for column in (*verdict.detectability, "purity", "rank"):
        table.add_column(column, justify="right")
    kernel = Table(title="effective number of points (perplexity), by temperature", title_justify="left")
    kernel.add_column("group", no_wrap=True)
    for one in measurement.groups[0].kernel:
        kernel.add_column(f"{one.tau:g}", justify="right")
    kernel.add_column("verdict")
    for group in measurement.groups:
        cells = []
        for name in verdict.detectability:
            value = max(0.0, *group.separation[name].signal)
            colour = "red" if value < 0.15 else "green" if value >= 0.4 else "yellow"
            cells.append(f"[{colour}]{100 * value:.0f}[/{colour}]")
        purity = "–" if group.purity is None else f"{group.purity:.0%}"
        table.add_row(escape(group.name), *cells, purity, f"{group.effective_rank:.0f}")
        perplexities = [f"{one.perplexity:.0f}" for one in group.kernel]
        kernel.add_row(escape(group.name), *perplexities, escape(verdict.groups[group.name]))
    console.print(table)
    console.print(kernel)


def _show_speed(console: Any, speeds: "list[EncoderSpeed]") -> None:
    table = Table("input", "forward", "forward + backward", "peak memory", "", title="images per second")
    table.title_justify = "left"
    for row in speeds:
        if row.skipped is not None:
            table.add_row(f"{row.input_size} px", "–", "–", "–", escape(row.skipped))
        else:
            table.add_row(
                f"{row.input_size} px",
                f"{row.forward_per_s:,.3g}",
                f"{row.forward_backward_per_s:,.3g}",
                f"{row.peak_gib:.2f} GiB",
                f"batches of {row.batch_size}",
            )
    console.print(table)


def _show_verdict(console: Any, record: "ProbeRecord") -> None:
    from driftkit.probing.verdict import GOOD, USABLE

    verdict, setup = record.verdict, record.setup
    assert verdict is not None
    assert setup is not None
    colour = COLOURS[verdict.word]
    console.print(
        f"[bold {colour}]{verdict.word}[/bold {colour}]  score {verdict.score:.2f} of 1 "
        f"(good from {GOOD}, usable from {USABLE})"
    )
    for reason in (*verdict.reasons, *(f"not measured: {reason}" for reason in setup.skipped)):
        console.print(f"  · {escape(reason)}")
