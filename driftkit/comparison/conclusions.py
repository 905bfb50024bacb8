"""What the numbers of a comparison say first, and how far they can be trusted, in a few plain sentences.

Only independent evaluators decide: what kin and relatives of a training encoder measure is shown, and ranks nothing.
"""

import shlex
from collections.abc import Sequence
from typing import get_args

from driftkit.comparison.agreement import NEAR_FLOOR, Pair, Verdict, leader_of, noise_of
from driftkit.comparison.formats import format_rate, format_score, format_spread, sampler_label
from driftkit.comparison.run_summary import CLASS_CONDITIONAL, OpenedRuns, RunSummary
from driftkit.comparison.score_table import (
    ON_TRAINING_DATA,
    RANDOM_WEIGHTS,
    RAW_WEIGHTS,
    SMALL_N,
    SOME_CLASSES,
    ScoreRow,
    ScoreTable,
)
from driftkit.comparison.speed import Speed, speed_of
from driftkit.encoders.lineage import Lineage, kinship
from driftkit.encoders.trained_encoder import MAE_RESNET
from driftkit.errors import shortened
from driftkit.metrics.registry import quantities
from driftkit.metrics.survey import PROPERTIES
from driftkit.scoring.extractors import DINOV2_LINEAGE, INSTALLED, INSTALLED_LINEAGE

MAX_SENTENCES = 4  # on pairs of runs of one kind; more of them are counted
MAX_NAMED = 8  # in a sentence
EXPECTED_EVALUATORS = 3
CLEAR_RATIO, CLEAR_DISTANCE = 1.5, 0.01  # a property in which two runs differ by more than both is named
SEES = {"pixels": "colours, background and layout"}
SEES_DEFAULT = "shapes and objects"


def findings(
    tables: Sequence[ScoreTable], pairs: Sequence[Pair], speeds: Sequence[Speed], *, advice: str | None = None
) -> list[str]:
    """Sentences on all score tables: which run is first, how sure that is, and what one evaluation per image buys.

    Args:
        tables: the table of most runs first.
        advice: a command that makes a score by an evaluator independent of all runs.
    """
    by_verdict = {v: [p for p in pairs if p.verdict == v] for v in get_args(Verdict)}
    disputed, unequal, unknown = (by_verdict[v] for v in ("disputed", "unequal", "unknown"))
    sentences = _leading(tables, pairs, speeds)
    sentences += _limited([f"{p.first} and {p.second} are not ranked: evaluators disagree." for p in disputed])
    for pair in disputed[:MAX_SENTENCES]:
        sentences += [*_sides(pair), *_appearance(pair, tables)]
    if unequal:
        named = shortened([f"{pair.first} and {pair.second}" for pair in unequal], MAX_NAMED)
        sentences.append(f"Not ranked, since one learned from labels and the other did not: {named}.")
    if unknown:
        named = shortened([f"{pair.first} and {pair.second}" for pair in unknown], MAX_NAMED)
        sentences.append(f"Not ranked, since no evaluator that is independent of both has scored them: {named}.")
        if advice:
            sentences.append(f"This makes such a score: {advice}")
    if leader_of(pairs) is None:
        agreed = [f"{pair.better} above {pair.worse}" for pair in by_verdict["ranked"]]
        tied = [f"{pair.first} and {pair.second}" for pair in by_verdict["tied"]]
        if agreed:
            sentences.append(f"What every independent evaluator agrees on: {shortened(agreed, MAX_NAMED)}.")
        if tied:
            sentences.append(f"Too close to order: {shortened(tied, MAX_NAMED)}.")
    one_step = next((s for table in tables if (s := _one_step_against_many(table, pairs))), None)
    return [*sentences, one_step] if one_step else sentences


