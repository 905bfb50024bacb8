"""The error when memory runs out in training: the numbers of the step, and the batches that would fit."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from driftkit.errors import ResourceError
from driftkit.runtime.memory import describe_shortage, gib, is_out_of_memory, release, room
from driftkit.training.budget import Budget, Shapes, budget, training_shapes
from driftkit.training.train_config import TrainConfig

# Share of the memory that a forecast may reach: gradients of activations, the workspaces of convolutions and attention,
# and the losses of allocators are not counted. At 0.7 the advice was seen to fail on a CPU.
SHARE = 0.5
FIXED = 64 * 2**20  # libraries that are loaded on the way, threads
STEP = 0.5  # advice is at most this share of what ran out, however much the forecast says would fit


@dataclass
class TrainingMemory:
    """The memory of one training: its complete config, the number of ranks, and the device of this one."""

    config: TrainConfig
    ranks: int
    device: torch.device

    def __post_init__(self) -> None:
        self.at_start = room(self.device)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn running out of memory into a ResourceError that has the numbers and what would fit."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = describe_shortage(error, self.device)
            release(error, self.device)
            try:
                numbers = self._numbers()
            except Exception as second:
                if not is_out_of_memory(second):
                    raise
                # Too little memory is left to count.
                numbers = f"lower `trainer.micro_batch` or `trainer.batch_size` ({self.config.trainer.batch_size})"
            raise ResourceError(f"{failure}; {numbers}; the last checkpoint is whole") from None

    def _numbers(self) -> str:
        trainer = self.config.trainer
        shapes, _ = training_shapes(self.config, device=self.device.type)
        spent = self._budget(shapes, trainer.batch_size)
        seen = shapes.micro_batch or trainer.batch_size
        parts = {"networks": spent.saved_bytes, "features": spent.feature_bytes, "field": spent.field_bytes,
                 "weights": spent.state_bytes}  # fmt: skip
        shown = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
        chunk = f", field workspace {self._chunk_mib(shapes)} MiB" if shapes.batch else ""
        takes = (
            f"batch {trainer.batch_size} in micro-batches of {seen}{chunk} takes about {gib(spent.memory_bytes)} on "
            f"paper ({shown}) of {gib(self.at_start)} at the start"
        )
        return f"{takes}; {self._advice(shapes, spent)}"

    def _advice(self, shapes: Shapes, spent: Budget) -> str:
        """Settings that would fit: smaller micro-batches first, since their gradient is the same."""
        most = min(SHARE * (self.at_start - FIXED), STEP * spent.memory_bytes)
        batch = self.config.trainer.batch_size
        micro = self._largest(replace(shapes, micro_batch=None), batch, min(batch, shapes.micro_batch or batch), most)
        advice = []
        if micro:
            needed = self._budget(replace(shapes, micro_batch=micro), batch)
            advice.append(
                f"`trainer.micro_batch` {micro} would take {gib(needed.memory_bytes)}, with the same gradient"
            )
        smaller, needed_bytes = self._smaller_batch(shapes, batch, most)
        if smaller:
            more = ", with a field of fewer images" if shapes.batch else ""
            advice.append(f"`trainer.batch_size` {smaller} {gib(needed_bytes)}{more}")
        if shapes.batch and spent.field_bytes > spent.memory_bytes / 4 and self._chunk_mib(shapes) > 1:
            advice.append(f"{shapes.batch.chunk_setting}=1 makes the field's workspace smallest")
        return "; or ".join(advice) or "no batch fits: a smaller network or encoder, or more memory"

    def _largest(self, shapes: Shapes, batch: int, below: int, most: float) -> int:
        """The largest power of two below a micro-batch whose step fits; 0 where none does."""
        size = 1 << max(0, (below - 1).bit_length() - 1)
        while size >= 1 and below > 1:
            if self._budget(replace(shapes, micro_batch=size), batch).memory_bytes <= most:
                return size
            size //= 2
        return 0

    def _smaller_batch(self, shapes: Shapes, batch: int, most: float) -> tuple[int, int]:
        """The largest half, quarter, ... of the batch that fits and splits into groups, and what it takes; else 0."""
        size = batch // 2
        while size >= 1:
            shared = shapes.batch is None or shapes.batch.is_shared_by(self.ranks, images=size * self.ranks)
            if shared and (needed := self._budget(shapes, size).memory_bytes) <= most:
                return size, needed
            size //= 2
        return 0, 0

    def _budget(self, shapes: Shapes, batch: int) -> Budget:
        return budget(shapes, images=batch * self.ranks, ranks=self.ranks)

    def _chunk_mib(self, shapes: Shapes) -> int:
        assert shapes.batch is not None
        return shapes.batch.chunk_mib(self.device.type)
