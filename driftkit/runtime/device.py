"""Devices, and the number format of networks on them."""

import contextlib
import os
import platform
import re
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

from driftkit.errors import ResourceError, UsageError
from driftkit.runtime.environment import THREADS_VARIABLE, free_cpus, return_freed_memory, threads_are_set, usable_cpus
from driftkit.runtime.terminal import say_once

DEVICE_FILES = Path("/dev")  # where drivers show their devices
Precision = Literal["auto", "float32", "bfloat16"]
WITHOUT_FLOAT64 = ("mps",)  # device types whose hardware has no float64
DEFAULT_THREADS = torch.get_num_threads()
IEEE_FLOAT32 = "float32 (IEEE)"  # how records name the arithmetic of `ieee_float32`


def resolve_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda".

    Raises:
        ResourceError: CUDA was asked for without a CUDA device, or torch cannot use the one of this machine.
        UsageError: an unknown name.
    """
    kind = planned_device(name)
    if kind == "cpu":
        if name == "auto":
            _require_no_idle_gpu()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError("`device` cuda: torch sees no CUDA device here; choose cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise ResourceError(
            f"local rank {local_rank} has no GPU of its own: {torch.cuda.device_count()} visible; "
            "lower torchrun's --nproc-per-node"
        )
    return torch.device("cuda", local_rank)


def planned_device(name: str) -> str:
    """The type of device of a plan: "cpu", or "cuda", which this machine need not have; for "auto" what it has."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"`device` {name}: expected auto, cpu or cuda")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _require_no_idle_gpu() -> None:
    """Refuse to fall back to the CPU where an NVIDIA device exists, is not hidden, and this torch cannot use it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    if hidden or not any(DEVICE_FILES.glob("nvidia[0-9]*")):
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    raise ResourceError(
        f"this machine has an NVIDIA device that torch {torch.__version__} ({built}) cannot use: install a torch build "
        "whose CUDA version the driver supports (nvidia-smi shows it), or choose cpu as `device`"
    )


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; "auto" takes bfloat16 on CUDA devices that compute in it and float32 elsewhere."""
    if precision == "bfloat16":
        return torch.bfloat16
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def training_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`autocast_dtype`, where "auto" takes bfloat16 on CPUs with units for its matrix products, too.

    Measured on such a CPU: twice the images per second, for U-Nets and dense encoders. CPUs that only emulate it would
    be slower, and with "auto" samples stay float32 on all of them.
    """
    if precision == "auto" and device.type == "cpu" and cpu_multiplies_bfloat16():
        return torch.bfloat16
    return autocast_dtype(precision, device)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has units for matrix products of bfloat16 (Intel AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def fastest_layout(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """The layout of weights and activations in which dense convolutional networks train fastest.

    channels_last, but for bfloat16 on CPUs, whose GroupNorm is several times slower in it (torch 2.15).
    """
    return torch.contiguous_format if (device.type, dtype) == ("cpu", torch.bfloat16) else torch.channels_last


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to `dtype`, or nothing at all for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def sampling_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to `dtype`; float32 is that of IEEE, so that samples of all devices agree."""
    return ieee_float32(device) if dtype == torch.float32 else autocast(device, dtype)


@contextlib.contextmanager
def ieee_float32(device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products of float32 in IEEE float32: no TF32, bfloat16 products or autocast.

    cuDNN's convolutions use TF32 by default. Settings of the process are restored at the end.
    """
    backends = (
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul,
        torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    )
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def float64_device(device: torch.device | str) -> torch.device:
    """The device for float64 work on tensors of `device`: the same, or the CPU if its hardware has no float64."""
    place = torch.device(device)
    return torch.device("cpu") if place.type in WITHOUT_FLOAT64 else place


def copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; on CUDA through pinned memory, so that the host does not wait for earlier work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def one_worker(name: str, device: torch.device) -> ThreadPoolExecutor:
    """A pool of one thread; pinned memory that it takes belongs to `device` where that is a GPU."""

    def begin() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread alone; GPU 0 otherwise

    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin)


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_threads(device: torch.device, *, before: str | None = None) -> None:
    """Compute with no more threads than other programs leave processors free, unless the user has set the number.

    Threads wait for each other many times a step, and one that shares its processor holds up all: next to one program
    that never rests, two threads on two processors were thirty times as slow as one.

    Args:
        before: the device of the run that is resumed (`describe_device`). It goes on with as many threads as before,
            where there are so many processors: sums of another number are in another order.
    """
    if device.type != "cpu" or threads_are_set():
        return
    threads, hint = DEFAULT_THREADS, f"the variable {THREADS_VARIABLE} sets the number"
    found = re.search(r"^cpu \(.*\b(\d{1,4}) threads?\)$", before or "")
    number = max(1, int(found[1])) if found else None
    if number is not None and number <= usable_cpus():
        threads = number
        if threads != DEFAULT_THREADS:
            say_once(f"computing with {_threads(threads)}, as before; {hint}")
    else:
        if number is not None:
            say_once(
                f"trained with {_threads(number)} before, which are not here: the numbers are not bit for bit the same"
            )
        free = free_cpus(enough=threads - 0.5)
        if free is not None and free < threads - 0.5:
            threads = max(1, round(free))
            say_once(
                f"other programs are busy: computing with {_threads(threads)} instead of {DEFAULT_THREADS}; {hint}"
            )
    torch.set_num_threads(threads)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def describe_device(device: torch.device) -> str:
    """A readable name, for manifests and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {_threads(torch.get_num_threads())})"


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_gib` count from now, where the system allows it: stages of a pipeline share a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    return_freed_memory()  # of what came before, which would count
    with contextlib.suppress(OSError):  # Linux; elsewhere the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory in GiB since `reset_peak_memory`: of the allocator on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
