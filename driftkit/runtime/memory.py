"""Running out of memory: how it shows, where it happened, what was free, and which batch would have fitted."""

import contextlib
import gc
import re
import resource
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from driftkit.errors import ResourceError
from driftkit.runtime.environment import machine_memory, return_freed_memory

# Folder of the package in which the innermost call of a traceback lies -> the phase.
PHASES = {
    "encoders": "the encoder",
    "models": "the network",
    "scoring": "the evaluator",
    "metrics": "the metrics",
    "datasets": "reading images",
}
# Of torch's allocator, the system, C++, oneDNN, which says no more than that, and a thread without room for its stack.
_WORDS = (
    "can't allocate memory", "cannot allocate memory", "std::bad_alloc", "could not create a primitive",
    "resource temporarily unavailable", "can't start new thread",
)  # fmt: skip
_ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's, torch's or a CPU allocator's way to say that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _WORDS)


def phase_of(error: BaseException) -> str:
    """What was being done when an error was raised, in words, from its traceback."""
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    for path in reversed(frames):
        if path.parts[-3:-1] == ("torch", "optim"):
            return "the optimizer"
        if path.parts[-3:-1] == ("torch", "autograd"):
            return "the backward pass"
        if path.parts[-4:-2] == ("driftkit", "methods"):
            return f"the {path.stem} of {path.parts[-2]}"
        if path.parts[-3:-2] == ("driftkit",) and path.parts[-2] in PHASES:
            return PHASES[path.parts[-2]]
    return "the step"


def asked_bytes(error: BaseException) -> int | None:
    """The size of the allocation that failed; None where the message does not tell."""
    found = _ASKED.search(str(error))
    return int(float(found[1]) * _UNITS[found[2].lower()]) if found else None


def room(device: torch.device) -> int:
    """Bytes that this process may still take: on a GPU, or on the machine within its limits (ulimit -v, cgroup)."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return_freed_memory()
    left = [machine_memory()[1]]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        left.append(limit - psutil.Process().memory_info().vms)
    return max(0, int(min(left)))


def release(error: BaseException, device: torch.device) -> None:
    """Let go of what the failed work held, so that there is memory to explain it."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def gib(count: float) -> str:
    """Bytes in words: "1.5 GiB", or MiB below one."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"


def describe_shortage(error: BaseException, device: torch.device) -> str:
    """The beginning of an explanation: where it happened, what was asked for, and what is free."""
    asked = asked_bytes(error)
    size = f" ({gib(asked)} at once)" if asked else ""
    return f"out of memory in {phase_of(error)}{size}, with {gib(room(device))} left on {device.type}"


@contextlib.contextmanager
def fitting_batch(
    what: str, batch_size: int, attempt: Callable[[int], object], *, device: torch.device
) -> Iterator[None]:
    """Explain that memory ran out in work that takes images some at a time, with a number that fits.

    Args:
        what: the work, for the message.
        attempt: does it for that many images; called with halves of `batch_size` until it succeeds.

    Raises:
        ResourceError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = describe_shortage(error, device)
        release(error, device)
        fits = largest_fitting(attempt, batch_size // 2, device)
        fits = min(fits, max(1, fits // 2))  # the next attempt may find memory in smaller pieces
        advice = f"`batch_size` {fits} fits" if fits else "not even one image fits; free memory, or use another device"
        raise ResourceError(f"{shortage}: {what} takes {batch_size} images at a time; {advice}") from None


def largest_fitting(attempt: Callable[[int], object], most: int, device: torch.device) -> int:
    """The first of most, most / 2, ... for which `attempt` does not run out of memory; 0 where none does."""
    count = most
    while count >= 1:
        try:
            attempt(count)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release(error, device)
        else:
            return count
        count //= 2
    return 0
