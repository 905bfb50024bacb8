"""Charts of a comparison: scores against cost and training, losses and health. Each in a light and a dark edition."""

from collections.abc import Mapping, Sequence
from typing import Any

from driftkit.comparison.formats import format_score, way_name
from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_records import speed_of
from driftkit.comparison.score_table import ScoreRow, ScoreTable
from driftkit.comparison.speed import Speed
from driftkit.runtime.drawing import INK, PALETTES, Figure, draw_figure, legend, plain_label, scale_y

MARKS = "osD^vPX<>"
DASHES = ("-", "--", ":", "-.")
AXIS_NAMES = {
    "nfe": "network evaluations per image (NFE)",
    "time": "milliseconds per image, measured here",
    "step": "training step",
    "images": "images seen in training",
    "seconds": "seconds of training",
}
TRAINING_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


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
        for place, (label, points) in enumerate(drawn):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=PALETTES[theme][colours[label]], linewidth=1.6, label=plain_label(label),
                      linestyle=_dash(place, colours))  # fmt: skip
        if from_zero:
            axes.set_ylim(0, 1.25 * max(value for _, points in drawn for _, value in points))
        else:
            scale_y(axes, [value for _, points in drawn for _, value in points])
        axes.set_xlim(left=0)
        axes.set_xlabel(AXIS_NAMES["step"])
        axes.set_ylabel(ylabel)
        legend(axes, theme)

    ends = "; ".join(f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for label, points in drawn)
    return draw_figure(
        draw, name=name, alt=f"{ylabel} over training steps: {ends}.", caption=caption, entries=len(drawn)
    )


def score_figure(table: ScoreTable, *, colours: Mapping[str, int]) -> Figure:
    """One bar for the best row of every run, with its real-vs-real floor as a mark."""
    best = [row for row in table.rows if row is table.best(row.run)]
    rows = best[::-1]
    names = [plain_label(f"{r.run}\n{way_name(r.sampler, r.nfe)}") for r in rows]

    def draw(axes: Any, theme: str) -> None:
        scores = [r.metrics["fid"] for r in rows]
        spreads = [r.spread.get("fid", 0.0) for r in rows]
        fills = [PALETTES[theme][colours.get(r.run, 0)] for r in rows]
        axes.barh(range(len(rows)), scores, xerr=spreads if any(spreads) else None, color=fills, height=0.62,
                  error_kw={"ecolor": INK[theme], "elinewidth": 1.1})  # fmt: skip
        floors = [(i, r.floor) for i, r in enumerate(rows) if r.floor is not None]
        for place, (i, floor) in enumerate(floors):
            label = "real against real" if place == 0 else None
            axes.plot([floor, floor], [i - 0.42, i + 0.42], color=INK[theme], linewidth=1.8, label=label)
        for i, score in enumerate(scores):
            at = (score + spreads[i], i)
            axes.annotate(format_score(score), at, xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=8.5, color=INK[theme])  # fmt: skip
        axes.set_yticks(range(len(rows)), names)
        axes.set_xlim(0, 1.16 * max(max(scores), 1e-9))
        axes.set_xlabel(f"{table.name} (lower is better)")
        axes.grid(False, axis="y")
        if floors:
            legend(axes, theme)

    said = "; ".join(f"{r.run} {way_name(r.sampler, r.nfe)}: {format_score(r.metrics['fid'])}" for r in best)
    return draw_figure(
        draw,
        name=f"scores-{table.key}",
        alt=f"{table.name} by {table.title}: {said}.",
        caption="The best score of every run. The mark is what two halves of the real images score against each other.",
        height=0.9 + 0.46 * len(rows),
        entries=1,
    )


def cost_figure(
    table: ScoreTable, axis: str, *, colours: Mapping[str, int], speeds: Sequence[Speed] = ()
) -> Figure | None:
    """Scores over "nfe" or measured "time" per image: a line per sampler, one-step models as points.

    None where nothing of it is known, or where all rows cost the same.
    """
    lines: dict[tuple[str, str], list[tuple[float, ScoreRow]]] = {}
    for row in table.rows:
        cost = _cost(row, axis, speeds)
        if cost is not None:
            way = " · ".join(part for part in (row.sampler, "raw" if row.weights == "raw" else None) if part)
            lines.setdefault((row.run, way), []).append((cost, row))
    costs = {cost for points in lines.values() for cost, _ in points}
    if len(costs) < 2:
        return None

    def draw(axes: Any, theme: str) -> None:
        drawn: dict[str, int] = {}
        for place, ((run, way), points) in enumerate(lines.items()):
            points = sorted(points, key=lambda p: p[0])
            nth = drawn[run] = drawn.get(run, -1) + 1
            single = len(points) == 1
            label = run if single else f"{run} · {way}"
            mark = MARKS[place % len(MARKS)] if single else "osD^v"[nth % 5]
            x, y = [p[0] for p in points], [p[1].metrics["fid"] for p in points]
            errors = [p[1].spread.get("fid", 0.0) for p in points]
            axes.errorbar(
                x, y, yerr=errors if any(errors) else None, color=PALETTES[theme][colours.get(run, 0)],
                label=plain_label(label), linewidth=1.6, marker=mark, markersize=7 if single else 4.5, capsize=2,
                linestyle="none" if single else DASHES[nth % len(DASHES)],
            )  # fmt: skip
        _floor_line(axes, table, theme)
        axes.set_xlabel(AXIS_NAMES[axis])
        axes.set_ylabel(f"{table.name} (lower is better)")
        _scale_scores(axes, table, [p[1].metrics["fid"] for points in lines.values() for p in points])
        _scale_x(axes, sorted(costs), named=axis == "nfe")
        legend(axes, theme)

    said = "; ".join(
        f"{run} {way}: " + ", ".join(f"{format_score(r.metrics['fid'])} at {cost:.3g}" for cost, r in sorted(
            points, key=lambda p: p[0])) for (run, way), points in lines.items())  # fmt: skip
    what = "evaluations of the network" if axis == "nfe" else "the time that sampling takes"
    return draw_figure(
        draw,
        name=f"{axis}-{table.key}",
        alt=f"{table.name} over {AXIS_NAMES[axis]}. {said}.",
        caption=f"Quality against {what}: samplers of many steps as lines, one-step models as points. "
        "Lower and further to the left is better.",
        entries=len(lines) + 1,
    )