def advice_for(opened: OpenedRuns, pairs: Sequence[Pair]) -> str | None:
    """A command that scores the first pair of runs that no independent evaluator has scored; None where none would."""
    unknown = next((pair for pair in pairs if pair.verdict == "unknown"), None)
    if unknown is None:
        return None
    runs = [run for run in opened.generators if run.label in (unknown.first, unknown.second)]
    training_encoders = [encoder for run in runs for encoder in run.training_encoders]
    again = f"driftkit compare {shlex.join(run.path for run in runs)} --evaluate --reference SPEC --extractor"
    extractors: dict[str, Lineage | None] = {
        INSTALLED: INSTALLED_LINEAGE,
        **{f"encoder:{encoder.path}": encoder.lineage for encoder in opened.encoders},
    }
    for extractor, lineage in extractors.items():
        if kinship(training_encoders, lineage).counts:
            return f"{again} {extractor}"
    images = next((run.data for run in runs if run.data), None) or "SPEC"
    if all(encoder is not None and encoder.family != MAE_RESNET for encoder in training_encoders):
        train = "driftkit train --objective classifier --preset cpu --data"
        return f"{train} {shlex.quote(images)} --output outputs/classifier; {again} encoder:outputs/classifier"
    return f"{again} dinov2" if kinship(training_encoders, DINOV2_LINEAGE).counts else None


def _leading(tables: Sequence[ScoreTable], pairs: Sequence[Pair], speeds: Sequence[Speed]) -> list[str]:
    """Which run is first by every independent evaluator, and how sure that is; of a single run, its score."""
    single = not pairs and tables and tables[0].rows
    leader = tables[0].rows[0].run if single else leader_of(pairs)
    scored = [(table, row) for table in tables if leader and (row := table.best(leader)) is not None]
    if not scored:
        return []
    if single:
        return [_score_in_words(*scored[0], speeds)]
    votes = [o for p in pairs for o in p.opinions if o.independent and o.better == leader]
    names = list(dict.fromkeys(o.evaluator for o in votes))
    scored.sort(key=lambda pair: pair[0].extractor.name not in names)  # the sentence begins with one that voted
    several = f"both {' and '.join(names)}" if len(names) == 2 else f"all of {shortened(names, MAX_NAMED)}"
    by = several if names[1:] else names[0]
    table, row = scored[0]
    sentences = [f"{leader} ranks first by {by}.", _score_in_words(table, row, speeds, named=len(names) > 1)]
    others = (r for r in table.rows if r.run != leader and r.is_of_all_classes)
    rival = next((r for r in others if r.score > row.score), None)
    return [*sentences, _order(row, rival)] if rival else sentences


def _score_in_words(table: ScoreTable, row: ScoreRow, speeds: Sequence[Speed], *, named: bool = True) -> str:
    speed = speed_of(speeds, row.run, row.sampler, row.nfe)
    rate = f", {format_rate(speed.images_per_second)} images/s" if speed else ""
    by = f" by {table.extractor.name}" if named else ""
    floor = ""
    if row.floor and row.floor > 0:
        ratio = row.score / row.floor
        floor = f"; real images among themselves score {format_score(row.floor)}"
        floor += ", so nothing is left to tell apart" if ratio < NEAR_FLOOR else f", {ratio:.3g} times less"
    return f"{row.run} scores {table.name} {_value(row)}{by} ({sampler_label(row.sampler, row.nfe)}{rate}){floor}."


def _sides(pair: Pair) -> list[str]:
    """What each evaluator says of the two runs, and what it sees."""
    sides = []
    for o in pair.opinions:
        if o.better is not None:
            sees = SEES.get(o.evaluator, SEES_DEFAULT) + ("" if o.independent else "; related to the training")
            scores = [format_score(s) for s in ((o.first, o.second) if o.better == pair.first else (o.second, o.first))]
            other = pair.second if o.better == pair.first else pair.first
            sides.append(f"{o.evaluator} ({sees}) puts {o.better} above {other}, {' against '.join(scores)}.")
    return sides


