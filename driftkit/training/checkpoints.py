"""Saving while training continues: the state is copied to the host at once, and written to disk by another thread."""

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from driftkit.config.weights_name import EMA, RAW
from driftkit.errors import InterruptedRunError, NonFiniteStepError
from driftkit.runtime.device import describe_device, one_worker, peak_memory_gib
from driftkit.runtime.readback import not_finite, require_finite
from driftkit.storage.run_folder import Run
from driftkit.training.hooks import FinishedStep, Hook
from driftkit.training.monitors import CollapseWatch

if TYPE_CHECKING:
    from driftkit.training.trainer import Trainer

State = Mapping[str, Mapping[str, torch.Tensor]]
"""Tensors of `raw` weights, of their averages (`ema`, ...) and of the `optimizer`."""
Headers = Mapping[str, Mapping[str, Any]]
"""Name of weights -> header of their file."""


class Checkpoints(Hook):
    """Saves the state of a training every so many steps (0: never), at its end, and when it stops; the manifest
    follows.

    It comes last among the hooks. `header` is that of weights files; what is known of collapse is saved with the state.
    """

    def __init__(self, run: Run, *, every: int, keep_every: int, header: Mapping[str, Any], collapse: CollapseWatch):
        self.run, self.every, self.keep_every = run, every, keep_every
        self.header, self.collapse = header, collapse
        self.saved_step: int | None = None  # known to all ranks alike, unlike what their file systems show

    def restore(self, trainer: "Trainer") -> bool:
        """Continue from the last checkpoint, if there is one. Records after it are dropped, to be written again."""
        if saved := self.run.checkpoints():
            checkpoint = saved[-1]
            state = checkpoint.state()
            trainer.restore(
                {**{name: checkpoint.weights(name) for name in (RAW, *trainer.averages)},
                 "optimizer": checkpoint.optimizer()},
                step=state.step, images_seen=state.images_seen, train_seconds=state.train_seconds,
            )  # fmt: skip
            self.collapse.restore(state.collapse)
            require_finite(
                dict(_flat(trainer.tensors())), f"{checkpoint.path}: tensors",
                fix="remove that folder to continue from an earlier checkpoint, or give another `output`",
            )  # fmt: skip
            self.saved_step = trainer.step
        trainer.ranks.barrier()
        if trainer.ranks.is_main:
            self.run.rewind_metrics(trainer.step)
        return bool(saved)

    def finish(self, trainer: "Trainer") -> None:
        """Finish a training that was killed after its last checkpoint; how it was trained stays as recorded."""
        if trainer.ranks.is_main:
            if self.run.manifest().state != "done":  # a run that is done keeps what it has
                self.run.remove_partial_checkpoints()
                self.run.prune_checkpoints(keep_every=self.keep_every)
            self.run.update(state="done", **_progress(trainer))

    def before_training(self, trainer: "Trainer", closing: contextlib.ExitStack) -> None:
        self.writer = CheckpointWriter(trainer.device)
        closing.enter_context(self.writer)
        self.is_prepared = not trainer.ranks.is_main
        if trainer.ranks.is_main:
            self.run.remove_partial_checkpoints()
            self._update_manifest(trainer, "running")

    def after_step(self, trainer: "Trainer", step: FinishedStep) -> None:
        if not self.is_prepared:  # only after the first step the optimizer has its moments
            self.writer.prepare(trainer.tensors())
            self.is_prepared = True
        if step.is_due(self.every):
            with trainer.aside():
                self._save(trainer)
        self.writer.check()

    def at_end(self, trainer: "Trainer") -> None:
        """Save what is not saved yet, and wait until it is on disk; all ranks, since torchrun ends the others then."""
        with trainer.aside():
            if self.saved_step != trainer.step:
                self._save(trainer)
            self.writer.wait()
            trainer.ranks.barrier()
        if trainer.stop_error is None:
            self._update_manifest(trainer, "done")
        elif isinstance(trainer.stop_error, InterruptedRunError):
            self._update_manifest(trainer, "interrupted")

    def _save(self, trainer: "Trainer") -> None:
        """Begin to save this step."""
        tensors = trainer.tensors()
        spoiled = list(not_finite(dict(_flat(tensors))))
        if int(trainer.ranks.max(torch.tensor(len(spoiled), device=trainer.device))):
            raise NonFiniteStepError([name.replace("raw/", "weights ") for name in spoiled], trainer.step - 1)
        if trainer.ranks.is_main:
            state = {
                "step": trainer.step,
                "images_seen": trainer.images_seen,
                "train_seconds": trainer.stopwatch.seconds,
                "collapse": self.collapse.state(),
            }
            decays = {name: average.get_decay(trainer.step) for name, average in trainer.averages.items()}
            headers = {
                name: {**self.header, "step": trainer.step, "ema_decay": decay}
                for name, decay in {RAW: decays[EMA], **decays}.items()
            }
            manifest = self._manifest_fields(trainer, "running")
            self.writer.save(tensors, partial(self._write, state=state, headers=headers, manifest=manifest))
        self.saved_step = trainer.step

    def _write(
        self, tensors: State, *, state: Mapping[str, Any], headers: Headers, manifest: Mapping[str, Any]
    ) -> None:
        """On the thread: write a checkpoint, and only then remove an older one and update the manifest."""
        self.run.save_checkpoint(
            state["step"],
            weights={name: held for name, held in tensors.items() if name != "optimizer"},
            optimizer=tensors["optimizer"],
            state=state,
            headers=headers,
        )
        self.run.prune_checkpoints(keep_every=self.keep_every)
        self.run.update(**manifest)

    def _update_manifest(self, trainer: "Trainer", state: str) -> None:
        if trainer.ranks.is_main:
            self.run.update(**self._manifest_fields(trainer, state))

    def _manifest_fields(self, trainer: "Trainer", state: str) -> dict[str, Any]:
        return {
            "state": state,
            **_progress(trainer),
            "peak_memory_gib": round(peak_memory_gib(trainer.device), 3),
            "device": describe_device(trainer.device),
            "world_size": trainer.ranks.world_size,
            "precision": str(trainer.dtype).removeprefix("torch."),
            "collapse": self.collapse.document(),
        }


