"""Which charts a comparison has, and what is said below them."""

from collections.abc import Mapping, Sequence

from driftkit.comparison.figures import cost_figure, curve_figure, history_figure, score_figure
from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_table import ScoreTable
from driftkit.comparison.speed import Speed
from driftkit.runtime.drawing import Figure


def all_charts(
    runs: Sequence[RunSummary], tables: Sequence[ScoreTable], speeds: Sequence[Speed], colours: Mapping[str, int]
) -> dict[str, list[Figure]]:
    """All charts by section of the report: "curves", and those of a score table under its key."""
    drifting = [r for r in runs if r.drift_norm is not None]
    regressing = [r for r in runs if r.drift_norm is None]
    curves = [
        curve_figure(drifting, "drift_norm", name="drift-norm", ylabel="drift norm", colours=colours,
                     caption="Drift norm: how far real and generated features still pull apart."),
        curve_figure(drifting, "spread", name="spread", ylabel="spread", colours=colours, from_zero=True,
                     caption="Spread of generated features over that of real ones: 1 is as varied as real images, "
                     "near 0 is collapse."),
        curve_figure(regressing, "loss", name="loss", ylabel="loss", colours=colours,
                     caption="Loss of the runs that minimise one."),
        curve_figure(drifting, "loss", name="drift-loss", ylabel="normalised drifting loss", colours=colours,
                     from_zero=True,
                     caption="Normalised drifting loss: flat by construction, shown so that nobody waits for it."),
    ]  # fmt: skip
    judges = dict.fromkeys(r.scored_by for r in runs if r.scored_by)
    for number, judge in enumerate(judges, start=1):
        judged = [r for r in runs if r.scored_by == judge]
        name = judge.split(" ")[0]
        curves.insert(
            number - 1,
            curve_figure(judged, "score", name=f"score-on-the-way-{number}", ylabel=name, colours=colours,
                         caption=f"Scores while they trained: {judge}, of the averaged weights."),
        )  # fmt: skip
    sections: dict[str, list[Figure]] = {"curves": [c for c in curves if c]}
    for table in tables:
        pictures: list[Figure | None] = [cost_figure(table, "nfe", colours=colours)]
        pictures.append(cost_figure(table, "time", colours=colours, speeds=speeds))
        pictures += [history_figure(table, cost, runs, colours=colours) for cost in ("step", "seconds")]
        drawn = [picture for picture in pictures if picture]
        bars = [score_figure(table, colours=colours)] if table.rows else []
        sections[table.key] = drawn or bars
    return sections