def _appearance(pair: Pair, tables: Sequence[ScoreTable]) -> list[str]:
    """The plain properties in which the images of one run are clearly nearer to real ones than those of the other."""
    best = ({row.run: row for row in reversed(t.all_rows) if row.is_of_all_classes} for t in tables)
    shared = next((rows for rows in best if pair.first in rows and pair.second in rows), None)
    if shared is None:
        return []
    first, second = shared[pair.first].appearance, shared[pair.second].appearance
    sentences = []
    for key, name in PROPERTIES.items():
        a, b = first.get(key), second.get(key)
        if a is None or b is None:
            continue
        near, far = sorted((a.distance, b.distance))
        if far - near > CLEAR_DISTANCE and far > CLEAR_RATIO * near:
            nearer = pair.first if a.distance < b.distance else pair.second
            values = f"{pair.first} {a.generated:.3f}, {pair.second} {b.generated:.3f}, real {a.real:.3f}"
            sentences.append(f"{nearer} is nearer to real images in {name}: {values}.")
    return sentences


def _order(best: ScoreRow, second: ScoreRow) -> str:
    """How sure it is that the first is better than the second."""
    follows = f"{second.run} follows with {_value(second)} ({sampler_label(second.sampler, second.nfe)})"
    if best.score_sd is None or second.score_sd is None:
        return f"{follows}; without repeats it is not known how much of the difference is chance."
    gap, noise = second.score - best.score, noise_of(best, second)
    if gap <= noise:
        return f"{follows}: too close to order, since two standard deviations of the difference are {noise:.2g}."
    return f"{follows}: {gap / (noise / 2):.1f} standard deviations of the noise behind."


def _one_step_against_many(table: ScoreTable, pairs: Sequence[Pair]) -> str | None:
    """How many evaluations the best sampler of many steps needs to reach the best score of one evaluation.

    None where evaluators do not agree on the two runs.
    """
    rows = [row for row in table.rows if row.is_of_all_classes]
    multiple = {row.run for row in rows if row.nfe is not None and row.nfe > 1}
    others = [row for row in rows if row.run in multiple and row.nfe is not None]
    singles = [row for row in rows if row.nfe == 1 and row.run not in multiple]
    if not singles or not others:
        return None
    one, by = singles[0], table.extractor.name
    reaching = [row for row in others if row.score <= one.score]
    best = min(reaching, key=lambda r: r.nfe or 0) if reaching else min(others, key=lambda r: r.score)
    better = best.run if reaching else one.run
    if not any(pair.better == better and {one.run, best.run} == {pair.first, pair.second} for pair in pairs):
        return None
    if not reaching:
        return (
            f"No sampler of many steps reaches what {one.run} gives with one evaluation ({_value(one)} by {by}): "
            f"the best is {best.run} with {_value(best)} at {best.nfe} NFE."
        )
    return (
        f"{best.run} passes the best score of one evaluation ({one.run}, {_value(one)} by {by}) from {best.nfe} NFE on "
        f"({best.sampler}, {_value(best)})."
    )


