"""Which images a step sees: a function of (seed, step, slot in the global batch), so nothing is kept to resume."""

import torch

from driftkit.artifacts.images import to_float
from driftkit.protocols import Batch
from driftkit.runtime.distributed import Ranks
from driftkit.runtime.random import shuffled_indices, stream_seed

RESIDENT_SHARE = 1 / 8  # of a GPU's free memory, which images may take to be there once for all


def _resident(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the GPU where they are small beside it: copying each batch would hold up its queue."""
    if device.type != "cuda" or images.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images
    return images.to(device)


class Feed:
    """Shuffled epochs one after another; every rank takes its own slots of the global batch.

    Args:
        images: uint8 [N, 3, H, W], may be memory-mapped.
        labels: int64 [N].
        batch_size: images per rank.
        horizontal_flip: mirror half of the images, by a draw of (seed, step, slot).
        indices: which of the images are fed, int64; None: all.
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
    ):
        self.images, self.labels = _resident(images, device), labels
        self.indices = torch.arange(len(images)) if indices is None else indices
        self.batch_size = batch_size
        self.horizontal_flip = horizontal_flip
        self.seed, self.ranks, self.device = seed, ranks, device
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, step: int, *, rank: int | None = None) -> Batch:
        """The batch of a step on the device: this rank's, or that of another one."""
        first = (self.ranks.rank if rank is None else rank) * self.batch_size
        slots = range(first, first + self.batch_size)
        start = step * self.batch_size * self.ranks.world_size
        picked = torch.tensor([self._image_at(start + slot) for slot in slots])
        images = to_float(self.images[picked.to(self.images.device, non_blocking=True)].to(self.device))
        flips = torch.zeros(len(slots), dtype=torch.bool)
        if self.horizontal_flip:
            flips = torch.tensor([stream_seed(self.seed, "flip", step, slot) % 2 for slot in slots], dtype=torch.bool)
            images = torch.where(flips.to(self.device)[:, None, None, None], images.flip(-1), images)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = self.labels[picked].to(self.device)
        return Batch(images, labels, slots, self.seed, step, indices=picked, flips=flips)

    def _image_at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.indices))
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}  # a batch may span two epochs
            self._orders[epoch] = self.indices[shuffled_indices(self.seed, epoch, len(self.indices))]
        return int(self._orders[epoch][offset])
