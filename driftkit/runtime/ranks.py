"""The process group. World size 1 takes the same path as world size 64: every collective is then the identity."""

import collections
import contextlib
import datetime
import functools
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist

from driftkit.errors import DriftkitError, LostRankError, RefusedError
from driftkit.runtime.environment import read_launch
from driftkit.runtime.rendezvous import meet
from driftkit.runtime.signals import StoppedError, StopRequest

Result = TypeVar("Result")
NAME_BYTES = 96
DEATH_S = 2.0  # until the system has noticed that a process is gone whose connections have just closed
DEFAULT_TIMEOUT_S = 7200.0  # longer than the slowest download that is let go on, for which the other ranks wait


def local_rank() -> int:
    """Number of this process among those of its machine, from torchrun's variable; 0 without it."""
    return read_launch().local_rank


@dataclass
class Traffic:
    """Features that this process received from others; gradients and reductions are not counted."""

    gathers: int = 0
    gathered_bytes: int = 0


@dataclass(frozen=True)
class Peer:
    """A process of the group."""

    host: str
    pid: int

    def is_gone(self) -> bool:
        """Whether it runs no longer; False where that is unknown, as on another machine."""
        if self.host != socket.gethostname():
            return False
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


class Gathering:
    """Tensors of all ranks on their way, from `Ranks.start_gather`."""

    def __init__(
        self, parts: Sequence[torch.Tensor], everything: torch.Tensor | None = None, work: dist.Work | None = None
    ):
        self._parts, self._everything, self._work = list(parts), everything, work

    def wait(self) -> list[torch.Tensor]:
        """The tensors, [G, W * n_i, *], in rank order; the same ones when asked again."""
        if self._work is not None:
            self._work.wait()
        if self._everything is not None:
            pieces = self._everything.split([part.numel() for part in self._parts], dim=1)
            self._parts = [
                piece.unflatten(1, part.shape).transpose(0, 1).flatten(1, 2)
                for piece, part in zip(pieces, self._parts, strict=True)
            ]
        self._everything = self._work = None  # else the buffer would take as much memory again
        return list(self._parts)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers. Made by `Ranks.start()`; plain `Ranks()` is a world of one."""

    rank: int = 0
    world_size: int = 1
    traffic: Traffic = field(default_factory=Traffic, compare=False)
    peers: tuple[Peer, ...] = ()  # by rank
    # Small reductions on a GPU would wait behind a large gathering that was started first, were it in their queue.
    gathering: dist.ProcessGroup | None = field(default=None, compare=False)

    @classmethod
    def start(cls, *, device_type: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> "Ranks":
        """Join the group that torchrun's variables describe, or be a world of one without them.

        Raises:
            UsageError: the variables do not fit.
            LostRankError: other processes did not come within `timeout_s`.
        """
        launch = read_launch()
        if launch.world_size == 1:
            return cls()
        if not dist.is_initialized():
            backend, device = "gloo", None
            if device_type == "cuda":
                # Features, flags and scores of hosts travel as CPU tensors, which NCCL does not know.
                backend, device = "cpu:gloo,cuda:nccl", torch.device("cuda", local_rank())
                torch.cuda.set_device(device)  # else every rank's first collective would start on GPU 0
            dist.init_process_group(
                backend, timeout=datetime.timedelta(seconds=timeout_s), device_id=device,
                store=meet(launch, timeout_s=timeout_s), rank=launch.rank, world_size=launch.world_size,
            )  # fmt: skip
        group = dist.new_group(timeout=datetime.timedelta(seconds=timeout_s)) if device_type == "cuda" else None
        assert not isinstance(group, int)  # which would mean that this rank is not in it
        ranks = cls(dist.get_rank(), dist.get_world_size(), gathering=group)
        return replace(ranks, peers=ranks._meet(device_type))

    def _meet(self, device_type: str) -> tuple[Peer, ...]:
        """Exchange host and process number as bytes of one size."""
        own = f"{os.getpid()} {socket.gethostname()}".encode()[:NAME_BYTES].ljust(NAME_BYTES, b" ")
        name = torch.tensor(list(own), dtype=torch.uint8, device=device_type)
        gathered = name.new_empty(self.world_size * NAME_BYTES)
        dist.all_gather_into_tensor(gathered, name)
        names = [bytes(row).decode(errors="replace").split() for row in gathered.cpu().view(-1, NAME_BYTES).tolist()]
        return tuple(Peer(host, int(pid)) for pid, host in names)

    @contextlib.contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Name the rank that has died, in a LostRankError, where that is why the others cannot continue."""
        try:
            yield
        except (RuntimeError, StoppedError) as stopped:  # gloo raises it as it is, NCCL a kind of it
            # torchrun, which sees the death as well, may end this rank while it leaves the collective that failed
            error = stopped.__context__ if isinstance(stopped, StoppedError) else stopped
            if not isinstance(error, RuntimeError):
                raise
            with StopRequest():
                lost = self._lost()
            if lost:
                named = ", ".join(f"rank {rank} (process {self.peers[rank].pid})" for rank in lost)
                raise LostRankError(f"{named} has died, and rank {self.rank} cannot continue without it") from error
            if self.world_size > 1 and _is_from_collective(error):
                first = str(error).strip().splitlines()[0][:160]
                raise LostRankError(
                    f"rank {self.rank} has lost the others, most likely one on another machine: {first}"
                ) from error
            raise

    def _lost(self) -> list[int]:
        deadline = time.monotonic() + DEATH_S
        while self.world_size > 1:
            gone = [rank for rank, peer in enumerate(self.peers) if rank != self.rank and peer.is_gone()]
            if gone or time.monotonic() > deadline:
                return gone
            time.sleep(0.1)
        return []

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

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the body on rank 0 first, then on one rank of every other machine, then on all others.

        The later ones find what the first ones put into a cache, shared by all machines or each machine's own. A rank
        that fails lets the others run.
        """
        turn = 0 if self.is_main else 1 if local_rank() == 0 else 2
        for _ in range(turn):
            self.barrier()
        try:
            yield
        finally:
            for _ in range(2 - turn):
                self.barrier()

    def require_equal(self, values: Mapping[str, str]) -> None:
        """Refuse to continue where ranks hold different values; all of them call it with the same names.

        Raises:
            DriftkitError: on every rank alike; it names the ranks that differ from most others.
        """
        if self.world_size == 1:
            return
        digests = b"".join(hashlib.sha256(value.encode()).digest() for value in values.values())
        own = torch.tensor(list(digests), dtype=torch.uint8)
        gathered = own.new_empty(self.world_size * len(own))
        dist.all_gather_into_tensor(gathered, own)
        for name, rows in zip(values, gathered.view(self.world_size, len(values), -1).unbind(1), strict=True):
            held = [bytes(row) for row in rows.tolist()]
            common = collections.Counter(held).most_common(1)[0][0]
            if others := [str(rank) for rank, digest in enumerate(held) if digest != common]:
                error = DriftkitError(
                    f"{name} of rank {', '.join(others)} is not that of the other ranks; give all machines the same "
                    "versions and files, then start again"
                )
                error.on_all_ranks = True
                raise error

    def start_gather(self, parts: Sequence[torch.Tensor], *, compare: bool = True) -> "Gathering":
        """Begin to gather tensors [G, n_i, *] of all ranks along their second dimension, without gradient.

        All of them are sent as one buffer in the widest of their types, while the caller does other work.

        Args:
            compare: make sure first that the ranks agree on shapes and types, for which all wait for one another and
                for their devices. Without it, tensors that differ hang or arrive as garbage.

        Raises:
            DriftkitError: on every rank alike, where the ranks hold tensors of different shapes or types.
        """
        parts = [part.detach() for part in parts]
        if self.world_size == 1:
            return Gathering(parts)
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
        if compare:
            self._require_equal_shapes(parts, dtype)
        local = torch.cat([part.to(dtype).reshape(-1) for part in parts])
        everything = local.new_empty(self.world_size * len(local))
        work = dist.all_gather_into_tensor(everything, local, group=self.gathering, async_op=True)
        self.traffic.gathered_bytes += everything.nbytes - local.nbytes
        self.traffic.gathers += 1
        return Gathering(parts, everything.view(self.world_size, -1), work)

    def _require_equal_shapes(self, parts: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        """Compare by a message of one size, whatever the parts: unequal messages would hang or arrive as garbage."""
        own = f"{str(dtype).removeprefix('torch.')} {' and '.join(str(list(part.shape)) for part in parts)}"
        digest = int.from_bytes(hashlib.sha256(own.encode()).digest()[:8], "big", signed=True)
        message = torch.tensor([parts[0].shape[1], digest], device=parts[0].device)
        gathered = message.new_empty(2 * self.world_size)
        dist.all_gather_into_tensor(gathered, message)
        rows, digests = gathered.view(-1, 2).T.tolist()
        if len(set(rows)) > 1:
            raise DriftkitError(
                f"ranks hold different batch sizes {rows}; give every rank the same `trainer.batch_size`"
            )
        if len(set(digests)) > 1:
            raise DriftkitError(f"ranks hold features of different shapes or types; rank {self.rank} has {own}")

    def _reduce(self, value: torch.Tensor, op: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value, op=op)
        return value

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return self._reduce(value, dist.ReduceOp.SUM)

    def max(self, value: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return self.sum(value) / self.world_size


def together(work: Callable[[], Result], ranks: Ranks) -> Result:
    """Do something on every rank that needs no other rank; where one fails, all stop instead of waiting for it.

    Raises:
        Exception: what `work` raised here.
        RefusedError, DriftkitError: it was refused, or failed, elsewhere.
    """
    problem: Exception | None = None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others have to know before it is raised
        problem = error
    severity = 0 if problem is None else 1 if isinstance(problem, RefusedError) else 2
    worst = int(ranks.max(torch.tensor([severity])))
    if problem is not None:
        raise problem
    if worst:  # the same kind everywhere, so that all ranks go on alike where a refusal does not end the command
        kind = RefusedError if worst == 1 else DriftkitError
        raise kind("another process of this command failed; its message says why")
    return result


def _is_from_collective(error: RuntimeError) -> bool:
    kinds = (dist.DistError, dist.DistBackendError, dist.DistNetworkError)
    return isinstance(error, kinds) or "gloo" in str(error).lower() or "Connection" in str(error)
