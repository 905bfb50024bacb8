"""Pictures of a comparison as PNG bytes: curves, bars and sample grids, each in a light and a dark edition."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.utils import make_grid

from driftkit.evaluation.speed import Speed
from driftkit.evaluation.table import RunSummary, ScoreTable, format_score

DPI = 160
GRID_TILE = 64
# Told apart by people with colour-blindness, too; the dark edition is lighter.
PALETTES = {
    "light": ("#3b5bdb", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#e03131", "#5f3dc4", "#846358"),
    "dark": ("#91a7ff", "#ffa94d", "#69db7c", "#e599f7", "#66d9e8", "#ff8787", "#b197fc", "#d0bfb4"),
}
INK = {"light": "#343a40", "dark": "#ced4da"}
GRID = {"light": "#dee2e6", "dark": "#3b4048"}


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: file name without suffix.
        alt: what it shows, for those who do not see it.
        caption: what a reader should know.
        light, dark: PNG; `dark` is None where one edition serves both.
    """

    name: str
    alt: str
    caption: str
    light: bytes
    dark: bytes | None = None
    width: int = 0
    height: int = 0


def colour_of(labels: Sequence[str]) -> dict[str, int]:
    """A place in the palette for every run, the same in all pictures."""
    return {label: i % len(PALETTES["light"]) for i, label in enumerate(labels)}


def curve_figure(
    runs: Sequence[RunSummary],
    key: str,
    *,
    name: str,
    ylabel: str,
    caption: str,
    colours: Mapping[str, int],
    from_zero: bool = False,
) -> Figure | None:
    """A health or loss signal over training steps; None where no run has it.

    The axis is logarithmic where the signal spans a factor of 3, else linear; `from_zero` makes it linear from 0,
    which is what shows that a signal is flat.
    """
    drawn = []
    for run in runs:
        points = [(p["step"] or 0, p[key] or 0.0) for p in run.curve if p["step"] is not None and (p[key] or 0) > 0]
        if len(points) > 1:
            drawn.append((run.label, points))
    if not drawn:
        return None

    def draw(axes: Any, theme: str) -> None:
        for label, points in drawn:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=PALETTES[theme][colours[label]], linewidth=1.6, label=_plain(label))
        if from_zero:
            axes.set_ylim(0, 1.25 * max(value for _, points in drawn for _, value in points))
        else:
            _scale_y(axes, [value for _, points in drawn for _, value in points])
        axes.set_xlabel("training step")
        axes.set_ylabel(ylabel)
        _legend(axes, theme)

    ends = "; ".join(f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for label, points in drawn)
    return _figure(draw, name=name, alt=f"{ylabel} over training steps: {ends}.", caption=caption)


def score_figure(table: ScoreTable, *, colours: Mapping[str, int]) -> Figure:
    """One bar per row of a score table with its real-vs-real floor as a mark."""
    rows = table.rows[::-1]
    names = [_plain(f"{r.run}\n{_way(r.sampler, r.nfe)}") for r in rows]

    def draw(axes: Any, theme: str) -> None:
        scores = [r.metrics["fid"] for r in rows]
        spreads = [r.spread.get("fid", 0.0) for r in rows]
        fills = [PALETTES[theme][colours.get(r.run, 0)] for r in rows]
        axes.barh(range(len(rows)), scores, xerr=spreads if any(spreads) else None, color=fills, height=0.62)
        floors = [(i, r.floor) for i, r in enumerate(rows) if r.floor is not None]
        for place, (i, floor) in enumerate(floors):
            label = "real vs real" if place == 0 else None
            axes.plot([floor, floor], [i - 0.42, i + 0.42], color=INK[theme], linewidth=1.8, label=label)
        for i, score in enumerate(scores):
            at = (score + spreads[i], i)
            axes.annotate(format_score(score), at, xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=8.5, color=INK[theme])  # fmt: skip
        axes.set_yticks(range(len(rows)), names)
        axes.set_xlim(0, 1.16 * max(scores) or 1)
        axes.set_xlabel(f"{table.name} (lower is better)")
        axes.grid(False, axis="y")
        if floors:
            _legend(axes, theme)

    said = "; ".join(f"{r.run} {_way(r.sampler, r.nfe)}: {format_score(r.metrics['fid'])}" for r in table.rows)
    return _figure(
        draw,
        name=f"scores-{table.key}",
        alt=f"{table.name} by {table.title}: {said}.",
        caption=f"{table.title}. The mark is what two halves of the real images score against each other.",
        height=0.9 + 0.52 * len(rows),
    )


