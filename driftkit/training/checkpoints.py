"""Saving while training goes on: the state is copied to the host at once, and written to disk on another thread."""

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch

from driftkit.runtime.worker import one_worker
from driftkit.storage.run_folder import Run

State = Mapping[str, Mapping[str, torch.Tensor]]
"""`raw`, `ema` and `optimizer`: what `Run.save_checkpoint` takes, still on the device."""


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time, each whole and verified before an older one is removed.

    It takes the memory of one checkpoint on the host, pinned where the device is a GPU (there torch rounds the size of
    every tensor up to a power of two), and while it writes that of the largest file once more. The memory is kept from
    one checkpoint to the next: on a CPU, fresh memory costs several times what the copy does. A process that is killed
    meanwhile leaves the checkpoint before.

    Args:
        run: its folder.
        keep_every: as `Run.prune_checkpoints` has it.
        device: where the state lies.
    """

    def __init__(self, run: Run, *, keep_every: int, device: torch.device):
        self.run, self.keep_every, self.device = run, keep_every, device
        self._copies: dict[str, torch.Tensor] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        self._thread = one_worker("checkpoint", self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being written. If something else went wrong before, that is the error to be raised."""
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
        """Take the memory of a checkpoint on the thread, so that the first one need not wait for it."""
        assert self._thread is not None
        self._writing = self._thread.submit(self._take_memory, _named(state))

    def save(
        self,
        step: int,
        tensors: State,
        *,
        state: Mapping[str, Any],
        header: Mapping[str, Any],
        manifest: Mapping[str, Any],
    ) -> None:
        """Copy the state, after the checkpoint before has been written, and begin to write it.

        Args:
            state, header: as `Run.save_checkpoint` has them.
            manifest: fields of the manifest that are replaced once the checkpoint is on disk.

        Raises:
            StorageError: the checkpoint before was not written.
        """
        self.wait()
        assert self._thread is not None
        for name, tensor in _named(tensors):
            self._copy_of(name, tensor).copy_(tensor, non_blocking=True)
        arrival = None
        if self.device.type == "cuda":
            arrival = torch.cuda.Event()
            arrival.record()
        copies = {kind: {name: self._copies[f"{kind}/{name}"] for name in held} for kind, held in tensors.items()}
        self._writing = self._thread.submit(self._write, step, copies, arrival, state, header, manifest)

    def check(self) -> None:
        """Raise what went wrong with a checkpoint that is no longer being written; waits for nothing.

        Raises:
            StorageError: it was not written.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            StorageError: it was not written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _take_memory(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            self._copy_of(name, tensor).zero_()  # the system gives memory when it is first written

    def _copy_of(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Memory on the host for a tensor, with its strides: others would be copied number by number."""
        if name not in self._copies:
            self._copies[name] = self._memory_like(tensor)
        return self._copies[name]

    def _memory_like(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # no more memory may be pinned: then the copy takes longer
                return torch.empty_like(tensor, device="cpu", pin_memory=True)
        return torch.empty_like(tensor, device="cpu")

    def _write(
        self,
        step: int,
        copies: State,
        arrival: torch.cuda.Event | None,
        state: Mapping[str, Any],
        header: Mapping[str, Any],
        manifest: Mapping[str, Any],
    ) -> None:
        if arrival is not None:
            arrival.synchronize()
        raw, ema, optimizer = (copies[kind] for kind in ("raw", "ema", "optimizer"))
        self.run.save_checkpoint(step, raw=raw, ema=ema, optimizer=optimizer, state=state, header=header)
        self.run.prune_checkpoints(keep_every=self.keep_every)
        self.run.update(**manifest)


def _named(state: State) -> list[tuple[str, torch.Tensor]]:
    return [(f"{kind}/{name}", tensor.detach()) for kind, held in state.items() for name, tensor in held.items()]
