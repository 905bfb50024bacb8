"""What the numbers of a comparison say first, and how far they can be trusted, in a few plain sentences.

Only independent evaluators decide: what kin and relatives of a training encoder measure is shown, and ranks nothing.
"""

from collections.abc import Sequence
from typing import Any

from driftkit.comparison.agreement import NEAR_FLOOR, Opinion, Pair, leader_of, noise_of
from driftkit.comparison.formats import METRIC_NAMES, format_rate, format_score, way_name
from driftkit.comparison.reading import mapping, number
from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_records import speed_of
from driftkit.comparison.score_table import (
    ON_TRAINING_DATA,
    RANDOM_WEIGHTS,
    RAW_WEIGHTS,
    SMALL_N,
    ScoreRow,
    ScoreTable,
)
from driftkit.comparison.speed import Speed
from driftkit.metrics.appearance import PROPERTIES

MOST_SENTENCES = 4  # on pairs of runs of one kind; more of them are counted
WANTED_EVALUATORS = 3
TELLING_RATIO, TELLING_DISTANCE = 1.5, 0.01  # a property in which two runs differ more than this is named
SEES = {"pixels": "colours, background and layout"}
SEES_DEFAULT = "shapes and objects"


def findings(
    tables: Sequence[ScoreTable], pairs: Sequence[Pair], speeds: Sequence[Speed], *, advice: str | None = None
) -> list[str]:
    """Sentences on all score tables: who ranks first, whether that is sure, and what one evaluation per image buys.

    Args:
        tables: the table of most runs first.
        pairs: what independent evaluators say of every two scored runs.
        speeds: measured sampling speeds.
        advice: a command that makes a score by an evaluator independent of all runs.
    """
    disputed = [pair for pair in pairs if pair.verdict == "disputed"]
    unknown = [pair for pair in pairs if pair.verdict == "unknown"]
    said = _leading(tables, pairs, speeds)
    said += _limited([_dispute(pair) for pair in disputed])
    said += [looks for pair in disputed[:MOST_SENTENCES] if (looks := _differences(pair, tables))]
    if unknown:
        said.append(_unranked(unknown, advice))
    if leader_of(pairs) is None:
        agreed = [f"{pair.better} above {pair.worse}" for pair in pairs if pair.verdict == "ranked"]
        tied = [f"{pair.first} and {pair.second}" for pair in pairs if pair.verdict == "tied"]
        if agreed:
            said.append(f"What every independent evaluator agrees on: {_listed(agreed)}.")
        if tied:
            said.append(f"Too close to order: {_listed(tied)}.")
    one_step = next((s for table in tables if (s := _one_step_against_many(table, pairs))), None)
    return [*said, one_step] if one_step else said


def _leading(tables: Sequence[ScoreTable], pairs: Sequence[Pair], speeds: Sequence[Speed]) -> list[str]:
    """Who is first by every independent evaluator, and how sure that is; of a single run, its score."""
    alone = not pairs and tables and tables[0].rows
    leader = tables[0].rows[0].run if alone else leader_of(pairs)
    if leader is None:
        return []
    scored = [(table, row) for table in tables if (row := table.best(leader)) is not None]
    if not scored:
        return []
    if alone:
        return [f"{leader} scores {_told(*scored[0], speeds)}."]
    votes = [o for p in pairs for o in p.opinions if o.independent and o.better == leader]
    names = list(dict.fromkeys(o.evaluator for o in votes))
    scored.sort(key=lambda pair: pair[0].extractor["name"] not in names)  # what leads the sentence has voted
    by = f"both {' and '.join(names)}" if len(names) == 2 else f"all of {_listed(names)}" if names[1:] else names[0]
    table, row = scored[0]
    said = [f"{leader} ranks first by {by}: {_told(table, row, speeds, named=len(names) > 1)}."]
    rival = next((r for r in table.rows if r.run != leader and r.metrics["fid"] > row.metrics["fid"]), None)
    return [*said, _order(row, rival)] if rival else said


def _told(table: ScoreTable, row: ScoreRow, speeds: Sequence[Speed], *, named: bool = True) -> str:
    """A score, how it was come by, and what real images get; `named` with the evaluator."""
    how = way_name(row.sampler, row.nfe) + _rate(row, speeds)
    by = f" by {table.extractor['name']}" if named else ""
    return f"{table.name} {_value(row)}{by} ({how}){_against_floor(row)}"


def _dispute(pair: Pair) -> str:
    """Which evaluators order two runs differently, and by how much."""
    sides = [_side(pair, o) for o in pair.opinions if o.better is not None]
    return f"{pair.first} and {pair.second} are not ranked, since evaluators disagree: {'; '.join(sides)}."


