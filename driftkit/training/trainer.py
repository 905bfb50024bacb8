"""The only training loop: steps, averaging, logging, grids, checkpoints, resuming and stopping."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from driftkit.errors import InterruptedRunError, NonFiniteStepError, RefusedError
from driftkit.protocols import Execution, Objective, StepLoss
from driftkit.runtime.compilation import CompileSetting
from driftkit.runtime.device import (
    Precision,
    autocast,
    autocast_dtype,
    describe_device,
    peak_memory_gib,
    reset_peak_memory,
    synchronize,
)
from driftkit.runtime.finite import named, not_finite, require_finite
from driftkit.runtime.random import image_noise, seed_global_generators
from driftkit.runtime.ranks import DEFAULT_TIMEOUT_S, Ranks
from driftkit.runtime.readback import LaggedReading
from driftkit.runtime.signals import StopRequest, exit_code
from driftkit.runtime.timing import StepClock
from driftkit.storage.images import save_grid, to_float, to_uint8
from driftkit.storage.run_folder import Checkpoint, Run
from driftkit.training.checkpoints import CheckpointWriter, State
from driftkit.training.collapse import CollapseWatch
from driftkit.training.ema import averaged
from driftkit.training.feed import Feed
from driftkit.training.finite_watch import FiniteWatch
from driftkit.training.gradients import GradientExchange
from driftkit.training.inspection import explained, repeat, save_inspection
from driftkit.training.optim import adamw, optimizer_tensors, restore_optimizer
from driftkit.training.pacing import MOST_GRIDS, MOST_RECORDS, is_due
from driftkit.training.step_progress import TrainingProgress
from driftkit.training.tracking import NoTracker, Tracker, TrackerName, open_tracker


class TrainerConfig(BaseModel):
    """How the loop runs, whatever it minimises."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(50_000, ge=0, description="optimizer steps of the whole run; 0 saves the untrained network")
    batch_size: int = Field(128, ge=1, le=2**20, description="images per rank and step")
    learning_rate: float = Field(2e-4, gt=0, description="AdamW learning rate")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises linearly from 0")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW moment decays")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    gradient_clip: float = Field(2.0, gt=0, description="largest gradient norm")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the averaged weights per step, after warm-up")
    ema_warmup: float = Field(
        9.0, ge=0, description="EMA warm-up W: the decay of step n is at most (n - 1) / (n - 1 + W); 0: none"
    )
    precision: Precision = Field("auto", description="float32, bfloat16, or auto: bfloat16 where the device gains")
    compile: CompileSetting = Field(
        "auto", description="compile the trained network and the frozen encoder: on, off, or auto: where it gains"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="images that networks see at a time, with the gradient of the whole batch; None: all"
    )
    log_every: int = Field(10, ge=1, description="steps between metric records; doubles as 100,000 are exceeded")
    sample_every: int = Field(
        500, ge=0, description="steps between sample grids; doubles as 1,000 are exceeded; 0: none"
    )
    checkpoint_every: int = Field(1000, ge=0, description="steps between checkpoints; 0: only the last")
    measure_every: int = Field(
        0, ge=0, description="steps between measurements on held-out images; 0: with the sample grids"
    )
    tracker: TrackerName = Field("none", description="copy metrics and grids to: none, tensorboard or wandb")
    keep_every: int = Field(0, ge=0, description="checkpoints of these steps are kept; 0: only the last one is")
    rank_timeout: float = Field(
        DEFAULT_TIMEOUT_S / 60, gt=0, description="minutes that a rank waits for the others before it gives up"
    )
    collapse_spread: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="spread of generated features over that of real ones below which they collapse; 0: never",
    )
    collapse_patience: int = Field(500, ge=0, description="steps that it has to lie below for that")
    fail_on_collapse: bool = Field(False, description="save and stop when generated features collapse")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas}")
        return self


