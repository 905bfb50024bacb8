"""Several processes of this machine as the ranks of one group, without torchrun."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from driftkit.runtime.ranks import Ranks
from tests.conftest import free_port


def run_on_ranks(work: Callable[[Ranks], dict[str, Any]], world: int, folder: Path) -> list[dict[str, Any]]:
    """What `work` returns on each rank, in rank order; it travels in files of the folder."""
    start_ranks(_save_result, world, work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def start_ranks(work: Callable[..., None], world: int, *arguments: object) -> None:
    """Call `work(rank, *arguments)` in processes that find torchrun's variables; return when all have ended."""
    mp.start_processes(_as_rank, args=(world, free_port(), work, arguments), nprocs=world, start_method="spawn")


def _as_rank(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world),
                      LOCAL_RANK=str(rank))  # fmt: skip
    work(rank, *arguments)


def _save_result(rank: int, work: Callable[[Ranks], dict[str, Any]], folder: Path) -> None:
    ranks = Ranks.start(device_type="cpu")
    torch.save(work(ranks), folder / f"{rank}.pt")
    ranks.stop()
