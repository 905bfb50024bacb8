"""The charts of a comparison: scores against cost and training, and signals of training."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from driftkit.comparison.formats import format_score, sampler_label
from driftkit.comparison.run_summary import RunSummary, curves_of
from driftkit.comparison.score_table import ScoreRow, ScoreTable
from driftkit.comparison.speed import Speed, speed_of
from driftkit.methods.registry import Curve
from driftkit.runtime.drawing import INK, PALETTES, Figure, draw_figure, legend, plain_label, scale_y

MARKS, LINE_MARKS = "osD^vPX<>", "osD^v"
DASHES = ("-", "--", ":", "-.")
WIDTH = 4.8  # inches: three stand side by side, and the words are read on a phone
NUM_COLOURS = len(PALETTES["light"])
AXIS_NAMES = {
    "nfe": "network evaluations per image (NFE)",
    "time": "milliseconds per image, measured here",
    "step": "training step",
    "seconds": "seconds of training",
}
TRAINING_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))

Colours = Mapping[str, int]
"""Run label -> index in the palette."""
Line = list[tuple[float, float]]


def colour_of(labels: Sequence[str]) -> dict[str, int]:
    """A colour of the palette for every run, the same in all pictures."""
    return {label: i % NUM_COLOURS for i, label in enumerate(labels)}


def all_charts(
    runs: Sequence[RunSummary], tables: Sequence[ScoreTable], speeds: Sequence[Speed], colours: Colours
) -> dict[str, list[Figure]]:
    """All charts by section of the report: "curves"; scores under the key of a table, costs under "cost-" + key."""
    sections = {"curves": _training_charts(runs, colours)}
    for table in tables:
        charts = [
            cost_figure(table, "nfe", colours=colours),
            cost_figure(table, "time", colours=colours, speeds=speeds),
            *(history_figure(table, cost, runs, colours=colours) for cost in ("step", "seconds")),
        ]
        sections[f"cost-{table.key}"] = [chart for chart in charts if chart]
        sections[table.key] = (
            [score_figure(table, colours=colours)] if any(r.is_of_all_classes for r in table.rows) else []
        )
    return sections


def _training_charts(runs: Sequence[RunSummary], colours: Colours) -> list[Figure]:
    """Scores during training, then every curve of the methods, shared by methods that describe it alike."""
    charts: list[Figure | None] = []
    for number, setup in enumerate(dict.fromkeys(r.scored_by for r in runs if r.scored_by), start=1):
        curve = Curve("score", setup.split(" ")[0], f"Scores while they trained: {setup}, of the averaged weights.")
        scored = [r for r in runs if r.scored_by == setup]
        charts.append(curve_figure(scored, curve, name=f"score-in-training-{number}", colours=colours))
    names: set[str] = set()
    for curve in dict.fromkeys(curve for run in runs for curve in curves_of(run.method)):
        name = re.sub(r"\W+", "-", curve.label)
        if name in names:
            name = f"{name}-{len(names)}"
        names.add(name)
        users = [run for run in runs if curve in curves_of(run.method)]
        charts.append(curve_figure(users, curve, name=name, colours=colours))
    return [chart for chart in charts if chart]


def curve_figure(runs: Sequence[RunSummary], curve: Curve, *, name: str, colours: Colours) -> Figure | None:
    """A signal of training over the steps; None where no run has it.

    The axis is logarithmic where the signal spans a factor of 3, else linear; or linear from 0 where the curve says so.
    """
    lines: list[tuple[str, Line]] = []
    for run in runs:
        points = [(p["step"], p.get(curve.key)) for p in run.curve]
        known = [(step, value) for step, value in points if step is not None and value is not None]
        line = [(step, value) for step, value in known if value > 0 or curve.from_zero]  # a logarithm has no room for 0
        if len(line) > 1:
            lines.append((run.label, line))
    if not lines:
        return None
    values = [value for _, points in lines for _, value in points]

    def draw(axes: Any, theme: str) -> None:
        for number, (label, points) in enumerate(lines):
            dash = DASHES[number // NUM_COLOURS % len(DASHES)]  # another one for every turn of the palette
            axes.plot(*zip(*points, strict=True), color=PALETTES[theme][colours[label]], linewidth=1.6,
                      label=plain_label(label), linestyle=dash)  # fmt: skip
        if curve.from_zero:
            axes.set_ylim(0, 1.25 * max(values) or 1)
        else:
            scale_y(axes, values)
        axes.set_xlim(left=0)
        axes.set_xlabel(AXIS_NAMES["step"])
        axes.set_ylabel(curve.label)
        legend(axes, theme)

    ends = "; ".join(f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for label, points in lines)
    alt = f"{curve.label} over training steps: {ends}."
    return draw_figure(draw, name=name, alt=alt, caption=curve.caption, entries=len(lines), width=WIDTH)


def score_figure(table: ScoreTable, *, colours: Colours) -> Figure:
    """One bar for the best row of every run, with its real-vs-real floor as a mark."""
    best = [row for row in table.rows if row is table.best(row.run)]
    rows = best[::-1]

    def draw(axes: Any, theme: str) -> None:
        spreads = [r.score_sd or 0.0 for r in rows]
        fills = [PALETTES[theme][colours.get(r.run, 0)] for r in rows]
        axes.barh(range(len(rows)), [r.score for r in rows], xerr=spreads if any(spreads) else None, color=fills,
                  height=0.62, error_kw={"ecolor": INK[theme], "elinewidth": 1.1})  # fmt: skip
        floors = [(i, r.floor) for i, r in enumerate(rows) if r.floor is not None]
        for number, (i, floor) in enumerate(floors):
            label = "real-vs-real floor" if number == 0 else None
            axes.plot([floor, floor], [i - 0.42, i + 0.42], color=INK[theme], linewidth=1.8, label=label)
        for i, row in enumerate(rows):
            axes.annotate(format_score(row.score), (row.score + spreads[i], i), xytext=(5, 0),
                          textcoords="offset points", va="center", fontsize=8.5, color=INK[theme])  # fmt: skip
        axes.set_yticks(range(len(rows)), [plain_label(f"{r.run}\n{sampler_label(r.sampler, r.nfe)}") for r in rows])
        axes.set_xlim(0, 1.16 * max(max(r.score for r in rows), 1e-9))
        axes.set_xlabel(f"{table.name} (lower is better)")
        axes.grid(False, axis="y")
        if floors:
            legend(axes, theme)

    described = "; ".join(f"{r.run} {sampler_label(r.sampler, r.nfe)}: {format_score(r.score)}" for r in best)
    return draw_figure(
        draw,
        name=f"scores-{table.key}",
        alt=f"{table.name} by {table.title}: {described}.",
        caption=f"The best {table.name} of every run by {table.extractor.name}; the mark is the real-vs-real floor.",
        height=0.9 + 0.46 * len(rows),
        entries=1,
        width=WIDTH,
    )


def cost_figure(table: ScoreTable, axis: str, *, colours: Colours, speeds: Sequence[Speed] = ()) -> Figure | None:
    """Scores over "nfe" or measured "time" per image: a line per sampler, one-step models as points.

    None where nothing of it is known, or where all rows cost the same.
    """
    lines: dict[tuple[str, str], list[tuple[float, ScoreRow]]] = {}
    for row in table.rows:
        cost = None if row.nfe is None else float(row.nfe)
        if axis == "time":
            speed = speed_of(speeds, row.run, row.sampler, row.nfe)
            cost = 1000 / speed.images_per_second if speed else None
        if cost is not None:
            label = " · ".join(part for part in (row.sampler, _weights(row)) if part)
            lines.setdefault((row.run, label), []).append((cost, row))
    lines = {key: sorted(points, key=lambda p: p[0]) for key, points in lines.items()}
    costs = {cost for points in lines.values() for cost, _ in points}
    if len(costs) < 2:
        return None

    def draw(axes: Any, theme: str) -> None:
        count_of_run: dict[str, int] = {}
        for number, ((run, sampler), points) in enumerate(lines.items()):
            nth = count_of_run[run] = count_of_run.get(run, -1) + 1
            single = len(points) == 1
            errors = [row.score_sd or 0.0 for _, row in points]
            axes.errorbar(
                [cost for cost, _ in points], [row.score for _, row in points], yerr=errors if any(errors) else None,
                color=PALETTES[theme][colours.get(run, 0)], linewidth=1.6, capsize=2, markersize=7 if single else 4.5,
                label=plain_label(run if single else f"{run} · {sampler}"),
                marker=MARKS[number % len(MARKS)] if single else LINE_MARKS[nth % len(LINE_MARKS)],
                linestyle="none" if single else DASHES[nth % len(DASHES)],
            )  # fmt: skip
        axes.set_xlabel(AXIS_NAMES[axis])
        _score_axis(axes, table, theme, [row.score for points in lines.values() for _, row in points])
        _scale_x(axes, sorted(costs), named=axis == "nfe")
        legend(axes, theme)

    described = "; ".join(
        f"{run} {sampler}: " + ", ".join(f"{format_score(row.score)} at {cost:.3g}" for cost, row in points)
        for (run, sampler), points in lines.items()
    )
    against = "evaluations of the network" if axis == "nfe" else "the time that sampling takes"
    return draw_figure(
        draw,
        name=f"{axis}-{table.key}",
        alt=f"{table.name} over {AXIS_NAMES[axis]}. {described}.",
        caption=f"Quality against {against}: samplers of many steps as lines, one-step models as points. "
        "Lower and further to the left is better.",
        entries=len(lines) + 1,
        width=WIDTH,
    )


def _weights(row: ScoreRow) -> str | None:
    return row.weights if row.weights != "ema" else None


def history_figure(table: ScoreTable, cost: str, runs: Sequence[RunSummary], *, colours: Colours) -> Figure | None:
    """Scores of checkpoints over "step" or "seconds" of training; None unless a run was scored at two."""
    summaries = {run.label: run for run in runs}
    lines: dict[tuple[str, str, str | None], Line] = {}
    for row in table.history:
        run = summaries.get(row.run)
        value = run.cost_at(row.step, cost) if run is not None and row.step is not None else None
        if value is not None:
            key = (row.run, sampler_label(row.sampler, row.nfe), _weights(row))
            lines.setdefault(key, []).append((value, row.score))
    lines = {key: sorted(points) for key, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    axis_name = AXIS_NAMES[cost]
    if cost == "seconds":
        longest = max(x for points in lines.values() for x, _ in points)
        name, unit = next((n, u) for n, u in TRAINING_UNITS if longest >= 2 * u or u == 1)
        axis_name = f"{name} of training"
        lines = {key: [(x / unit, y) for x, y in points] for key, points in lines.items()}

    def draw(axes: Any, theme: str) -> None:
        count_of_run: dict[str, int] = {}
        for (run, setup, raw), points in lines.items():
            nth = count_of_run[run] = count_of_run.get(run, -1) + 1
            label = " · ".join(part for part in (run, setup, raw) if part)
            axes.plot(*zip(*points, strict=True), color=PALETTES[theme][colours.get(run, 0)], label=plain_label(label),
                      linewidth=1.6, marker=LINE_MARKS[nth % len(LINE_MARKS)], markersize=4.5,
                      linestyle=DASHES[nth % len(DASHES)])  # fmt: skip
        axes.set_xlabel(axis_name)
        _score_axis(axes, table, theme, [y for points in lines.values() for _, y in points])
        axes.set_xlim(left=0)
        legend(axes, theme)

    described = "; ".join(
        f"{run} {setup} from {format_score(points[0][1])} to {format_score(points[-1][1])}"
        for (run, setup, _), points in lines.items()
    )
    return draw_figure(
        draw,
        name=f"{cost}-{table.key}",
        alt=f"{table.name} over {axis_name}: {described}.",
        caption=f"Quality over {axis_name}: every checkpoint that was scored.",
        entries=len(lines) + 1,
        width=WIDTH,
    )


def _score_axis(axes: Any, table: ScoreTable, theme: str, scores: Sequence[float]) -> None:
    """A vertical axis with room for the scores and for a line at the floor."""
    floor = next((row.floor for row in table.rows if row.floor is not None and row.floor > 0), None)
    if floor is not None:
        axes.axhline(floor, color=INK[theme], linewidth=1, linestyle=(0, (1, 2)), label="real-vs-real floor")
    axes.set_ylabel(f"{table.name} (lower is better)")
    values = [*scores, *([floor] if floor else [])]
    scale_y(axes, values)
    axes.set_ylim(bottom=0.75 * min(values) if axes.get_yscale() == "log" else 0)


def _scale_x(axes: Any, values: Sequence[float], *, named: bool) -> None:
    """Logarithmic, with a tick at every value where `named`, which suits NFE, else at 1, 2, 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(values[0] / 1.35, values[-1] * 1.35)
    if named:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
