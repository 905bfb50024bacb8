"""What the environment decides: threads, which OpenMP reads about when torch loads, and folders of user and caches."""

import getpass
import math
import os
import tempfile
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CACHE_VARIABLE = "DRIFTKIT_CACHE"


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


def set_thread_defaults() -> None:
    """Let OpenMP's threads sleep while they wait, and be no more than may run; what the user has set stays.

    Threads that spin while they wait take the processors from everybody else, and from one another next to a busy
    program: a training on two threads falls to a tenth of its speed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if cpu_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cpus()))


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
        folder = Path(tempfile.gettempdir()) / f"driftkit-home-{number}"
        folder.mkdir(mode=0o700, exist_ok=True)
        is_own = folder.lstat().st_uid == number  # else somebody has laid it there, perhaps with files to be read
        os.environ["HOME"] = str(folder) if is_own else tempfile.mkdtemp(prefix="driftkit-home-")


def cache_folder() -> Path:
    """$DRIFTKIT_CACHE, else driftkit/ in $XDG_CACHE_HOME or ~/.cache. Not made here."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driftkit"
