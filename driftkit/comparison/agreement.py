"""Which runs may be ranked: what evaluators say of every pair of runs, and whether those that count agree.

Kin of a training encoder have no voice. Those related to one decide nothing alone: they are a second voice that may
contradict a single independent one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from driftkit.comparison.score_table import ScoreRow, ScoreTable

NEAR_FLOOR = 1.1  # times the floor, within which nothing is left to tell apart
FLIPS = {"kid_mean": False, "precision": True, "recall": True, "coverage": True}
"""Scores that stand beside the Fréchet distance -> whether more is better."""

Verdict = Literal["ranked", "disputed", "tied", "unknown"]


@dataclass(frozen=True)
class Opinion:
    """What one evaluator says of two runs, each at the best of its ways of sampling.

    Attributes:
        table: key of its score table.
        evaluator, weights: its name and the digest of its weights.
        better: label of the run that scores better; None where the difference may be chance, or both are at the floor.
        first, second: Fréchet distances of the pair's runs.
        independent: of the training encoders of both.
        flips: scores of the same evaluator that order the two runs the other way round.
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
    """Two runs and the opinions on them.

    Attributes:
        verdict: ranked (every independent evaluator that tells them apart says the same, and where that is a single
            one, no related one says otherwise), disputed (evaluators that count say otherwise), tied (no independent
            one tells them apart), or unknown (none has scored both).
        better: label of the better run where it is ranked.
    """

    first: str
    second: str
    opinions: tuple[Opinion, ...]
    verdict: Verdict
    better: str | None

    @property
    def worse(self) -> str | None:
        """Label of the other run where the pair is ranked."""
        return None if self.better is None else self.second if self.better == self.first else self.first


def pairs_of(tables: Sequence[ScoreTable], labels: Sequence[str]) -> list[Pair]:
    """All pairs of runs, in the order of the labels, with what the tables say of them."""
    pairs = []
    for first, second in combinations(labels, 2):
        opinions = tuple(o for table in tables if (o := _opinion(table, first, second)) is not None)
        verdict = _verdict(opinions)
        better = next(o.better for o in opinions if o.independent and o.better) if verdict == "ranked" else None
        pairs.append(Pair(first, second, opinions, verdict, better))
    return pairs


def _verdict(opinions: Sequence[Opinion]) -> Verdict:
    if not any(o.independent for o in opinions):
        return "unknown"
    voices = [o for o in opinions if o.better is not None]
    independent = {(o.evaluator, o.weights) for o in voices if o.independent}
    if not independent:
        return "tied"
    heard = {o.better for o in voices} if len(independent) == 1 else {o.better for o in voices if o.independent}
    return "ranked" if len(heard) == 1 else "disputed"


def leader_of(pairs: Sequence[Pair]) -> str | None:
    """The run that is ranked above every other one; None where there is none."""
    labels = dict.fromkeys(label for pair in pairs for label in (pair.first, pair.second))
    for label in labels:
        if all(pair.better == label for pair in pairs if label in (pair.first, pair.second)):
            return label
    return None


def _opinion(table: ScoreTable, first: str, second: str) -> Opinion | None:
    one, other = (table.best(run) or table.best_related(run) for run in (first, second))
    if one is None or other is None:
        return None
    ours, theirs = one.metrics["fid"], other.metrics["fid"]
    better = None if _indistinct(one, other) else first if ours < theirs else second
    flips = tuple(
        key for key, more in FLIPS.items() if better and _prefers(one, other, key, more=more) not in (better, None)
    )
    independent = one.kinship.counts and other.kinship.counts
    evaluator, weights = table.extractor["name"], table.extractor["weights_digest"]
    return Opinion(table.key, evaluator, weights, table.name, better, ours, theirs, independent, flips)


def _indistinct(one: ScoreRow, other: ScoreRow) -> bool:
    """Whether the difference is within the noise of the seeds, or both are as good as real images."""
    scores = one.metrics["fid"], other.metrics["fid"]
    if one.floor and max(scores) < NEAR_FLOOR * one.floor:
        return True
    spreads = one.spread.get("fid"), other.spread.get("fid")
    known = None not in spreads
    return scores[0] == scores[1] or (known and abs(scores[0] - scores[1]) <= noise_of(one, other))


def noise_of(one: ScoreRow, other: ScoreRow) -> float:
    """Two standard deviations of the difference of two scores over seeds; 0 where no spread is known."""
    return 2 * math.hypot(one.spread.get("fid", 0.0), other.spread.get("fid", 0.0))


def _prefers(one: ScoreRow, other: ScoreRow, key: str, *, more: bool) -> str | None:
    ours, theirs = one.metrics.get(key), other.metrics.get(key)
    if ours is None or theirs is None or ours == theirs:
        return None
    return one.run if (ours > theirs) == more else other.run
