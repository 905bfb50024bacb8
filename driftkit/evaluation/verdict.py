"""What the numbers of a comparison say first, and how far they can be trusted, in a few plain sentences."""

import math
from collections.abc import Sequence

from driftkit.evaluation.extractors import ENCODER_PREFIX
from driftkit.evaluation.formats import format_rate, format_score, way_name
from driftkit.evaluation.records import speed_of
from driftkit.evaluation.speed import Speed
from driftkit.evaluation.summary import RunSummary
from driftkit.evaluation.table import (
    ON_TRAINING_DATA,
    OWN_TEACHER,
    RANDOM_WEIGHTS,
    RAW_WEIGHTS,
    SMALL_N,
    ScoreRow,
    ScoreTable,
)

NEAR_FLOOR = 1.1  # times the floor, within which nothing is left to tell apart


def findings(table: ScoreTable, speeds: Sequence[Speed]) -> list[str]:
    """Sentences on one score table: who is best, whether that is sure, and what one evaluation per image buys.

    Args:
        table: rows best first.
        speeds: measured sampling speeds.
    """
    best = table.rows[0]
    how = way_name(best.sampler, best.nfe) + _rate(best, speeds)
    said = [f"{best.run} scores best: {table.name} {_value(best)} ({how}){_against_floor(best)}."]
    rivals = [row for row in table.rows if row.run != best.run]
    if rivals:
        said.append(_order(best, rivals[0]))
    one_step = _one_step_against_many(table)
    if one_step:
        said.append(one_step)
    return said


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
    spreads = [row.spread.get("fid") for row in (best, second)]
    follows = f"{second.run} follows with {_value(second)} ({way_name(second.sampler, second.nfe)})"
    if any(spread is None for spread in spreads):
        return f"{follows}; without repeats it is not known how much of the difference is chance."
    noise = 2 * math.hypot(*(spread or 0.0 for spread in spreads))
    if gap <= noise:
        return f"{follows}: too close to order, since two standard deviations of the difference are {noise:.2g}."
    return f"{follows}: {gap / (noise / 2):.1f} standard deviations of the noise behind."


def _one_step_against_many(table: ScoreTable) -> str | None:
    """How many evaluations the best sampler of many steps needs to reach the best score of one evaluation."""
    singles = [row for row in table.rows if row.nfe == 1]
    multiple = {row.run for row in table.rows if row.nfe is not None and row.nfe > 1}
    others = [row for row in table.rows if row.run in multiple and row.nfe is not None]
    singles = [row for row in singles if row.run not in multiple]
    if not singles or not others:
        return None
    one = singles[0]
    reaching = [row for row in others if row.metrics["fid"] <= one.metrics["fid"]]
    best = min(others, key=lambda r: r.metrics["fid"])
    if not reaching:
        return (
            f"At no NFE that was scored does a sampler of many steps reach what {one.run} gives with one evaluation "
            f"({_value(one)}): the best of them is {best.run} with {_value(best)} at {best.nfe} NFE."
        )
    first = min(reaching, key=lambda r: r.nfe or 0)
    return (
        f"{first.run} passes the best score of one evaluation ({one.run}, {_value(one)}) from {first.nfe} NFE on "
        f"({first.sampler}, {_value(first)})."
    )


def cautions(table: ScoreTable, runs: Sequence[RunSummary]) -> list[str]:
    """What a careful reader holds against the numbers of one score table."""
    badges = {badge: [row.run for row in table.rows if badge in row.badges] for badge in
              (OWN_TEACHER, ON_TRAINING_DATA, RANDOM_WEIGHTS, RAW_WEIGHTS)}  # fmt: skip
    said = []
    if any(SMALL_N in row.badges for row in table.rows):
        said.append(f"{table.name} is of few images: it is biased upwards and compares with no published number.")
    if table.extractor["name"].startswith(ENCODER_PREFIX):
        said.append(
            f"The judge, {table.extractor['name']}, is no published evaluator; runs taught by an encoder of its kind "
            "may be flattered."
        )
    if badges[OWN_TEACHER]:
        said.append(
            f"Judged by the encoder they were trained with, which flatters them: {_names(badges[OWN_TEACHER])}."
        )
    if badges[ON_TRAINING_DATA]:
        said.append("The reference is what the runs were trained on: a generator that copies would win.")
    if badges[RANDOM_WEIGHTS]:
        said.append(f"Trained with an encoder of random weights: {_names(badges[RANDOM_WEIGHTS])}.")
    if badges[RAW_WEIGHTS]:
        said.append(f"Raw weights instead of averaged ones were scored for {_names(badges[RAW_WEIGHTS])}.")
    if not any("fid" in row.spread for row in table.rows):
        said.append("Every score is of one seed: no spread is known.")
    scored = [run for run in runs if table.best(run.label) and run.steps]
    for what, values in (
        ("training images", {r.data_digest or r.data for r in scored}),
        ("parameters", {r.parameters for r in scored}),
        ("training lengths", {r.images_seen for r in scored}),
    ):
        if len(values) > 1:
            said.append(f"The runs differ in {what}, so the method is not all that differs.")
    return said


def _names(runs: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(runs))