def _progress(trainer: "Trainer") -> dict[str, Any]:
    return {
        "failure": None,
        "step": trainer.step,
        "images_seen": trainer.images_seen,
        "train_seconds": round(trainer.stopwatch.seconds, 3),
    }


class CheckpointWriter:
    """Writes checkpoints on a thread, one at a time.

    It takes the memory of one checkpoint on the host, pinned where the device of the state is a GPU (there torch rounds
    the size of every tensor up to a power of two), and while it writes that of the largest file once more. The memory
    is kept from one checkpoint to the next: on a CPU, fresh memory costs several times what the copy does.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._copies: dict[str, torch.Tensor] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        self._thread = one_worker("checkpoint", self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being written. An earlier error is the one to be raised."""
        assert self._thread is not None
        try:
            self.wait()
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"the last checkpoint was not written: {second}")
        finally:
            self._thread.shutdown()
            self._thread = None
            self._copies.clear()

    def prepare(self, state: State) -> None:
        """Allocate the memory of a checkpoint on the thread, so that the first one need not wait for it."""
        assert self._thread is not None
        self._writing = self._thread.submit(self._allocate, _flat(state))

    def save(self, state: State, write: Callable[[State], None]) -> None:
        """Copy the state, after the previous checkpoint has been written, and begin to `write` the copies.

        Raises StorageError where the previous checkpoint was not written.
        """
        self.wait()
        assert self._thread is not None
        for name, tensor in _flat(state):
            self._copy_of(name, tensor).copy_(tensor, non_blocking=True)
        arrival = None
        if self.device.type == "cuda":
            arrival = torch.cuda.Event()
            arrival.record()
        copies = {part: {name: self._copies[f"{part}/{name}"] for name in held} for part, held in state.items()}
        self._writing = self._thread.submit(self._write, copies, arrival, write)

    def _write(self, copies: State, arrival: torch.cuda.Event | None, write: Callable[[State], None]) -> None:
        if arrival is not None:
            arrival.synchronize()
        write(copies)

    def check(self) -> None:
        """Look at the last checkpoint without waiting for it. Raises StorageError: it was not written."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Raises StorageError: it was not written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _allocate(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            self._copy_of(name, tensor).zero_()  # the system gives memory when it is first written

    def _copy_of(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Memory on the host for a tensor, with its strides: others would be copied number by number."""
        if name not in self._copies and self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # no more memory may be pinned: then the copy takes longer
                self._copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=True)
        if name not in self._copies:
            self._copies[name] = torch.empty_like(tensor, device="cpu")
        return self._copies[name]


def _flat(state: State) -> list[tuple[str, torch.Tensor]]:
    return [(f"{part}/{name}", tensor.detach()) for part, held in state.items() for name, tensor in held.items()]
