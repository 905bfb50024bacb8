"""The process group. World size 1 takes the same path as world size 64: every collective is then the identity."""

import datetime
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from driftkit.errors import DriftkitError


def local_rank() -> int:
    """Number of this process among those of its machine, from torchrun's variable; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@dataclass(frozen=True)
class Ranks:
    """This process among its peers. Made by `Ranks.start()`; plain `Ranks()` is a world of one."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def start(cls, *, device_type: str) -> "Ranks":
        """Join the group that torchrun's variables describe, or be a world of one without them."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        if not dist.is_initialized():
            backend, device = "gloo", None
            if device_type == "cuda":
                backend, device = "nccl", torch.device("cuda", local_rank())
                torch.cuda.set_device(device)  # else every rank's first collective would start on GPU 0
            # Longer than the slowest download that is let go on, for which the other ranks wait.
            dist.init_process_group(backend, timeout=datetime.timedelta(hours=2), device_id=device)
        return cls(dist.get_rank(), dist.get_world_size())

    def stop(self) -> None:
        """Leave the group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def gather_dim1(self, local: torch.Tensor) -> torch.Tensor:
        """Concatenate [G, n, C] of all ranks along dim 1, in rank order, without gradient: [G, W*n, C].

        Raises:
            DriftkitError: the ranks hold different numbers of rows.
        """
        local = local.detach()
        if self.world_size == 1:
            return local
        rows = torch.tensor([local.shape[1]], device=local.device)
        all_rows = [torch.empty_like(rows) for _ in range(self.world_size)]
        dist.all_gather(all_rows, rows)
        counts = [int(r) for r in all_rows]
        if len(set(counts)) != 1:
            raise DriftkitError(f"ranks hold different batch sizes {counts}; give every rank the same --batch-size")
        gathered = local.new_empty((self.world_size, *local.shape))
        dist.all_gather(list(gathered.unbind(0)), local.contiguous())
        return gathered.transpose(0, 1).flatten(1, 2)  # [G, W*n, C]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over ranks."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def max(self, value: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over ranks."""
        return self.sum(value) / self.world_size

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over ranks, in one fused reduction."""
        if self.world_size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1).float() for g in grads])
        dist.all_reduce(flat)
        flat /= self.world_size
        offset = 0
        for grad in grads:
            grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
            offset += grad.numel()
