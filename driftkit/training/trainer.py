"""The training loop and its step. What happens between steps is done by hooks (`hooks.py`)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from driftkit.config.weights_name import EMA
from driftkit.errors import DriftkitError, InterruptedRunError
from driftkit.protocols import Execution, Objective, StepLoss
from driftkit.runtime.compilation import compiled_network
from driftkit.runtime.device import autocast, fastest_layout, reset_peak_memory, synchronize, training_dtype
from driftkit.runtime.random import seed_global_generators
from driftkit.runtime.readback import LaggedReading
from driftkit.runtime.signals import StopRequest, exit_code
from driftkit.runtime.timing import StepClock, Stopwatch
from driftkit.training.feed import Feed
from driftkit.training.gradients import GradientExchange
from driftkit.training.hooks import MAX_RECORDS, FinishedStep, Hook
from driftkit.training.monitors import FiniteWatch
from driftkit.training.optimizer import (
    adamw,
    averaged,
    clip_gradients,
    optimizer_tensors,
    restore_optimizer,
    scheduled_rate,
)
from driftkit.training.train_config import TrainerConfig


class Trainer:
    """Trains one network with one objective, on the device and for the ranks of the feed.

    Hooks are what happens between steps, in this order; `compiled` steps use a compiled form of the network.
    """

    def __init__(
        self,
        objective: Objective,
        network: nn.Module,
        feed: Feed,
        config: TrainerConfig,
        *,
        hooks: Sequence[Hook] = (),
        compiled: bool = False,
    ):
        self.objective, self.feed, self.config, self.hooks = objective, feed, config, hooks
        self.ranks, self.device = feed.ranks, feed.device
        self.dtype = training_dtype(config.precision, self.device)
        layout = fastest_layout(self.device, self.dtype)
        self.network = network.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.model = compiled_network(self.network, same_dropout=bool(config.micro_batch)) if compiled else self.network
        self.averages = {
            name: averaged(self.network, decay=decay, warmup=config.ema_warmup)
            for name, decay in config.averages.items()
        }
        self.optimizer = adamw(
            self.network, learning_rate=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.autocast = partial(autocast, self.device, self.dtype)
        self.clock, self.stopwatch = StepClock(self.device), Stopwatch()
        # A host that asked a GPU after every step whether it was finite would leave it idle until the next one.
        self.watch = FiniteWatch(self.ranks, deferred=self.device.type == "cuda")
        # On a CPU the draws are about 1 % of a step, and a thread that makes them takes its time from the same cores.
        self.prefetch = self.device.type == "cuda"
        self.signals, self.stop_reading = StopRequest(), LaggedReading()
        self.stop_error: DriftkitError | None = None
        self.exchange = GradientExchange(self.network.parameters(), self.ranks)
        self.execution = Execution(
            micro_batch=config.micro_batch,
            autocast=self.autocast,
            last_backward=self.exchange.last_backward,
            clock=self.clock,
        )
        self.step = 0
        self.images_seen = 0

    def train(self) -> None:
        """Train to the last step, or until something asks to stop.

        Raises InterruptedRunError after a signal and saving, NonFiniteStepError before the update of a step that is not
        finite, RefusedError where a hook asked to stop, StorageError where a checkpoint could not be written.
        """
        reset_peak_memory(self.device)
        with contextlib.ExitStack() as closing:
            closing.enter_context(self.signals)
            if self.prefetch:
                closing.enter_context(self.feed.prefetching(end=self.config.steps))
            for hook in self.hooks:
                hook.before_training(self, closing)
            with self.stopwatch.running():
                while self.step < self.config.steps and self.stop_error is None:
                    loss = self.train_step()
                    step = FinishedStep(self.step, self.step == self.config.steps, loss)
                    step.log = step.is_due(self.config.log_every, maximum=MAX_RECORDS)
                    for hook in self.hooks:
                        hook.after_step(self, step)
                    self._look_for_signals()
                for hook in self.hooks:
                    hook.at_end(self)
        if self.stop_error is not None:
            raise self.stop_error

    def train_step(self) -> StepLoss:
        """One step: batch, loss and gradient, clipping, update, average. On a GPU the host only queues it."""
        seed_global_generators(self.feed.seed, self.step, self.ranks.rank)
        self.network.train()
        self.clock.start()
        batch = self.feed.batch(self.step)
        self.clock.mark("data")
        loss = self.objective.accumulate(self.model, batch, self.execution)
        if self.ranks.world_size > 1:
            self.exchange.finish()
            self.clock.mark("gradient exchange")
        norm, norms = clip_gradients(self.network, self.config.gradient_clip)
        sources = {"real images": batch.images.sum()}
        self.watch.see(loss, norm, norms, step=self.step, sources=sources, stop=self.signals.signal or 0)
        if not self.watch.deferred:
            self.watch.check()
        self.optimizer.found_inf = self.watch.found_inf  # type: ignore[attr-defined]  # fused: then it updates nothing
        loss.health["gradient_norm"] = norm
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled_rate(self.step, self.config)
        self.optimizer.step()
        self.exchange.clear()
        self.step += 1
        for average in self.averages.values():
            average.update(self.network, self.step)
        self.clock.mark("optimizer")
        self.images_seen += len(batch.slots) * self.ranks.world_size
        return loss

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Time spent within does not count as training; by then the device is idle and all steps were finite.

        Raises NonFiniteStepError where a step was not, on all ranks alike.
        """
        synchronize(self.device)
        self.watch.check()
        with self.stopwatch.paused():
            yield

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Networks run without gradient, in the number format of the training."""
        with torch.inference_mode(), self.autocast():
            yield

    @property
    def averaged_network(self) -> nn.Module:
        """The network with averaged weights, in evaluation mode; of several averages the first."""
        network: nn.Module = self.averages[EMA].module.eval()
        return network

    def stop_with(self, error: DriftkitError) -> None:
        """Stop after the hooks of this step, save, and raise `error`; all ranks must call it at the same step."""
        self.stop_error = self.stop_error or error

    def _look_for_signals(self) -> None:
        """Stop where a signal came to any rank. Ranks see that of another one a step late, all at the same step."""
        number = self.signals.signal or 0
        if self.watch.stop is not None:
            number = int(self.stop_reading.exchange(self.watch.stop))
        if number and self.step < self.config.steps:
            message = f"stopped at step {self.step}, state saved; the same command resumes"
            self.stop_with(InterruptedRunError(message, exit_code(number)))

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The state of the training but for counters, on the device: raw weights, averaged weights, optimizer."""
        return {
            "raw": self.network.state_dict(),
            **{name: average.module.state_dict() for name, average in self.averages.items()},
            "optimizer": optimizer_tensors(self.optimizer, self.network),
        }

    def restore(
        self, tensors: Mapping[str, Mapping[str, torch.Tensor]], *, step: int, images_seen: int, train_seconds: float
    ) -> None:
        """Restore a state that `tensors` returned, and the counters of its step."""
        self.network.load_state_dict(tensors["raw"])
        for name, average in self.averages.items():
            average.module.load_state_dict(tensors[name])
        restore_optimizer(self.optimizer, self.network, tensors["optimizer"])
        self.step, self.images_seen, self.stopwatch = step, images_seen, Stopwatch(train_seconds)
