"""Watching that losses and gradients are finite, without waiting for the device at every step."""

import torch

from driftkit.errors import NonFiniteStepError
from driftkit.protocols import StepLoss
from driftkit.runtime.ranks import Ranks


class FiniteWatch:
    """Remembers, on the device, the first step whose loss or gradient was not finite on any rank.

    Args:
        ranks: those who train; all of them see the same.
        deferred: `check` is called now and then, not after every step. Updates that must not happen in between are held
            back by `last`, which fused optimizers take as `found_inf`.
    """

    def __init__(self, ranks: Ranks, *, deferred: bool):
        self.ranks, self.deferred = ranks, deferred
        self.last: torch.Tensor | None = None
        """float32 [], 1 where nothing may be updated with the step that was seen last, or with any before it."""
        self.stop: torch.Tensor | None = None
        """float32 [], the largest `stop` of all ranks at the step that was seen last; None in a world of one."""
        self._first: torch.Tensor | None = None  # int64 [], step + 1
        self._wrong: torch.Tensor | None = None  # [terms + 2], which of them were not finite: total, gradient last
        self._values: torch.Tensor | None = None
        self._terms: tuple[str, ...] = ()

    def see(self, outcome: StepLoss, gradient_norm: torch.Tensor, *, step: int, stop: int = 0) -> None:
        """Take note of a step before its update.

        Args:
            stop: signal by which this rank is asked to stop, 0 for none: it shares the one message of the step.
        """
        if self._terms != tuple(outcome.terms):  # a term joins in or leaves: what was seen has other entries
            self.check()
            self._first = None
            self._terms = tuple(outcome.terms)
        values = [*outcome.terms.values(), outcome.total, gradient_norm]
        seen = torch.stack([value.detach().float() for value in values])
        wrong = (~torch.isfinite(seen)).float()
        if self.ranks.world_size > 1:
            shared = self.ranks.max(torch.cat([wrong, torch.full_like(wrong[:1], stop)]))
            wrong, self.stop = shared[:-1], shared[-1]
        bad = wrong.amax()
        if self._first is None or self._wrong is None or self._values is None or self.last is None:
            self._first, self.last = torch.zeros_like(bad, dtype=torch.long), torch.zeros_like(bad)
            self._wrong, self._values = torch.zeros_like(wrong), seen
        fresh = (bad > 0) & (self._first == 0)
        self._first = torch.where(fresh, step + 1, self._first)
        self._wrong, self._values = torch.where(fresh, wrong, self._wrong), torch.where(fresh, seen, self._values)
        self.last = torch.maximum(self.last, bad)

    def check(self) -> None:
        """Wait for the device.

        Raises:
            NonFiniteStepError: a step was not finite; nothing was updated since.
        """
        if self._first is None or self._wrong is None or self._values is None or not int(self._first):
            return
        step, wrong = int(self._first) - 1, self._wrong.bool().tolist()
        *terms, total, _ = wrong
        if total or any(terms):
            names = [name for name, bad in zip(self._terms, terms, strict=True) if bad]
            raise NonFiniteStepError("loss", step, names or ["the total"])
        raise NonFiniteStepError("gradient", step, more=f" (loss {float(self._values[-2]):.4g})")
