"""Which runs may be ranked: what evaluators say of every pair of runs, and whether the independent ones agree.

Kin of a training encoder have no vote. Related evaluators decide nothing alone: they are a second opinion that may
contradict a single independent one. Runs that learned from labels are not ranked against runs that did not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from driftkit.comparison.run_summary import CLASS_CONDITIONAL
from driftkit.comparison.score_table import ScoreRow, ScoreTable
from driftkit.metrics.registry import REQUIRED, quantities

NEAR_FLOOR = 1.1  # times the floor, within which two runs count as equal

Verdict = Literal["ranked", "disputed", "tied", "unequal", "unknown"]


@dataclass(frozen=True)
class Opinion:
    """What one evaluator says of two runs, each in the best of its sampler setups of all classes.

    Attributes:
        table: key of its score table.
        better: label of the run that scores better; None where the difference may be chance, both are at the floor, or
            one run alone learned from labels.
        independent: of the training encoders of both.
        flips: keys of other metrics of the same evaluator that order the two runs the other way round.
    """

    table: str
    evaluator: str
    weights: str
    name: str
    better: str | None
    first: float
    second: float
    independent: bool
    flips: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two runs, the opinions on them, and the label of the better one where they are ranked.

    Attributes:
        verdict: ranked (every independent evaluator that separates them says the same, and where that is a single
            one, no related one says otherwise), disputed (evaluators that count say otherwise), tied (no independent
            one separates them), unequal (one alone is class-conditional), or unknown (none has scored all classes of
            both).
    """

    first: str
    second: str
    opinions: tuple[Opinion, ...]
    verdict: Verdict
    better: str | None

    @property
    def worse(self) -> str | None:
        return None if self.better is None else self.second if self.better == self.first else self.first


def scored_runs(tables: Sequence[ScoreTable]) -> list[str]:
    """Labels of all runs that have a score, those of the first table first, best first."""
    return list(dict.fromkeys(row.run for table in tables for row in table.all_rows))


def pairs_of(tables: Sequence[ScoreTable], labels: Sequence[str]) -> list[Pair]:
    """All pairs of runs, in the order of the labels, with what the tables say of them."""
    conditional = {row.run for table in tables for row in table.all_rows if CLASS_CONDITIONAL in row.badges}
    pairs = []
    for first, second in combinations(labels, 2):
        equals = (first in conditional) == (second in conditional)
        found = (_opinion(table, first, second, votes=equals) for table in tables)
        opinions = tuple(opinion for opinion in found if opinion is not None)
        verdict = _verdict(opinions) if equals else "unequal"
        better = next(o.better for o in opinions if o.independent and o.better) if verdict == "ranked" else None
        pairs.append(Pair(first, second, opinions, verdict, better))
    return pairs


def leader_of(pairs: Sequence[Pair]) -> str | None:
    """The run that is ranked above every other one; None where there is none."""
    labels = dict.fromkeys(label for pair in pairs for label in (pair.first, pair.second))
    for label in labels:
        if all(pair.better == label for pair in pairs if label in (pair.first, pair.second)):
            return label
    return None


def noise_of(a: ScoreRow, b: ScoreRow) -> float:
    """Two standard deviations of the difference of two scores over seeds; 0 where no spread is known."""
    return 2 * math.hypot(a.score_sd or 0.0, b.score_sd or 0.0)


def _verdict(opinions: Sequence[Opinion]) -> Verdict:
    if not any(o.independent for o in opinions):
        return "unknown"
    votes = [o for o in opinions if o.better is not None]
    independent = [o for o in votes if o.independent]
    if not independent:
        return "tied"
    single = len({(o.evaluator, o.weights) for o in independent}) == 1
    return "ranked" if len({o.better for o in (votes if single else independent)}) == 1 else "disputed"


def _opinion(table: ScoreTable, first: str, second: str, *, votes: bool) -> Opinion | None:
    a, b = (table.best(run) or table.best_related(run) for run in (first, second))
    if a is None or b is None:
        return None
    better = None if not votes or _indistinct(a, b) else first if a.score < b.score else second
    others = [key for key in quantities() if better and key != REQUIRED]
    flips = tuple(key for key in others if _prefers(a, b, key) not in (better, None))
    independent = a.kinship.counts and b.kinship.counts
    name, weights = table.extractor.name, table.extractor.weights_digest
    return Opinion(table.key, name, weights, table.name, better, a.score, b.score, independent, flips)


def _indistinct(a: ScoreRow, b: ScoreRow) -> bool:
    """Whether the difference is within the noise of the seeds, or both are as good as real images."""
    if a.floor and max(a.score, b.score) < NEAR_FLOOR * a.floor:
        return True
    spread_is_known = a.score_sd is not None and b.score_sd is not None
    return a.score == b.score or (spread_is_known and abs(a.score - b.score) <= noise_of(a, b))


def _prefers(a: ScoreRow, b: ScoreRow, key: str) -> str | None:
    """The run that a metric with a direction prefers; None where it has no preference."""
    quantity = quantities()[key]
    first, second = a.metrics.get(key), b.metrics.get(key)
    if first is None or second is None or first == second or not quantity.column:
        return None
    if quantity.direction not in ("lower", "higher"):
        return None
    return a.run if (first > second) == (quantity.direction == "higher") else b.run