def history_figure(table: ScoreTable, axis: str, *, colours: Mapping[str, int]) -> Figure | None:
    """Scores over "nfe" or "step", one line per run; None unless a run was scored at two values of it."""
    rows = table.rows if axis == "nfe" else table.history
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        value = row.nfe if axis == "nfe" else row.step
        way = (row.run, row.sampler, "raw" if row.weights == "raw" else None, row.nfe if axis == "step" else None)
        if value is not None:
            lines.setdefault(way, []).append((value, row.metrics["fid"]))
    if not any(len(points) > 1 for points in lines.values()):
        return None
    if axis == "step":  # a single step is no curve; a single NFE is a point to compare a curve with
        lines = {way: points for way, points in lines.items() if len(points) > 1}

    def draw(axes: Any, theme: str) -> None:
        from matplotlib.ticker import NullLocator

        drawn: dict[str, int] = {}  # lines of a run so far: its samplers differ in dashes and marks
        for way, points in lines.items():
            x, y = zip(*sorted(points), strict=True)
            place = drawn[way[0]] = drawn.get(way[0], -1) + 1
            label = " · ".join(str(part) for part in (*way[:3], f"{way[3]} NFE" if way[3] else None) if part)
            colour = PALETTES[theme][colours.get(way[0], 0)]
            axes.plot(x, y, color=colour, label=_plain(label), linewidth=1.6,
                      marker="osD^v"[place % 5], markersize=5.5,
                      linestyle=("-", "--", ":", "-.")[place % 4])  # fmt: skip
        axes.set_xlabel("network evaluations per image" if axis == "nfe" else "training step")
        axes.set_ylabel(f"{table.name} (lower is better)")
        _scale_y(axes, [y for points in lines.values() for _, y in points])
        if axis == "nfe":
            values = sorted({x for points in lines.values() for x, _ in points})
            axes.set_xscale("log")
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
        _legend(axes, theme)

    return _figure(
        draw,
        name=f"{axis}-{table.key}",
        alt=f"{table.name} by {table.title} over {axis}, one line per run and sampler.",
        caption=f"{table.title}: quality against {'cost' if axis == 'nfe' else 'training'}.",
    )


def speed_figure(speeds: Sequence[Speed], *, colours: Mapping[str, int]) -> Figure | None:
    """Images per second of every sampler measured, on a logarithmic axis."""
    if not speeds:
        return None
    rows = sorted(speeds, key=lambda s: s.images_per_second)

    def draw(axes: Any, theme: str) -> None:
        rates = [s.images_per_second for s in rows]
        axes.barh(range(len(rows)), rates, color=[PALETTES[theme][colours.get(s.run, 0)] for s in rows], height=0.62)
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 2.2, max(rates) * 3)
        for i, rate in enumerate(rates):
            axes.annotate(f"{rate:,.3g}", (rate, i), xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=8.5, color=INK[theme])  # fmt: skip
        axes.set_yticks(range(len(rows)), [_plain(f"{s.run}\n{_way(s.sampler, s.nfe)}") for s in rows])
        axes.set_xlabel("images per second (logarithmic)")
        axes.grid(False, axis="y")

    said = "; ".join(f"{s.run} {_way(s.sampler, s.nfe)}: {s.images_per_second:,.3g}" for s in reversed(rows))
    return _figure(
        draw,
        name="speed",
        alt=f"Images per second: {said}.",
        caption="Sampling speed under equal settings.",
        height=0.9 + 0.52 * len(rows),
    )


def grid_figure(images: torch.Tensor, *, name: str, alt: str, caption: str, count: int = 64) -> Figure:
    """The first `count` of uint8 images [N, 3, H, W] in rows of 8; small ones are enlarged by whole pixels."""
    images = images[:count]
    side = images.shape[-1]
    if side >= 2 * GRID_TILE:
        images = F.interpolate(images.float(), size=(GRID_TILE, GRID_TILE), mode="area").round().to(torch.uint8)
    else:
        factor = max(1, -(-GRID_TILE // side))
        images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    opaque = torch.cat([images, torch.full_like(images[:, :1], 255)], dim=1)  # the gaps stay transparent
    grid = make_grid(opaque, nrow=8, padding=3, pad_value=0)
    memory = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy()).save(memory, format="PNG", optimize=True)
    return Figure(name, alt, caption, memory.getvalue(), width=grid.shape[-1], height=grid.shape[-2])


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: no formulas between dollars, no label hidden for its underscore."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _way(sampler: str | None, nfe: int | None) -> str:
    return f"{sampler or 'images'}, {nfe} NFE" if nfe is not None else (sampler or "images")


def _figure(draw: Callable[[Any, str], None], *, name: str, alt: str, caption: str, height: float = 3.6) -> Figure:
    """Draw both editions on a transparent ground."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    editions = {}
    for theme in ("light", "dark"):
        canvas = Canvas(figsize=(6.4, height), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        _style(axes, theme)
        draw(axes, theme)
        memory = io.BytesIO()
        canvas.savefig(memory, format="png", dpi=DPI, transparent=True)
        editions[theme] = memory.getvalue()
    return Figure(name, alt, caption, editions["light"], editions["dark"], width=640, height=round(100 * height))


def _style(axes: Any, theme: str) -> None:
    axes.grid(True, color=GRID[theme], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK[theme], labelsize=8.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID[theme])
    axes.xaxis.label.set_color(INK[theme])
    axes.yaxis.label.set_color(INK[theme])


def _scale_y(axes: Any, values: Sequence[float]) -> None:
    """Logarithmic with plain numbers at 1, 2, 5 where the values are positive and span a factor of 3."""
    if min(values) <= 0 or max(values) < 3 * min(values):
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _legend(axes: Any, theme: str) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(
        frameon=False, labelcolor=INK[theme], fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3,
        ncols=2, handlelength=1.8, columnspacing=1.4, borderpad=0,
    )  # fmt: skip


def on_white(png: bytes) -> bytes:
    """A picture with its transparent ground made white, as one wants it in a file of its own."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    memory = io.BytesIO()
    Image.alpha_composite(ground, picture).convert("RGB").save(memory, format="PNG", optimize=True)
    return memory.getvalue()
