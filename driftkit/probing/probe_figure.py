"""One figure of a probed encoder: what every feature group detects, where its kernel works, and the verdict."""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from driftkit.probing.probe_images import CORRUPTIONS
from driftkit.probing.probe_record import EncoderMeasurement, GroupMeasurement, ProbeRecord, Verdict
from driftkit.runtime.drawing import DPI, GRID, INK, PALETTES

ROW_INCHES = 0.27
WIDTH_INCHES = 15.0
BLUE, ORANGE, GREEN = PALETTES["light"][:3]
VERDICT_COLOURS = {"good": GREEN, "usable": BLUE, "poor": PALETTES["light"][5]}
SMALL, NORMAL, LARGE = 7.5, 8.5, 15


def probe_figure(record: ProbeRecord) -> bytes:
    """PNG of a record of an encoder that was measured on images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measurement, verdict = record.measurement, record.verdict
    assert measurement is not None
    assert verdict is not None
    groups = measurement.groups
    rows = max(len(groups), 4) * ROW_INCHES
    reasons = [line for reason in verdict.reasons for line in textwrap.wrap(f"· {reason}", 92, subsequent_indent="  ")]
    below = max(2.3, 0.19 * len(reasons) + 0.5)
    height = 1.1 + rows + 1.2 + below
    figure = Figure(figsize=(WIDTH_INCHES, height), facecolor="white")
    FigureCanvasAgg(figure)
    _heading(figure, record, verdict, height)
    top, bottom = 1 - 1.3 / height, (below + 0.75) / height
    upper = figure.add_gridspec(
        1, 5, width_ratios=(3.1, 2.2, 2.7, 1.5, 1.5), left=0.125, right=0.985, top=top, bottom=bottom, wspace=0.07
    )
    axes = [figure.add_subplot(upper[place]) for place in range(5)]
    _signal_map(axes[0], groups)
    _kernel_map(axes[1], groups)
    _sensitivity_map(axes[2], groups)
    _purity_bars(axes[3], groups, record.chance_purity)
    _rank_bars(axes[4], groups)
    names = [group.name for group in groups]
    for place, one in enumerate(axes):
        one.set_yticks(range(len(names)), names if place == 0 else [])
        one.set_ylim(len(names) - 0.5, -0.5)
        one.tick_params(length=0, colors=INK["light"])
        one.tick_params(axis="y", labelsize=NORMAL)
        one.tick_params(axis="x", labelsize=SMALL + 0.3)
        for side in one.spines.values():
            side.set_visible(False)
    lower = figure.add_gridspec(
        1, 2, width_ratios=(1, 1.55), left=0.125, right=0.985, top=(below - 0.25) / height, bottom=0.42 / height,
        wspace=0.09,
    )  # fmt: skip
    _corruption_bars(figure.add_subplot(lower[0]), measurement, verdict)
    words = figure.add_subplot(lower[1])
    words.axis("off")
    words.text(0, 1, _plain("\n".join(reasons)), va="top", fontsize=NORMAL, color=INK["light"], linespacing=1.45)
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=DPI)
    return memory.getvalue()


def _heading(figure: Any, record: ProbeRecord, verdict: Verdict, height: float) -> None:
    data, setup = record.data, record.setup
    assert data is not None
    assert setup is not None
    figure.text(0.015, 1 - 0.34 / height, _plain(record.encoder), fontsize=LARGE, weight="bold", va="center",
                color=INK["light"])  # fmt: skip
    figure.text(0.985, 1 - 0.34 / height, f"{verdict.word}  {verdict.score:.2f}", fontsize=LARGE, weight="bold",
                va="center", ha="right", color=VERDICT_COLOURS[verdict.word])  # fmt: skip
    about = (
        f"feature set {record.feature_set}, input {record.input_size} px, {data.num_images:,} images of "
        f"{data.spec}, batches of {setup.batch_size}"
    )
    figure.text(0.015, 1 - 0.66 / height, _plain(about), fontsize=NORMAL, va="center", color="#868e96")


def _heat(
    axes: Any,
    values: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    columns: Sequence[str],
    *,
    title: str,
    colours: str,
    low: float,
    high: float,
) -> None:
    """A heat map with its numbers written in."""
    import matplotlib as mpl

    norm = mpl.colors.Normalize(low, high, clip=True)
    colour_map = mpl.colormaps[colours]
    axes.imshow(values, aspect="auto", cmap=colour_map, norm=norm)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            red, green, blue, _ = colour_map(norm(values[i][j]))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axes.text(j, i, text, ha="center", va="center", fontsize=SMALL, color="white" if dark else "#343a40")
    axes.set_xticks(range(len(columns)), columns)
    for j in range(1, len(columns)):
        axes.axvline(j - 0.5, color="white", linewidth=1.5)
    for i in range(1, len(values)):
        axes.axhline(i - 0.5, color="white", linewidth=1.5)
    _title(axes, title)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=NORMAL, loc="left", color=INK["light"], linespacing=1.3, pad=6)


def _signal_map(axes: Any, groups: list[GroupMeasurement]) -> None:
    controls = [spec.name for spec in CORRUPTIONS if spec.is_control]  # which a good encoder may ignore, come last
    names = sorted(groups[0].separation, key=lambda name: name in controls)
    values = [[max(group.separation[name].signal) for name in names] for group in groups]
    texts = [[f"{max(value, 0):.2f}".removeprefix("0") for value in row] for row in values]
    columns = [name.replace(" ", "\n") for name in names]
    _heat(axes, values, texts, columns, title="detectability: signal share of\nthe drift at the best temperature",
          colours="Blues", low=0, high=1)  # fmt: skip


def _kernel_map(axes: Any, groups: list[GroupMeasurement]) -> None:
    values = [[kernel.fraction for kernel in group.kernel] for group in groups]
    texts = [[f"{kernel.perplexity:.0f}" for kernel in group.kernel] for group in groups]
    columns = [f"τ {kernel.tau:g}" for kernel in groups[0].kernel]
    first = groups[0].kernel[0]
    count = round(first.perplexity / first.fraction)
    _heat(axes, values, texts, columns, title=f"kernel: effective number of\n{count} points (perplexity)",
          colours="YlOrBr", low=0, high=1.25)  # fmt: skip


def _sensitivity_map(axes: Any, groups: list[GroupMeasurement]) -> None:
    kinds = list(dict.fromkeys(kind for group in groups for kind in group.sensitivity))
    if not kinds:
        axes.set_xticks([])
        _title(axes, "sensitivity: the corruptions\nchanged no pixel")
        return
    ratios = [[group.sensitivity.get(kind, 0.0) for kind in kinds] for group in groups]
    values = [[math.log2(max(ratio, 1e-3)) for ratio in row] for row in ratios]
    texts = [[f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}" for ratio in row] for row in ratios]
    _heat(axes, values, texts, kinds, title="sensitivity: relative change of the features\nover that of the pixels",
          colours="PuOr_r", low=-3, high=3)  # fmt: skip


def _purity_bars(axes: Any, groups: list[GroupMeasurement], chance: float | None) -> None:
    if chance is None:
        axes.set_xticks([])
        axes.set_xlim(0, 1)
        _title(axes, "class purity\n(no labels)")
        return
    values = [group.purity or 0.0 for group in groups]
    _bars(axes, values, [f"{value:.0%}" for value in values], GREEN)
    axes.axvline(chance, color=INK["light"], linewidth=1, linestyle=":")
    _title(axes, f"class purity of 10 neighbours\n(dotted: {chance:.0%} by chance)")


def _rank_bars(axes: Any, groups: list[GroupMeasurement]) -> None:
    values = [group.effective_rank for group in groups]
    texts = [f"{group.effective_rank:.0f} of {group.channels:,}" for group in groups]
    _bars(axes, values, texts, ORANGE)
    _title(axes, "effective rank\nof the channels")


def _bars(axes: Any, values: list[float], texts: list[str], colour: str) -> None:
    axes.barh(range(len(values)), values, color=colour, height=0.6, alpha=0.85)
    most = max(max(values), 1e-9)
    for i, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.text(value + 0.03 * most, i, text, va="center", fontsize=SMALL, color=INK["light"])
    axes.set_xlim(0, 1.75 * most)
    axes.set_xticks([])


def _corruption_bars(axes: Any, measurement: EncoderMeasurement, verdict: Verdict) -> None:
    """Per corruption: detectability in the best group and on average, and pixel alignment."""
    detected, cosines = verdict.detectability, measurement.pixel_alignment
    places = range(len(detected))
    axes.bar([p - 0.27 for p in places], [d.best for d in detected.values()], 0.25, color=BLUE, label="best group")
    axes.bar(places, [d.mean for d in detected.values()], 0.25, color=PALETTES["dark"][0], label="mean of groups")
    aligned = [(p + 0.27, cosines[name]) for p, name in enumerate(detected) if name in cosines]
    axes.bar(*zip(*aligned, strict=True), 0.25, color=ORANGE, label="pixel alignment (cosine)")
    axes.set_xticks(places, list(detected))
    axes.axhline(0, color=GRID["light"], linewidth=1)
    axes.grid(True, axis="y", color=GRID["light"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_ylim(min(0.0, *(v for _, v in aligned)) * 1.1, 1)
    axes.tick_params(length=0, labelsize=NORMAL, colors=INK["light"])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(frameon=False, fontsize=SMALL, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 0.98),
                labelcolor=INK["light"], handlelength=1, columnspacing=1.2)  # fmt: skip


def _plain(text: str) -> str:
    """No formulas between dollars."""
    return text.replace("$", r"\$")