def _side(pair: Pair, opinion: Opinion) -> str:
    scores = {pair.first: opinion.first, pair.second: opinion.second}
    better = str(opinion.better)
    worse = pair.second if better == pair.first else pair.first
    sees = SEES.get(opinion.evaluator, SEES_DEFAULT) + ("" if opinion.independent else "; related to the training")
    return (
        f"{opinion.evaluator} ({sees}) puts {better} first ({format_score(scores[better])} against "
        f"{format_score(scores[worse])})"
    )


def _differences(pair: Pair, tables: Sequence[ScoreTable]) -> str:
    """The plain properties in which the images of one run are clearly nearer to real ones than those of the other."""
    tables_of_both = [t for t in tables if t.has(pair.first) and t.has(pair.second)]
    rows = next(((_any(t, pair.first), _any(t, pair.second)) for t in tables_of_both), None)
    if rows is None:
        return ""
    told: dict[str, list[str]] = {}
    for key, name in PROPERTIES.items():
        one, other = (mapping(row.appearance.get(key)) for row in rows)
        ours, theirs = number(one.get("distance")), number(other.get("distance"))
        if ours is None or theirs is None:
            continue
        near, far = sorted((ours, theirs))
        if far - near > TELLING_DISTANCE and far > TELLING_RATIO * near:
            nearer = pair.first if ours < theirs else pair.second
            values = ", ".join(f"{run} {_mean(what)}" for run, what in ((pair.first, one), (pair.second, other)))
            told.setdefault(nearer, []).append(f"{name} ({values}, real {_mean(one, 'real')})")
    sides = [f"{run} is nearer in {', '.join(names)}" for run, names in told.items()]
    return f"Measured in the images of {pair.first} and {pair.second}: {'; '.join(sides)}." if sides else ""


def _any(table: ScoreTable, run: str) -> ScoreRow:
    return next(row for row in (*table.rows, *table.apart) if row.run == run)


def _mean(values: Any, of: str = "generated") -> str:
    value = number(values.get(of))
    return "–" if value is None else f"{value:.3f}"


def _unranked(pairs: Sequence[Pair], advice: str | None) -> str:
    named = [f"{pair.first} and {pair.second}" for pair in pairs]
    how = f"; one is made by: {advice}" if advice else ""
    return f"No evaluator that is independent of both has scored {_listed(named)}, so they cannot be ranked{how}."


def _limited(sentences: list[str]) -> list[str]:
    more = len(sentences) - MOST_SENTENCES
    return sentences if more <= 0 else [*sentences[:MOST_SENTENCES], f"Of {more} more pairs of runs the same is true."]


def _listed(words: Sequence[str]) -> str:
    shown = list(words[: 2 * MOST_SENTENCES])
    return ", ".join(shown) + (f" and {len(words) - len(shown)} more" if len(words) > len(shown) else "")


def _value(row: ScoreRow) -> str:
    spread = row.spread.get("fid")
    return format_score(row.metrics["fid"]) + (f" ± {spread:.2g}" if spread is not None else "")


def _rate(row: ScoreRow, speeds: Sequence[Speed]) -> str:
    speed = speed_of(speeds, row.run, row.sampler, row.nfe)
    return f", {format_rate(speed.images_per_second)} images/s" if speed else ""


def _against_floor(row: ScoreRow) -> str:
    if not row.floor or row.floor <= 0:
        return ""
    ratio = row.metrics["fid"] / row.floor
    real = f"; real images among themselves score {format_score(row.floor)}"
    return real + (", so nothing is left to tell apart" if ratio < NEAR_FLOOR else f", {ratio:.3g} times less")


def _order(best: ScoreRow, second: ScoreRow) -> str:
    """How sure it is that the first is better than the second."""
    gap = second.metrics["fid"] - best.metrics["fid"]
    follows = f"{second.run} follows with {_value(second)} ({way_name(second.sampler, second.nfe)})"
    if any("fid" not in row.spread for row in (best, second)):
        return f"{follows}; without repeats it is not known how much of the difference is chance."
    noise = noise_of(best, second)
    if gap <= noise:
        return f"{follows}: too close to order, since two standard deviations of the difference are {noise:.2g}."
    return f"{follows}: {gap / (noise / 2):.1f} standard deviations of the noise behind."


