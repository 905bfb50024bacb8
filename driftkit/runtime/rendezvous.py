"""How the processes of a run find one another: they come to a store at MASTER_ADDR:MASTER_PORT, and wait for all.

torch waits in native code, where no signal is heard and nothing is said. Here the wait is in Python, in short slices.
"""

import datetime
import os
import socket
import time
from collections.abc import Callable

import torch.distributed as dist

from driftkit.errors import LostRankError, ResourceError
from driftkit.runtime.environment import Launch
from driftkit.runtime.progress import duration
from driftkit.runtime.terminal import say

FIRST_REPORT_S, REPORT_EVERY_S = 5.0, 30.0
SLICE_S = 0.1
NAMED = 8  # ranks that a report names
CONNECTION_S = 5.0  # of one attempt, in which signals have to wait


def meet(launch: Launch, *, timeout_s: float) -> dist.Store:
    """The store of all processes of this attempt, once all of them have come to it.

    Raises:
        LostRankError: some did not come in time, or rank 0 left while others were awaited.
        ResourceError: another program uses the port.
    """
    deadline = time.monotonic() + timeout_s
    place = f"{launch.address}:{launch.port}"
    # torchrun serves a store itself, and says so; else that is for rank 0 to do.
    serves = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves:
        _wait(lambda: _answers(launch), lambda: f"waiting for rank 0 at {place}", deadline, timeout_s)
    try:
        store = _of_this_attempt(_connect(launch, serves=serves, timeout_s=timeout_s), launch)
        keys = [f"driftkit/rank {rank} is here" for rank in range(launch.world_size)]
        store.set(keys[launch.rank], "")

        def report() -> str | None:
            absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
            if set(range(launch.rank)) - set(absent):
                return None  # one process speaks for all: the first of those that are here
            numbers = ", ".join(map(str, absent[:NAMED])) + (", ..." if len(absent) > NAMED else "")
            return f"waiting for {len(absent)} of {launch.world_size} processes at {place} (rank {numbers})"

        _wait(lambda: store.check(keys), report, deadline, timeout_s)
    except dist.DistNetworkError as error:
        raise LostRankError(f"rank {launch.rank} has lost rank 0 at {place} while it waited for the others") from error
    return store


def _wait(is_done: Callable[[], bool], report: Callable[[], str | None], deadline: float, timeout_s: float) -> None:
    """Look again and again whether something is done; a report of None is for others to say."""
    next_report = time.monotonic() + FIRST_REPORT_S
    while not is_done():
        now = time.monotonic()
        if now > deadline:
            raise LostRankError(
                f"gave up {report() or 'waiting for other processes'} after {timeout_s:g} s; start all with "
                "the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE"
            )
        if now > next_report:
            next_report = now + REPORT_EVERY_S
            if line := report():
                say(f"{line}, at most {duration(deadline - now)}")
        time.sleep(SLICE_S)


def _answers(launch: Launch) -> bool:
    """Whether something listens there; torch would complain of every attempt."""
    try:
        socket.create_connection((launch.address, launch.port), timeout=1.0).close()
    except OSError:  # a name that is not known yet included
        return False
    return True


def _connect(launch: Launch, *, serves: bool, timeout_s: float) -> dist.TCPStore:
    try:
        store = dist.TCPStore(
            launch.address, launch.port, launch.world_size, serves,
            timeout=datetime.timedelta(seconds=min(CONNECTION_S, timeout_s)), wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise ResourceError(
                f"MASTER_PORT {launch.port} is used by another program here; give all processes another one"
            ) from None
        raise
    store.set_timeout(datetime.timedelta(seconds=timeout_s))
    return store


def _of_this_attempt(store: dist.Store, launch: Launch) -> dist.Store:
    """The part of the store in which the ranks of this attempt find one another.

    On one machine torchrun gives restarted ranks the same store, with the addresses of the dead in it. On several
    machines it makes a new one, and its counts of restarts differ between them.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    alone = os.environ.get("LOCAL_WORLD_SIZE") == str(launch.world_size)
    return dist.PrefixStore(f"attempt {attempt}", store) if alone else store