@dataclass(frozen=True)
class Scoring:
    """Scores of the averaged network that are made while it trains, by rank 0.

    Attributes:
        every: steps between them; the last step is always scored.
        score: gives named numbers for the network in evaluation mode.
        kinship: how near the evaluator is to the training encoder, for the manifest.
    """

    every: int
    score: Callable[[nn.Module], Mapping[str, float]]
    kinship: Mapping[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains one network with one objective, into one run folder.

    Args:
        objective: what a step minimises.
        network: the plain network.
        feed: where batches come from.
        run: its folder, with a manifest.
        header: what weights files say about themselves.
        scoring: scores to be made on the way, which do not count as training time.
        compiled: whether steps take a compiled form of the network.
    """

    def __init__(
        self,
        objective: Objective,
        network: nn.Module,
        feed: Feed,
        run: Run,
        config: TrainerConfig,
        *,
        seed: int,
        image_size: int,
        ranks: Ranks,
        device: torch.device,
        header: Mapping[str, Any],
        scoring: Scoring | None = None,
        compiled: bool = False,
    ):
        self.objective, self.feed, self.run, self.config = objective, feed, run, config
        self.seed, self.image_size, self.ranks, self.device, self.header = seed, image_size, ranks, device, header
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled and config.micro_batch:
            # Features and gradient come from two programs, which must draw the same dropout: that of eager networks.
            from torch._inductor import config as inductor

            inductor.fallback_random = True
        self.model: nn.Module = torch.compile(self.network, dynamic=False) if compiled else self.network  # type: ignore[assignment]
        self.ema = averaged(self.network, decay=config.ema_decay, warmup=config.ema_warmup)
        self.optimizer = adamw(
            self.network, learning_rate=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.dtype = autocast_dtype(config.precision, device)
        self.clock = StepClock(device)
        # Asking a GPU at every step whether numbers are finite would keep it waiting for the next one's orders.
        self.watch = FiniteWatch(ranks, deferred=device.type == "cuda")
        # On a CPU the draws are about 1 % of a step, and a thread that makes them takes its time from the same cores.
        self.prefetch = device.type == "cuda"
        self.stop, self.stop_reading = StopRequest(), LaggedReading()
        self.collapse = CollapseWatch(threshold=config.collapse_spread, patience=config.collapse_patience)
        self.exchange = GradientExchange(self.network.parameters(), ranks)
        self.execution = Execution(
            micro_batch=config.micro_batch,
            autocast=partial(autocast, device, self.dtype),
            last_backward=self.exchange.last_backward,
            clock=self.clock,
        )
        self.tracker: Tracker = NoTracker()
        if ranks.is_main:
            self.tracker = open_tracker(config.tracker, run.path, header)
        self.scoring = scoring
        self.writer = CheckpointWriter(run, keep_every=config.keep_every, device=device)
        self.step = 0
        self.saved_step: int | None = None
        self.images_seen = 0
        self._earlier_seconds = 0.0  # of training in processes before this one
        self._began: float | None = None  # reading of the clock; None where the loop does not run
        self._aside_seconds = 0.0  # since then, for what is no training step: pictures, checkpoints, measurements
        self._begin_window(time.monotonic())

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far, without pictures, checkpoints and measurements.

        On a GPU the host is ahead of the steps: it is right after the device was waited for.
        """
        since = 0.0 if self._began is None else time.monotonic() - self._began - self._aside_seconds
        return self._earlier_seconds + since

    def resume(self) -> bool:
        """Continue from the last checkpoint, if there is one. Records after it are dropped, to be written again."""
        found = bool(self.run.checkpoints())
        if found:
            self._restore(self.run.checkpoint())
        self.ranks.barrier()
        if self.ranks.is_main:
            self.run.rewind_metrics(self.step)
        return found

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.network.load_state_dict(checkpoint.weights("raw"))
        self.ema.module.load_state_dict(checkpoint.weights("ema"))
        restore_optimizer(self.optimizer, self.network, checkpoint.optimizer())
        state = checkpoint.state()
        self.step, self.images_seen = state.step, state.images_seen
        self._earlier_seconds = state.train_seconds
        self.collapse.restore(state.collapse)
        self.saved_step = self.step
        require_finite(
            self._state_tensors(), f"{checkpoint.path}: tensors",
            fix="remove that folder to go on from an earlier checkpoint, or give another --output",
        )  # fmt: skip

    def train(self) -> None:
        """Train to the last step, saving on the way.

        Raises:
            InterruptedRunError: a signal asked to stop; the state was saved first.
            NonFiniteStepError: a loss, gradient, feature or weight is not finite; nothing was updated with it, and the
                step lies in RUN/inspect.
        """
        if self.saved_step is not None and self.step >= self.config.steps:
            self._finish_what_was_killed()
            return
        reset_peak_memory(self.device)
        if self.ranks.is_main:
            self.run.remove_partial_checkpoints()
        self._update_manifest("running")
        try:
            with self.writer:
                self._train_to_the_end()
        except NonFiniteStepError as error:
            raise self._inspected(error) from None
        finally:
            self.tracker.close()
        self._update_manifest("done")

    def _inspected(self, error: NonFiniteStepError) -> NonFiniteStepError:
        """The error with its cause, after the step was repeated and saved. All ranks come here."""
        try:
            self.watch.check()
        except NonFiniteStepError as earlier:  # which nobody had asked for yet; nothing was updated since
            error = earlier
        repeated = repeat(
            self.objective, self.model, self.network, self.feed, self.execution, self.ranks, step=error.step
        )
        saved: Path | str = ""
        if self.ranks.is_main:
            try:
                saved = save_inspection(self.run, self.network, self.feed, repeated, error=error, header=self.header)
            except OSError as reason:
                saved = f"it could not be saved for inspection: {reason}"
        self.ranks.barrier()  # torchrun ends the others when the first one leaves
        return explained(error, repeated.findings, saved)

    def _train_to_the_end(self) -> None:
        with (
            self.stop,
            TrainingProgress(total=self.config.steps, start=self.step, shown=self.ranks.is_main) as progress,
            self.feed.prefetching(end=self.config.steps) if self.prefetch else contextlib.nullcontext(),
        ):
            self._began, self._aside_seconds = time.monotonic(), 0.0
            self._begin_window(self._began)
            first = self.step
            while self.step < self.config.steps:
                outcome = self._train_step()
                if self.step == first + 1 and self.ranks.is_main:  # only now the optimizer has its moments
                    self.writer.prepare(self._state())
                measured = self._measure_when_due(outcome)
                if measured or self._is_record_due():
                    self._log(outcome, progress)
                progress.step(self.step)
                self._save_when_due()
                self.writer.check()
                self._stop_if_asked()
            if self.step == 0:  # a run of no steps: the untrained network, to be sampled and scored like any other
                self._save_checkpoint()
            with self._aside():
                self._await_checkpoint()
            self._earlier_seconds, self._began = self.train_seconds, None

    def _begin_window(self, start: float) -> None:
        """Count from a reading of the clock on what the next record says of speed."""
        self._window_start, self._window_images, self._window_steps = start, 0, 0
        self._window_aside = self._aside_seconds

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """What is done within is no training; steps that the device still has to do are."""
        synchronize(self.device)
        started = time.monotonic()
        try:
            yield
        finally:
            self._aside_seconds += time.monotonic() - started

    def _train_step(self) -> StepLoss:
        seed_global_generators(self.seed, self.step, self.ranks.rank)
        self.network.train()
        self.clock.start()
        batch = self.feed.batch(self.step)
        self.clock.mark("data")
        outcome = self.objective.accumulate(self.model, batch, self.execution)
        if self.ranks.world_size > 1:
            self.exchange.finish()
            self.clock.mark("gradient exchange")
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.watch.see(outcome, norm, step=self.step, stop=self.stop.signal or 0)
        if not self.watch.deferred:
            self.watch.check()
        self.optimizer.found_inf = self.watch.last  # type: ignore[attr-defined]  # fused: then it updates nothing
        outcome.health["gradient_norm"] = norm.detach()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.step()
        self.exchange.clear()
        self.step += 1
        self.ema.update(self.network, self.step)
        self.clock.mark("optimizer")
        images = len(batch.images) * self.ranks.world_size
        self.images_seen += images
        self._window_images += images
        self._window_steps += 1
        return outcome

    def _learning_rate(self) -> float:
        warmup = self.config.warmup_steps
        return self.config.learning_rate * min(1.0, (self.step + 1) / warmup if warmup else 1.0)

    def _is_record_due(self) -> bool:
        return self.step == self.config.steps or is_due(self.step, self.config.log_every, most=MOST_RECORDS)

    def _measure_when_due(self, outcome: StepLoss) -> bool:
        every = self.config.measure_every or self.config.sample_every
        last = self.step == self.config.steps
        measuring = last or is_due(self.step, every, most=MOST_GRIDS)
        scoring = self.scoring if self.scoring and (last or self.step % self.scoring.every == 0) else None
        if not measuring and not scoring:
            return False
        measured: dict[str, float] = {}
        with self._aside():
            if self.ranks.is_main and measuring:
                with torch.inference_mode(), autocast(self.device, self.dtype):
                    measured |= self.objective.measure(self.ema.module.eval())
            if self.ranks.is_main and scoring:
                measured |= scoring.score(self.ema.module.eval())
        outcome.health |= {name: torch.tensor(value) for name, value in measured.items()}
        return True

    def _log(self, outcome: StepLoss, progress: TrainingProgress) -> None:
        self.watch.check()
        synchronize(self.device)
        now = time.monotonic()
        took, aside = now - self._window_start, self._aside_seconds - self._window_aside
        means = torch.stack([outcome.total.float(), *(t.float() for t in outcome.terms.values())])
        total, *terms = self.ranks.mean(means).tolist()
        record = {
            "step": self.step,
            "images": self.images_seen,
            "seconds": round(self.train_seconds, 3),
            "images_per_second": self._window_images / max(took, 1e-9),
            "images_per_second_of_steps": self._window_images / max(took - aside, 1e-9),
            "seconds_per_step": self._time_split(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "ema_decay": self.ema.get_decay(self.step),
            "loss": total,
            "terms": dict(zip(outcome.terms, terms, strict=True)),
            "health": {name: float(value) for name, value in outcome.health.items()},
        }
        self._begin_window(now)
        collapsed = self._see_collapse(record, progress)
        if self.ranks.is_main:
            self.run.append_metrics(record)
            self.tracker.record(record)
            progress.record(record)
        if collapsed and self.config.fail_on_collapse:
            self._stop_collapsed()

    def _see_collapse(self, record: dict[str, Any], progress: TrainingProgress) -> bool:
        """Judge the record's spread, and say so in the record while generated features are collapsed."""
        spread = record["health"].get("spread")
        if spread is None:
            return False
        begins = self.collapse.see(spread, step=self.step)
        known = self.collapse.known
        if known.now:
            record["health"]["collapsed"] = 1.0
        if begins and self.ranks.is_main:
            self.writer.wait()  # else it would put what it knew of collapse over this
            self.run.update(collapse=self.collapse.document())
            progress.warn(
                f"collapse: since step {known.below_since} generated features spread less than "
                f"{self.config.collapse_spread:g} of what real ones do, {spread:.2g} at step {self.step}; look at "
                "samples/, try a lower learning rate, smaller temperatures or another encoder"
            )
        return known.now

    def _stop_collapsed(self) -> None:
        """Save and refuse to go on; the spread is equal on all ranks, so that all come here."""
        if self.saved_step != self.step:
            self._save_checkpoint()
        self._await_checkpoint()
        known = self.collapse.known
        error = RefusedError(
            f"the generator has collapsed: since step {known.below_since} its features spread less than "
            f"{self.config.collapse_spread:g} of what real ones do (least {known.worst_spread:.2g} at step "
            f"{known.worst_step}); stopped at step {self.step}, state saved; without --fail-on-collapse it goes on"
        )
        error.on_all_ranks = True
        raise error

    def _time_split(self) -> dict[str, float]:
        """Seconds per step since the last record, by what they were spent on."""
        return {name: seconds / max(1, self._window_steps) for name, seconds in self.clock.seconds().items()}

    def _save_when_due(self) -> None:
        last = self.step == self.config.steps
        if last or is_due(self.step, self.config.sample_every, most=MOST_GRIDS):
            with self._aside():
                self._save_grid()
        if last or (self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0):
            with self._aside():
                self._save_checkpoint()

    def _stop_if_asked(self) -> None:
        """Save and stop where a signal came to any rank. Ranks see one another's a step late, all at the same step."""
        number = self.stop.signal or 0
        if self.watch.stop is not None:
            number = int(self.stop_reading.exchange(self.watch.stop))
        if not number or self.step >= self.config.steps:
            return
        if self.saved_step != self.step:  # known to all ranks alike, unlike what their file systems show
            self._save_checkpoint()
        self._await_checkpoint()
        self._update_manifest("interrupted")
        raise InterruptedRunError(
            f"stopped at step {self.step}, state saved; the same command resumes", exit_code(number)
        )

    def _save_grid(self) -> None:
        """What the averaged network gives from noise that is the same at every step."""
        if not self.ranks.is_main or not self.config.sample_every:
            return
        count = 64
        noise = image_noise(self.seed, "grid", range(count), (3, self.image_size, self.image_size)).to(self.device)
        spread = torch.arange(count) * len(self.feed.images) // count  # packs are often ordered by class
        real = to_float(self.feed.images[spread].to(self.device))
        with torch.inference_mode(), autocast(self.device, self.dtype):
            images = self.objective.preview(self.ema.module.eval(), noise, real)
        path = self.run.path / "samples" / f"step-{self.step:08d}.png"
        # 8 columns, or 9 for triplets, so that triplets of one image never break across rows
        save_grid(path, to_uint8(images).cpu(), columns=8 if len(images) == count else 9)
        self.tracker.grid(to_uint8(images).cpu(), self.step)

    def _state(self) -> State:
        """What a checkpoint holds, on the device."""
        return {
            "raw": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.network),
        }

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        """The same under names that tell weights and their average apart."""
        state = self._state()
        named = {f"{which}/{name}": value for which in ("raw", "ema") for name, value in state[which].items()}
        return named | dict(state["optimizer"])

    def _save_checkpoint(self) -> None:
        """Begin to save this step; `_await_checkpoint` knows when it is on disk."""
        self.watch.check()
        broken = not_finite(self._state_tensors())  # the last update may have spoilt what no step has seen yet
        if int(self.ranks.max(torch.tensor(len(broken), device=self.device))):
            raise NonFiniteStepError("weights", self.step, [named(list(broken))])
        if self.ranks.is_main:
            self.writer.save(
                self.step,
                self._state(),
                state={
                    "step": self.step,
                    "images_seen": self.images_seen,
                    "train_seconds": self.train_seconds,
                    "collapse": self.collapse.state(),
                },
                header={**self.header, "step": self.step, "ema_decay": self.ema.get_decay(self.step)},
                manifest=self._manifest_fields("running"),
            )
        self.saved_step = self.step

    def _await_checkpoint(self) -> None:
        """Wait until the last step that was saved is on disk; all ranks, since torchrun ends the others with the first.

        Raises:
            StorageError: on rank 0, it was not written.
        """
        self.writer.wait()
        self.ranks.barrier()

    def _finish_what_was_killed(self) -> None:
        """After the last checkpoint there is little left to do; how the run was trained stays as it was recorded."""
        if self.ranks.is_main:
            if self.run.manifest().state != "done":  # a run that is done keeps what it has
                self.run.remove_partial_checkpoints()
                self.run.prune_checkpoints(keep_every=self.config.keep_every)
            self.run.update(
                state="done", failure=None, step=self.step, images_seen=self.images_seen,
                train_seconds=round(self.train_seconds, 3),
            )  # fmt: skip

    def _update_manifest(self, state: str) -> None:
        if self.ranks.is_main:
            self.run.update(**self._manifest_fields(state))

    def _manifest_fields(self, state: str) -> dict[str, Any]:
        return {
            "state": state,
            "failure": None,
            "step": self.step,
            "images_seen": self.images_seen,
            "train_seconds": round(self.train_seconds, 3),
            "peak_memory_gib": round(peak_memory_gib(self.device), 3),
            "device": describe_device(self.device),
            "world_size": self.ranks.world_size,
            "precision": str(self.dtype).removeprefix("torch."),
            "collapse": self.collapse.document(),
        }
