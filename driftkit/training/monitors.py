"""Monitors of a training: numbers that are not finite stop it before the update, and collapse is reported."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter, ValidationError

from driftkit.errors import ArtifactError, NonFiniteStepError, RefusedError, StorageError
from driftkit.protocols import StepLoss
from driftkit.runtime.ranks import Ranks
from driftkit.runtime.readback import not_finite
from driftkit.storage.records import Record
from driftkit.storage.run_folder import Run
from driftkit.training.hooks import FinishedStep, Hook

if TYPE_CHECKING:
    from driftkit.training.trainer import Trainer


class FiniteWatch:
    """Keeps, on the device, which numbers of the first step that was not finite on any rank were not.

    Args:
        ranks: those who train; all of them see the same.
        deferred: `check` is called now and then, not after every step. Updates that must not happen in between are
            held back by `found_inf`, as fused optimizers name it.
    """

    def __init__(self, ranks: Ranks, *, deferred: bool):
        self.ranks, self.deferred = ranks, deferred
        self.found_inf: torch.Tensor | None = None
        """float32 [], 1 where the last step seen, or any before it, was not finite."""
        self.stop: torch.Tensor | None = None
        """float32 [], the largest `stop` of all ranks at the last step seen; None in a world of one."""
        self._names: tuple[str, ...] = ()  # of sources, loss terms, and parameters with a gradient
        self._num_sources = self._num_terms = 0
        self._first: torch.Tensor | None = None  # int64 [], 1 + the first step that was not finite; 0: none
        self._flags: torch.Tensor | None = None  # float32 [sources + terms + 2]: 1 + ranks after the first bad one
        self._norms: torch.Tensor | None = None  # float32 [parameters], of gradients

    def see(
        self,
        loss: StepLoss,
        norm: torch.Tensor,
        norms: Mapping[str, torch.Tensor],
        *,
        step: int,
        sources: Mapping[str, torch.Tensor] | None = None,
        stop: int = 0,
    ) -> None:
        """Look at a step before its update; the host does not wait.

        Args:
            norm, norms: of the gradient, and of that of each parameter; equal on all ranks.
            sources: scalars that explain a loss that is not finite, in order of cause; so do `loss.sources`.
            stop: signal by which this rank is asked to stop, 0 for none; it shares the one message of the step.
        """
        sources = {**(sources or {}), **loss.sources}
        names = (*sources, *loss.terms, *norms)
        if names != self._names:  # a term joins in or leaves: what was seen has other entries
            self.check()
            self._names, self._num_sources, self._num_terms = names, len(sources), len(loss.terms)
            self._first = None
        values = torch.stack([v.detach().float() for v in (*sources.values(), *loss.terms.values(), loss.total, norm)])
        flags = (~torch.isfinite(values)).float() * (self.ranks.world_size - self.ranks.rank)
        if self.ranks.world_size > 1:
            shared = self.ranks.max(torch.cat([flags, torch.full_like(flags[:1], stop)]))
            flags, self.stop = shared[:-1], shared[-1]
        bad = (flags[len(sources) :].amax() > 0).float()
        each = torch.stack(list(norms.values())) if norms else flags[:0]
        if self._first is None or self._flags is None or self._norms is None or self.found_inf is None:
            self._first, self.found_inf = torch.zeros_like(bad, dtype=torch.long), torch.zeros_like(bad)
            self._flags, self._norms = flags, each
        is_first = (bad > 0) & (self._first == 0)
        self._first = torch.where(is_first, step + 1, self._first)
        self._flags, self._norms = torch.where(is_first, flags, self._flags), torch.where(is_first, each, self._norms)
        self.found_inf = torch.maximum(self.found_inf, bad)

    def check(self) -> None:
        """Wait for the device.

        Raises NonFiniteStepError where a step was not finite; nothing was updated since, on all ranks alike.
        """
        if self._first is None or self._flags is None or self._norms is None or not int(self._first):
            return
        *flags, total, _ = self._flags.tolist()
        num_losses = self._num_sources + self._num_terms
        names = [name for name, flag in zip(self._names[:num_losses], flags, strict=True) if flag]
        parameters = self._names[num_losses:]
        rank = None
        if total or any(flags[self._num_sources :]):
            names += [] if any(flags[self._num_sources :]) else ["total loss"]
            if self.ranks.world_size > 1:
                rank = self.ranks.world_size - int(next(flag for flag in (*flags, total) if flag))
        else:
            finite = torch.isfinite(self._norms).tolist()
            names = [f"gradient of {name}" for name, good in zip(parameters, finite, strict=True) if not good]
            if not names:  # all are finite and huge
                names = [f"gradient norm (largest of {parameters[int(self._norms.argmax())]})"]
        raise NonFiniteStepError(names, int(self._first) - 1, rank=rank)


class NonFiniteStep(Record):
    """RUN/inspect/step-*.json: the step that was not finite, and the images of its global batch.

    Noise, masks and dropout follow from seed, step, rank and position in the batch alone.
    """

    kind = "non_finite_step"

    step: int
    names: list[str]  # what was not finite, in order of cause
    rank: int | None  # the first on which that was so; None in a world of one, and for gradients
    seed: int
    world_size: int
    batch_size: int  # per rank
    indices: list[int]  # of the images in the pack
    flips: list[bool]  # which of them are mirrored


class NonFiniteRecorder(Hook):
    """Records the batch of a step that was not finite before the error ends the run."""

    def __init__(self, run: Run):
        self.run = run

    def before_training(self, trainer: "Trainer", closing: contextlib.ExitStack) -> None:
        closing.enter_context(self._recording(trainer))

    @contextlib.contextmanager
    def _recording(self, trainer: "Trainer") -> Iterator[None]:
        try:
            yield
        except NonFiniteStepError as error:
            weights = [f"weights {name}" for name in not_finite(trainer.network.state_dict())]
            names = list(dict.fromkeys([*weights, *error.names]))
            place = self._write(trainer, error, names) if trainer.ranks.is_main else ""
            trainer.ranks.barrier()  # torchrun ends the others when the first one leaves
            raise NonFiniteStepError(names, error.step, rank=error.rank, more=place) from None

    def _write(self, trainer: "Trainer", error: NonFiniteStepError, names: list[str]) -> str:
        feed, world_size = trainer.feed, trainer.ranks.world_size
        indices, flips = feed.pick(error.step, range(feed.batch_size * world_size))
        record = NonFiniteStep(
            step=error.step, names=names, rank=error.rank, seed=feed.seed, world_size=world_size,
            batch_size=feed.batch_size, indices=indices.tolist(), flips=flips.tolist(),
        )  # fmt: skip
        path = self.run.path / "inspect" / f"step-{error.step:08d}.json"
        try:
            record.write(path)
        except (OSError, StorageError) as reason:
            return f"its batch could not be recorded: {reason}"
        return f"its batch is recorded in {path}"


@dataclass(frozen=True)
class Collapse:
    """What is known of collapse, as the manifest and checkpoints hold it."""

    below_since: int | None = None  # step of the first of the latest consecutive records below the threshold
    first_step: int | None = None  # where the first episode began; None: there was none
    episodes: int = 0  # how many there were
    now: bool = False  # whether one is going on
    worst_spread: float | None = None  # the least spread in an episode
    worst_step: int | None = None  # and where


class CollapseWatch:
    """Finds episodes of collapse in the spreads of metric records.

    An untrained generator gives images that are all alike, and the spread of a few images goes up and down. So an
    episode begins once every record over `patience` steps lies below the threshold, a share of the spread of real
    features in [0, 1), and ends at the first one above.
    """

    def __init__(self, *, threshold: float, patience: int):
        self.threshold, self.patience = threshold, patience
        self.known = Collapse()

    def see(self, spread: float, *, step: int) -> bool:
        """Take in a record; whether an episode begins with it."""
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
        """What a resumed run continues from."""
        return asdict(self.known)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ArtifactError: a value of another kind; unknown ones are ignored.
        """
        try:
            self.known = TypeAdapter(Collapse).validate_python(dict(state))
        except ValidationError as error:
            raise ArtifactError(f"what a checkpoint knows of collapse is damaged: {error.errors()[0]['msg']}") from None

    def document(self) -> dict[str, Any] | None:
        """For the manifest; None where no episode was seen."""
        if not self.known.episodes:
            return None
        return {**self.state(), "threshold": self.threshold, "patience": self.patience}


