"""How charts are drawn: a light and a dark edition on the same axes, with names as they are."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

DPI = 160
# Distinct for people with colour-blindness; the dark edition is lighter.
PALETTES = {
    "light": ("#3b5bdb", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#e03131", "#5f3dc4", "#846358"),
    "dark": ("#91a7ff", "#ffa94d", "#69db7c", "#e599f7", "#66d9e8", "#ff8787", "#b197fc", "#d0bfb4"),
}
INK = {"light": "#343a40", "dark": "#ced4da"}
GRID = {"light": "#dee2e6", "dark": "#3b4048"}
TWO_COLUMNS = 26  # characters of the longest label of a legend in two columns
LABEL = 40  # characters of a run's name next to a chart; the middle of longer ones is left out


@dataclass(frozen=True)
class Figure:
    """One picture, with a text for those who do not see it.

    Attributes:
        name: file name without suffix.
        light, dark: what the page embeds, with `media_type`; `dark` is None where one edition serves both.
        png, svg: files next to the page; `svg` is None for pictures made of pixels.
        width, height: in CSS pixels.
    """

    name: str
    alt: str
    caption: str
    light: bytes
    png: bytes
    dark: bytes | None = None
    svg: bytes | None = None
    media_type: str = "image/png"
    width: int = 0
    height: int = 0


def plain_label(label: str) -> str:
    """Text that matplotlib shows as it is: no formulas between dollars, no label hidden for its underscore."""
    lines = [
        line if len(line) <= LABEL else f"{line[: LABEL // 2]}…{line[-LABEL // 2 :]}" for line in label.split("\n")
    ]
    escaped = "\n".join(lines).replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def draw_figure(
    draw: Callable[[Any, str], None],
    *,
    name: str,
    alt: str,
    caption: str,
    width: float = 6.4,
    height: float = 3.2,
    entries: int = 0,
) -> Figure:
    """Draw both editions on a transparent ground, in inches; `entries` of the legend, two to a row, make it taller."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    height += 0.2 * math.ceil(entries / 2)
    editions = {}
    png = b""
    with mpl.rc_context({"svg.hashsalt": "driftkit"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts that the one font here lacks
        for theme in ("light", "dark"):
            canvas = Canvas(figsize=(width, height), layout="constrained")
            FigureCanvasAgg(canvas)
            axes = canvas.add_subplot()
            axes.grid(True, color=GRID[theme], linewidth=0.7)
            axes.set_axisbelow(True)
            axes.tick_params(colors=INK[theme], labelsize=8.5, length=0, which="both")
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.spines["bottom"].set_color(GRID[theme])
            axes.xaxis.label.set_color(INK[theme])
            axes.yaxis.label.set_color(INK[theme])
            draw(axes, theme)
            memory = io.BytesIO()
            canvas.savefig(memory, format="svg", transparent=True, metadata={"Date": None})
            editions[theme] = memory.getvalue()
            if theme == "light":
                memory = io.BytesIO()
                canvas.savefig(memory, format="png", dpi=DPI, facecolor="white")
                png = memory.getvalue()
    light, dark = editions["light"], editions["dark"]
    files = (light, png, dark, light)
    return Figure(name, alt, caption, *files, "image/svg+xml", width=round(100 * width), height=round(100 * height))


def scale_y(axes: Any, values: Sequence[float]) -> None:
    """Logarithmic with plain numbers at 1, 2, 5 where the values are positive and span a factor of 3."""
    if not values or min(values) <= 0 or max(values) < 3 * min(values):
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def legend(axes: Any, theme: str) -> None:
    """Above the axes, where it hides nothing; long labels one below another."""
    longest = max(map(len, axes.get_legend_handles_labels()[1]), default=0)
    axes.legend(
        frameon=False, labelcolor=INK[theme], fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3,
        ncols=2 if longest <= TWO_COLUMNS else 1, handlelength=1.8, columnspacing=1.4, borderpad=0,
    )  # fmt: skip
