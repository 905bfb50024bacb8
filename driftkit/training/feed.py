"""Which images a step sees: a function of (seed, step, slot in the global batch), so nothing is kept to resume."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from driftkit.errors import UsageError
from driftkit.protocols import Batch, ChosenImages, Objective
from driftkit.runtime.device import one_worker
from driftkit.runtime.random import generator_for, shuffled_indices, stream_seed
from driftkit.runtime.ranks import Ranks
from driftkit.storage.images import to_float

RESIDENT_SHARE = 1 / 8  # of a GPU's free memory, which images may take to be there once for all


def hold_out(count: int, num_held_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the images to train on and of those held out, int64, the same for every seed.

    Raises UsageError where nothing would be left to train on.
    """
    if num_held_out >= count:
        raise UsageError(f"`data.holdout` {num_held_out}: there are only {count} images; hold out fewer")
    order = torch.randperm(count, generator=generator_for(0, "hold out"))
    return order[num_held_out:].sort().values, order[:num_held_out].sort().values


def _resident(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the GPU where they are small against it: copying each batch would hold up its queue."""
    if device.type != "cuda" or images.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images
    return images.to(device)


@dataclass(frozen=True)
class _Prepared:
    """The parts of a batch that the host makes; in pinned memory where the device is a GPU."""

    slots: range
    indices: torch.Tensor  # which images of the pack, int64 [B]
    images: torch.Tensor | None  # uint8 [B, 3, H, W]; None where all images are on the device
    flips: torch.Tensor  # which of them are mirrored, bool [B]
    labels: torch.Tensor | None  # int64 [B]; None where the objective does not need them
    draws: dict[str, torch.Tensor] | None  # those of the objective; None where it makes them itself


class Feed:
    """Shuffled epochs one after another; every rank takes its own slots of the global batch.

    Args:
        images: uint8 [N, 3, H, W], may be memory-mapped.
        labels: int64 [N].
        batch_size: images per rank.
        horizontal_flip: mirror half of the images, by a draw of (seed, step, slot).
        indices: which of the images are fed, int64; None: all.
        objective: whose draws come with the batches, and which may do without labels; None: labels and no draws.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        batch_size: int,
        horizontal_flip: bool,
        seed: int,
        ranks: Ranks,
        device: torch.device,
        indices: torch.Tensor | None = None,
        objective: Objective | None = None,
    ):
        self.images, self.labels = _resident(images, device), labels
        self.indices = torch.arange(len(images)) if indices is None else indices
        self.batch_size = batch_size
        self.horizontal_flip = horizontal_flip
        self.seed, self.ranks, self.device = seed, ranks, device
        self.objective = objective
        self._orders: dict[int, torch.Tensor] = {}
        self._worker: ThreadPoolExecutor | None = None
        self._end = 0
        self._next: tuple[int, Future[_Prepared]] | None = None

    @contextlib.contextmanager
    def prefetching(self, *, end: int) -> Iterator[None]:
        """Prepare the batch of every following step below `end` on a worker thread, while the device works on this one.

        The batches are the same. An error on the thread is raised by `batch` of its step. On leaving, the thread ends
        after the batch that it may be preparing.
        """
        with one_worker("feed", self.device) as worker:
            self._worker, self._end = worker, end
            try:
                yield
            finally:
                self._worker = self._next = None
                worker.shutdown(wait=False, cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """This rank's batch of a step, on the device."""
        return self._to_device(self._prefetched(step) if self._worker is not None else self._prepare(step), step)

    def pick(self, step: int, slots: range) -> tuple[torch.Tensor, torch.Tensor]:
        """The real images of a rank's slots: numbers in the pack, int64, and whether mirrored, bool."""
        chosen = None if self.objective is None else self.objective.choose(self.seed, step, slots)
        if chosen is None:
            first = step * self.batch_size * self.ranks.world_size + slots.start
            chosen = ChosenImages(self._images_at(first, len(slots)), slots)
        flips = torch.zeros(len(chosen.numbers), dtype=torch.bool)
        if self.horizontal_flip:
            mirrored = [stream_seed(self.seed, "flip", step, number) % 2 for number in chosen.numbers]
            flips = torch.tensor(mirrored, dtype=torch.bool)
        return chosen.indices, flips

    def _prefetched(self, step: int) -> _Prepared:
        assert self._worker is not None
        if self._next is None or self._next[0] != step:
            self._next = step, self._worker.submit(self._prepare, step)
        prepared = self._next[1].result()
        self._next = (step + 1, self._worker.submit(self._prepare, step + 1)) if step + 1 < self._end else None
        return prepared

    def _prepare(self, step: int) -> _Prepared:
        first = self.ranks.rank * self.batch_size
        slots = range(first, first + self.batch_size)
        indices, flips = self.pick(step, slots)
        labels = draws = None
        if self.objective is not None:
            drawn = self.objective.draws(self.seed, step, slots, self.images.shape[1:])
            draws = {name: self._pinned(values) for name, values in drawn.items()}
        if self.objective is None or self.objective.needs_labels:
            labels = self._pinned(self.labels[indices])
        on_host = self.images.device.type == "cpu"
        return _Prepared(
            slots,
            indices=self._pinned(indices),
            images=self._pinned(self.images[indices]) if on_host else None,
            flips=self._pinned(flips),
            labels=labels,
            draws=draws,
        )

    def _pinned(self, values: torch.Tensor) -> torch.Tensor:
        """In memory from which a GPU copies while the host goes on; torch keeps it until the copy is done."""
        return values.pin_memory() if self.device.type == "cuda" else values

    def _to_device(self, prepared: _Prepared, step: int) -> Batch:
        def moved(values: torch.Tensor) -> torch.Tensor:
            return values.to(self.device, non_blocking=True)

        images = to_float(self.images[moved(prepared.indices)] if prepared.images is None else moved(prepared.images))
        if self.horizontal_flip:
            images = torch.where(moved(prepared.flips)[:, None, None, None], images.flip(-1), images)
        return Batch(
            images.contiguous(memory_format=torch.channels_last),
            None if prepared.labels is None else moved(prepared.labels),
            prepared.slots,
            self.seed,
            step,
            indices=prepared.indices,
            flips=prepared.flips,
            draws=None if prepared.draws is None else {name: moved(values) for name, values in prepared.draws.items()},
        )

    def _images_at(self, first: int, count: int) -> torch.Tensor:
        """Numbers in the pack of the images at `count` positions of the epochs one after another, int64 [count]."""
        parts = []
        while count > 0:
            epoch, offset = divmod(first, len(self.indices))
            parts.append(self._order(epoch)[offset : offset + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)

    def _order(self, epoch: int) -> torch.Tensor:
        orders = self._orders
        if epoch not in orders:
            orders = {e: o for e, o in orders.items() if e == epoch - 1}  # a batch may span two epochs
            orders[epoch] = self.indices[shuffled_indices(self.seed, epoch, len(self.indices))]
            self._orders = orders  # replaced as a whole, since the worker reads it, too
        return orders[epoch]