def cautions(tables: Sequence[ScoreTable], pairs: Sequence[Pair], runs: Sequence[RunSummary]) -> list[str]:
    """What speaks against taking the numbers at face value; empty where nothing is known to."""
    rows = [row for table in tables for row in table.rows]

    def with_badge(badge: str) -> str:
        return ", ".join(dict.fromkeys(row.run for row in rows if badge in row.badges))

    untrained = {run.label for run in runs if run.steps == 0}
    trained = [pair for pair in pairs if untrained.isdisjoint((pair.first, pair.second))]
    related: dict[tuple[str, str], dict[str, None]] = {}
    for table in tables:
        for row in table.related:
            related.setdefault((table.extractor.name, row.kinship.reason), {})[row.run] = None
    sentences = [
        f"{evaluator} ranks nothing that involves {shortened(list(labels), MAX_NAMED)}: {reason}."
        for (evaluator, reason), labels in related.items()
    ]
    ranked = [pair for pair in pairs if pair.verdict == "ranked"]
    counts = [len({o.evaluator for o in pair.opinions if o.independent and o.better}) for pair in ranked]
    if (fewest := min(counts, default=EXPECTED_EVALUATORS)) < EXPECTED_EVALUATORS:
        rests = {1: "one independent evaluator alone", 2: "two independent evaluators"}[fewest]
        sentences.append(f"The ranking rests on {rests}; {EXPECTED_EVALUATORS} of different training would be surer.")
    sentences += _limited(
        [
            f"{shortened([quantities()[key].label for key in opinion.flips], MAX_NAMED)} of {opinion.evaluator} "
            f"{'orders' if len(opinion.flips) == 1 else 'order'} {pair.first} and {pair.second} the other way round "
            f"than its {opinion.name}."
            for pair in trained
            for opinion in pair.opinions
            if opinion.flips
        ]
    )
    small = [table.name for table in tables if any(SMALL_N in row.badges for row in table.all_rows)]
    if small:
        names = shortened(list(dict.fromkeys(small)), MAX_NAMED)
        verb = "is" if len(set(small)) == 1 else "are"
        sentences.append(f"{names} {verb} of few images: biased upwards, and no published number.")
    if with_badge(ON_TRAINING_DATA):
        sentences.append("The reference is what the runs were trained on: a generator that copies would win.")
    if (named := with_badge(CLASS_CONDITIONAL)) and any(CLASS_CONDITIONAL not in row.badges for row in rows):
        sentences.append(
            f"Class-conditional runs ({named}) learned from labels and the others did not: they are no equals."
        )
    if chosen := _guidance_scales(tables):
        named = shortened([f"{run} (best of {count} guidance scales)" for run, count in chosen.items()], MAX_NAMED)
        sentences.append(f"The guidance scale was chosen by the score that is reported, which flatters {named}.")
    if named := with_badge(SOME_CLASSES):
        sentences.append(f"Some classes alone were sampled for {named}: such scores rank nothing.")
    if named := with_badge(RANDOM_WEIGHTS):
        sentences.append(f"Trained with an encoder of random weights: {named}.")
    if named := with_badge(RAW_WEIGHTS):
        sentences.append(f"Raw weights instead of averaged ones were scored for {named}.")
    if rows and all(row.score_sd is None for row in rows):
        sentences.append("Every score is of one seed: no spread is known.")
    scored = [run for run in runs if run.steps and any(table.has(run.label) for table in tables)]
    for name, values in (
        ("training images", {r.image_digest or r.data for r in scored}),
        ("parameters", {r.parameters for r in scored}),
        ("training lengths", {r.images_seen for r in scored}),
    ):
        if len(values) > 1:
            sentences.append(f"The runs differ in {name}, so the method is not all that differs.")
    return sentences


def _guidance_scales(tables: Sequence[ScoreTable]) -> dict[str, int]:
    """Run -> how many guidance scales of it were scored by one evaluator, where several were."""
    counts: dict[str, int] = {}
    for table in tables:
        scales: dict[str, set[float | None]] = {}
        for row in table.rows:
            if row.is_of_all_classes:
                scales.setdefault(row.run, set()).add(row.guidance)
        for run, found in scales.items():
            counts[run] = max(counts.get(run, 0), len(found))
    return {run: count for run, count in counts.items() if count > 1}


def _value(row: ScoreRow) -> str:
    return format_score(row.score) + (f" ± {format_spread(row.score_sd)}" if row.score_sd is not None else "")


def _limited(sentences: list[str]) -> list[str]:
    more = len(sentences) - MAX_SENTENCES
    return sentences if more <= 0 else [*sentences[:MAX_SENTENCES], f"Of {more} more pairs of runs the same is true."]