def _one_step_against_many(table: ScoreTable, pairs: Sequence[Pair]) -> str | None:
    """How many evaluations the best sampler of many steps needs to reach the best score of one evaluation.

    None where evaluators do not agree on the two runs.
    """
    multiple = {row.run for row in table.rows if row.nfe is not None and row.nfe > 1}
    others = [row for row in table.rows if row.run in multiple and row.nfe is not None]
    singles = [row for row in table.rows if row.nfe == 1 and row.run not in multiple]
    if not singles or not others:
        return None
    one = singles[0]
    best = min(others, key=lambda r: r.metrics["fid"])
    reaching = [row for row in others if row.metrics["fid"] <= one.metrics["fid"]]
    first = min(reaching, key=lambda r: r.nfe or 0) if reaching else best
    better = first.run if reaching else one.run
    if not any(pair.better == better and {one.run, first.run} == {pair.first, pair.second} for pair in pairs):
        return None
    if not reaching:
        return (
            f"At no NFE that was scored does a sampler of many steps reach what {one.run} gives with one evaluation "
            f"({_value(one)} by {table.extractor['name']}): the best of them is {best.run} with {_value(best)} at "
            f"{best.nfe} NFE."
        )
    return (
        f"{first.run} passes the best score of one evaluation ({one.run}, {_value(one)} by "
        f"{table.extractor['name']}) from {first.nfe} NFE on ({first.sampler}, {_value(first)})."
    )


def cautions(tables: Sequence[ScoreTable], pairs: Sequence[Pair], runs: Sequence[RunSummary]) -> list[str]:
    """What speaks against taking the numbers at face value; empty where nothing is known to.

    Args:
        tables: the table of most runs first.
        pairs: what independent evaluators say of every two scored runs.
        runs: the compared runs, scored or not.
    """
    rows = [row for table in tables for row in table.rows]
    badges = {
        badge: [row.run for row in rows if badge in row.badges]
        for badge in (ON_TRAINING_DATA, RANDOM_WEIGHTS, RAW_WEIGHTS)
    }
    untrained = {run.label for run in runs if run.steps == 0}
    trained = [pair for pair in pairs if untrained.isdisjoint((pair.first, pair.second))]
    said = _kin(tables) + _few_evaluators(tables, pairs) + _flips(trained)
    small = [table.name for table in tables if any(SMALL_N in row.badges for row in (*table.rows, *table.apart))]
    if small:
        said.append(f"{_listed(list(dict.fromkeys(small)))} is of few images: biased upwards, and no published number.")
    if badges[ON_TRAINING_DATA]:
        said.append("The reference is what the runs were trained on: a generator that copies would win.")
    if badges[RANDOM_WEIGHTS]:
        said.append(f"Trained with an encoder of random weights: {_names(badges[RANDOM_WEIGHTS])}.")
    if badges[RAW_WEIGHTS]:
        said.append(f"Raw weights instead of averaged ones were scored for {_names(badges[RAW_WEIGHTS])}.")
    if rows and not any("fid" in row.spread for row in rows):
        said.append("Every score is of one seed: no spread is known.")
    scored = [run for run in runs if run.steps and any(table.has(run.label) for table in tables)]
    for what, values in (
        ("training images", {r.data_digest or r.data for r in scored}),
        ("parameters", {r.parameters for r in scored}),
        ("training lengths", {r.images_seen for r in scored}),
    ):
        if len(values) > 1:
            said.append(f"The runs differ in {what}, so the method is not all that differs.")
    return said


def _kin(tables: Sequence[ScoreTable]) -> list[str]:
    """Which scores rank nothing, and why."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for table in tables:
        for row in table.apart:
            found.setdefault((table.extractor["name"], row.kinship.reason), {})[row.run] = None
    return [
        f"{evaluator} ranks nothing that involves {_listed(list(labels))}: {reason}."
        for (evaluator, reason), labels in found.items()
    ]


def _few_evaluators(tables: Sequence[ScoreTable], pairs: Sequence[Pair]) -> list[str]:
    ranked = [pair for pair in pairs if pair.verdict == "ranked"]
    counted = [len({o.evaluator for o in pair.opinions if o.independent and o.better}) for pair in ranked]
    fewest = min(counted, default=WANTED_EVALUATORS)
    if fewest >= WANTED_EVALUATORS:
        return []
    number_of = {1: "one independent evaluator alone", 2: "two independent evaluators"}
    return [f"The ranking rests on {number_of[fewest]}; {WANTED_EVALUATORS} of different training would bear more."]


def _flips(pairs: Sequence[Pair]) -> list[str]:
    return _limited(
        [
            f"{_listed([METRIC_NAMES[key] for key in opinion.flips])} of {opinion.evaluator} "
            f"{'orders' if len(opinion.flips) == 1 else 'order'} {pair.first} and {pair.second} the other way round "
            f"than its {opinion.name}."
            for pair in pairs
            for opinion in pair.opinions
            if opinion.flips
        ]
    )


def _names(runs: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(runs))


def scored_runs(tables: Sequence[ScoreTable]) -> list[str]:
    """Labels of all runs that have a score, those of the first table first, best first."""
    return list(dict.fromkeys(row.run for table in tables for row in (*table.rows, *table.apart)))