def _cost(row: ScoreRow, axis: str, speeds: Sequence[Speed]) -> float | None:
    if axis == "nfe":
        return None if row.nfe is None else float(row.nfe)
    speed = speed_of(speeds, row.run, row.sampler, row.nfe)
    return 1000 / speed.images_per_second if speed else None


def history_figure(
    table: ScoreTable, cost: str, runs: Sequence[RunSummary], *, colours: Mapping[str, int]
) -> Figure | None:
    """Scores of checkpoints over "step", "images" or "seconds" of training; None unless a run was scored at two."""
    known = {run.label: run for run in runs}
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in table.history:
        value = known[row.run].cost_at(row.step, cost) if row.run in known and row.step is not None else None
        if value is not None:
            way = (row.run, row.sampler, row.nfe, "raw" if row.weights == "raw" else None)
            lines.setdefault(way, []).append((value, row.metrics["fid"]))
    lines = {way: sorted(points) for way, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    axis_name, unit = AXIS_NAMES[cost], 1.0
    if cost == "seconds":
        most = max(x for points in lines.values() for x, _ in points)
        name, unit = next((n, u) for n, u in TRAINING_UNITS if most >= 2 * u or u == 1)
        axis_name = f"{name} of training"
        lines = {way: [(x / unit, y) for x, y in points] for way, points in lines.items()}

    def draw(axes: Any, theme: str) -> None:
        drawn: dict[str, int] = {}
        for (run, sampler, nfe, raw), points in lines.items():
            nth = drawn[run] = drawn.get(run, -1) + 1
            label = " · ".join(part for part in (run, way_name(sampler, nfe), raw) if part)
            axes.plot(*zip(*points, strict=True), color=PALETTES[theme][colours.get(run, 0)], label=plain_label(label),
                      linewidth=1.6, marker="osD^v"[nth % 5], markersize=4.5,
                      linestyle=DASHES[nth % len(DASHES)])  # fmt: skip
        _floor_line(axes, table, theme)
        axes.set_xlabel(axis_name)
        axes.set_ylabel(f"{table.name} (lower is better)")
        _scale_scores(axes, table, [y for points in lines.values() for _, y in points])
        axes.set_xlim(left=0)
        legend(axes, theme)

    said = "; ".join(
        f"{way[0]} {way_name(way[1], way[2])} from {format_score(points[0][1])} to {format_score(points[-1][1])}"
        for way, points in lines.items()
    )
    return draw_figure(
        draw,
        name=f"{cost}-{table.key}",
        alt=f"{table.name} over {axis_name}: {said}.",
        caption=f"Quality over {axis_name}: every checkpoint that was scored.",
        entries=len(lines) + 1,
    )


def _floor_of(table: ScoreTable) -> float | None:
    return next((row.floor for row in table.rows if row.floor is not None and row.floor > 0), None)


def _floor_line(axes: Any, table: ScoreTable, theme: str) -> None:
    floor = _floor_of(table)
    if floor is not None:
        axes.axhline(floor, color=INK[theme], linewidth=1, linestyle=(0, (1, 2)), label="real against real")


def _dash(place: int, colours: Mapping[str, int]) -> str:
    """Another dash for every turn of the palette, so that a ninth run is told from the first."""
    return DASHES[place // len(PALETTES["light"]) % len(DASHES)]


def _scale_scores(axes: Any, table: ScoreTable, scores: Sequence[float]) -> None:
    """Room for the scores and for the floor below them."""
    floor = _floor_of(table)
    values = [*scores, *([floor] if floor else [])]
    scale_y(axes, values)
    if axes.get_yscale() == "log":
        axes.set_ylim(bottom=0.75 * min(values))
    else:
        axes.set_ylim(bottom=0)


def _scale_x(axes: Any, values: Sequence[float], *, named: bool) -> None:
    """Logarithmic; `named` puts a mark at every value, which suits NFE, else at 1, 2, 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(values[0] / 1.35, values[-1] * 1.35)
    if named:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