class CollapseMonitor(Hook):
    """Warns once per episode of collapse, marks its records, and stops the trainer if it `fails` on collapse.

    It comes before the hook that writes the records. The manifest has it from the next checkpoint on.
    """

    def __init__(self, watch: CollapseWatch, *, fails: bool, warn: Callable[[str], None]):
        self.watch, self.fails, self.warn = watch, fails, warn

    def after_step(self, trainer: "Trainer", step: FinishedStep) -> None:
        if not step.log or "spread" not in step.loss.health:
            return
        with trainer.aside():
            spread = float(step.loss.health["spread"])
        begins, known = self.watch.see(spread, step=step.number), self.watch.known
        since = f"since step {known.below_since}"
        less = f"spread less than {self.watch.threshold:g} of real ones"
        if begins and trainer.ranks.is_main:
            self.warn(
                f"collapse: {since} generated features {less}, {spread:.2g} at step {step.number}; look at samples/, "
                "try a lower learning rate, smaller temperatures or another encoder"
            )
        if known.now:
            step.loss.health["collapsed"] = torch.tensor(1.0)
        if known.now and self.fails:  # on all ranks alike, since the spread is equal
            error = RefusedError(
                f"the generator has collapsed: {since} its features {less} (least {known.worst_spread:.2g} at step "
                f"{known.worst_step}); stopped at step {step.number}, state saved; without `trainer.fail_on_collapse` "
                "training continues"
            )
            error.on_all_ranks = True
            trainer.stop_with(error)
