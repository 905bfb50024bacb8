"""Watching that generated images do not become alike: their features spread far less than those of real ones."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Collapse:
    """What is known of collapse, as the manifest and checkpoints hold it.

    Attributes:
        below_since: step of the first of the records, up to the last one, whose spread lies below the threshold.
        first_step: where the first episode began; None: there was none.
        episodes: how many there were.
        now: whether one is going on.
        worst_spread, worst_step: the least spread in an episode, and where.
    """

    below_since: int | None = None
    first_step: int | None = None
    episodes: int = 0
    now: bool = False
    worst_spread: float | None = None
    worst_step: int | None = None


class CollapseWatch:
    """Tells episodes of collapse from the spreads of metric records.

    An untrained generator gives images that are all alike, and the spread of a few images goes up and down: an episode
    is told when every record over `patience` steps lay below the threshold, and ends with the first one above it.

    Args:
        threshold: spread of generated features over that of real ones, in [0, 1).
        patience: steps.
    """

    def __init__(self, *, threshold: float, patience: int):
        self.threshold, self.patience = threshold, patience
        self.known = Collapse()

    def see(self, spread: float, *, step: int) -> bool:
        """Take note of a record; whether an episode is told with it."""
        known = self.known
        if spread >= self.threshold:
            self.known = replace(known, below_since=None, now=False)
            return False
        since = step if known.below_since is None else known.below_since
        begins = not known.now and step - since >= self.patience
        known = replace(known, below_since=since, now=known.now or begins)
        if begins:
            first = since if known.first_step is None else known.first_step
            known = replace(known, episodes=known.episodes + 1, first_step=first)
        if known.now and (known.worst_spread is None or spread < known.worst_spread):
            known = replace(known, worst_spread=spread, worst_step=step)
        self.known = known
        return begins

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return asdict(self.known)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.known = Collapse(**state)

    def document(self) -> dict[str, Any] | None:
        """For the manifest; None where no episode was seen."""
        if not self.known.episodes:
            return None
        return {**self.state(), "threshold": self.threshold, "patience": self.patience}
