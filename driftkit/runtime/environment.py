"""What the environment decides: threads and memory, folders of user and caches, and the place of this process among
others.
"""

import contextlib
import ctypes
import getpass
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from driftkit.errors import UsageError

CGROUP = Path("/sys/fs/cgroup")
PROCESSOR_TIMES = Path("/proc/stat")
CACHE_VARIABLE = "DRIFTKIT_CACHE"
TEMPORARY_HOME = "driftkit-home-"  # beginning of the names of home folders that are made for want of another
MALLOC_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # beginnings of what a user sets of the allocator
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3), from malloc.h of glibc
THREADS_VARIABLE = "OMP_NUM_THREADS"
LOOKS, LOOK_S = 4, 0.25  # at busy processors; a look is 25 ticks of the system's clock
_set_here: dict[str, str] = {}  # variables that `set_thread_defaults` has set, and their values
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCH_FIX = "start all processes by torchrun, or unset RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and LOCAL_RANK"


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Processors that this process may use: those of its affinity, or fewer where its control group allows less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroup)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Processors' worth of time that the control group grants, of version 2 or 1; None where it sets no limit."""
    try:
        granted, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            granted = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (granted.isdecimal() and period.isdecimal() and int(granted) and int(period)):
        return None  # "max", or -1
    return int(granted) / int(period)


def machine_memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Bytes of memory in all, and still available, of the machine or within the limit of the control group."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    with contextlib.suppress(OSError, ValueError):  # "max", or no control group of version 2: no limit
        limit = int((cgroup / "memory.max").read_text())
        total = min(total, limit)
        available = min(available, max(0, limit - int((cgroup / "memory.current").read_text())))
    return total, available


def set_thread_defaults() -> None:
    """Let OpenMP's threads sleep while they wait, and be no more than may run; what the user has set stays.

    Threads that spin while they wait take the processors from everybody else, and from one another.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if cpu_quota() is not None and THREADS_VARIABLE not in os.environ:
        os.environ[THREADS_VARIABLE] = _set_here[THREADS_VARIABLE] = str(usable_cpus())


def threads_are_set() -> bool:
    """Whether the user, or a launcher such as torchrun, has set the number of threads."""
    value = os.environ.get(THREADS_VARIABLE)
    return bool(value) and value != _set_here.get(THREADS_VARIABLE)


def free_cpus(enough: float) -> float | None:
    """Processors that other programs leave to this one, at the best of a few moments; None where that is unknown.

    Args:
        enough: so many free processors end the measurement, which takes a quarter of a second, at most one.
    """
    most = 0.0
    for _ in range(LOOKS):
        began, before = time.monotonic(), _busy_seconds()
        if before is None:
            return None
        time.sleep(LOOK_S)
        passed, after = time.monotonic() - began, _busy_seconds()
        if after is None:
            return None
        most = max(most, len(os.sched_getaffinity(0)) - (after - before) / passed)
        if most >= enough:
            break
    return most


def _busy_seconds() -> float | None:
    """Seconds that other programs have run on the processors of this one since the machine started; None: unknown.

    Programs of lower priority (nice) than this one count as none: they give way to it.
    """
    fields = slice(0, 3) if hasattr(os, "nice") and os.nice(0) > 0 else slice(0, 3, 2)  # user, nice, system
    try:
        lines = PROCESSOR_TIMES.read_text().splitlines()
        rows = dict(line.split(maxsplit=1) for line in lines if line.startswith("cpu"))
        ticks = sum(sum(map(int, rows[f"cpu{n}"].split()[fields])) for n in os.sched_getaffinity(0))
    except (OSError, ValueError, KeyError, AttributeError):  # another system
        return None
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])  # of this process and those it has started


def keep_freed_memory() -> None:
    """Let the allocator of glibc keep what is freed for the next tensor, unless the user has set the allocator.

    By default it returns every large block to the system, and each tensor begins with page faults: steps of large
    batches on CPU spend a third of their time in them. Elsewhere than with glibc this does nothing.
    """
    if any(name.startswith(MALLOC_VARIABLES) for name in os.environ):
        return
    if mallopt := _of_glibc("mallopt"):
        mallopt(M_MMAP_MAX, 0)  # no block is a mapping of its own, which would be undone when it is freed
        mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Give what is freed, and kept for the next tensor, back to the system, before memory is measured."""
    if malloc_trim := _of_glibc("malloc_trim"):
        malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def set_user_defaults() -> None:
    """Name a home folder and a user where the system knows none, as for any user number in a container.

    Python, torch and the hub's client look for both, and some fail without. The home folder is in the temporary one and
    this user's own.
    """
    number = os.getuid() if hasattr(os, "getuid") else 0
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"uid{number}"
    try:
        Path.home()
    except RuntimeError:
        with contextlib.suppress(OSError):  # without a place for one, whatever needs a home folder says so
            os.environ["HOME"] = _temporary_home(number)


def _temporary_home(number: int) -> str:
    folder = Path(tempfile.gettempdir()) / f"{TEMPORARY_HOME}{number}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    # Else somebody has laid it there, perhaps with files to be read.
    is_own = folder.is_dir() and folder.lstat().st_uid == number and not folder.is_symlink()
    return str(folder) if is_own else tempfile.mkdtemp(prefix=TEMPORARY_HOME)


def named_home() -> str:
    """The variable HOME; empty where it is unset, or names a temporary home folder of `set_user_defaults`."""
    home = os.environ.get("HOME", "")
    return "" if Path(home).name.startswith(TEMPORARY_HOME) else home


def cache_folder() -> Path:
    """$DRIFTKIT_CACHE, else driftkit/ in $XDG_CACHE_HOME or ~/.cache. Not made here."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driftkit"


@dataclass(frozen=True)
class Launch:
    """What a launcher such as torchrun says of this process by environment variables; alone without it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the processes of this machine
    address: str = ""  # where the processes meet
    port: int = 0


def read_launch() -> Launch:
    """The place of this process among those that were started together.

    Raises:
        UsageError: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set in part, or one does not fit.
    """
    local_rank = _variable("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else 0
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return Launch(local_rank=local_rank)
    world_size = _variable("WORLD_SIZE", 1)
    rank = _variable("RANK", 0, world_size - 1)
    if world_size == 1:
        return Launch(local_rank=local_rank)
    return Launch(rank, world_size, local_rank, _text("MASTER_ADDR"), _variable("MASTER_PORT", 1, 65535))


def _variable(name: str, least: int, most: int | None = None) -> int:
    """A number in a variable of the launcher."""
    text = _text(name)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if number < least or (most is not None and number > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        known = f" with WORLD_SIZE={os.environ['WORLD_SIZE']}" if name == "RANK" else ""
        raise UsageError(f"{name}={text!r:.40}{known}: expected a whole number {limits}; {LAUNCH_FIX}")
    return number


def _text(name: str) -> str:
    if not (text := os.environ.get(name, "").strip()):
        state = "empty" if name in os.environ else "not set"
        others = ", ".join(f"{key}={os.environ[key]!r:.40}" for key in LAUNCH_VARIABLES if os.environ.get(key))
        raise UsageError(f"{name} is {state}{f', although there is {others}' if others else ''}; {LAUNCH_FIX}")
    return text
