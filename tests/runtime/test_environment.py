"""How many processors may be used, and the settings of OpenMP that the program makes before torch loads."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from driftkit.runtime import environment
from driftkit.runtime.environment import (
    cpu_quota,
    free_cpus,
    keep_freed_memory,
    machine_memory,
    set_thread_defaults,
    set_user_defaults,
    threads_are_set,
    usable_cpus,
)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_both_versions_of_control_groups(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota
    allowed = len(os.sched_getaffinity(0))
    assert usable_cpus(tmp_path) == (allowed if quota is None else max(1, min(allowed, 2 if quota > 1 else 1)))


def test_memory_is_that_of_the_control_group_where_it_allows_less(tmp_path):
    total, available = machine_memory(tmp_path)
    assert 0 < available <= total
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    assert machine_memory(tmp_path) == (5000, 2000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory(tmp_path)[0] == total


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setattr(environment, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(environment, "usable_cpus", lambda: 2)
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # so that what is set below is undone, too
    set_thread_defaults()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"]) == ("passive", "2")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    set_thread_defaults()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"]) == ("active", "7")


@pytest.fixture
def two_processors(tmp_path, monkeypatch):
    """The file of the times of three processors, of which this process may use the first and the last."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    monkeypatch.setattr(os, "times", lambda: (0.5, 0.25, 0.5, 0.25, 1000.0))
    monkeypatch.setattr(environment, "PROCESSOR_TIMES", tmp_path / "stat")
    return tmp_path / "stat"


def test_busy_seconds_are_of_other_programs_on_the_processors_of_this_one(two_processors, monkeypatch):
    two_processors.write_text(
        "cpu  900 900 900 900 0 0 0 0 0 0\ncpu0 200 70 100 9 5 0 0 0 0 0\n"
        "cpu1 800 0 0 0 0 0 0 0 0 0\ncpu2 50 30 50 9 5 0 0 0 0 0\nintr 1 2 3\n"
    )
    ticks = os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(os, "nice", lambda by: 0)
    assert environment._busy_seconds() == pytest.approx((200 + 100 + 50 + 50) / ticks - 1.5)
    monkeypatch.setattr(os, "nice", lambda by: 5)  # of lower priority itself, so that those are no longer below it
    assert environment._busy_seconds() == pytest.approx((200 + 100 + 50 + 50 + 70 + 30) / ticks - 1.5)
    two_processors.write_text("cpu0 200 70 nonsense\n")
    assert free_cpus(2) is None
    two_processors.unlink()
    assert free_cpus(2) is None


@pytest.mark.parametrize(
    ("busy", "free", "looks"),
    [([0.0], 2.0, 1), ([1.0, 0.25], 1.75, 2), ([1.0, 1.0, 1.0, 1.0], 1.0, 4), ([1.5, 2.0, 1.25, 1.75], 0.75, 4)],
)
def test_processors_are_free_if_they_are_so_at_one_of_a_few_moments(two_processors, monkeypatch, busy, free, looks):
    clock, used, slept = [50.0], [100.0], []

    def sleep(seconds):
        used[0] += busy[len(slept)] * seconds
        clock[0] += seconds
        slept.append(seconds)

    monkeypatch.setattr(environment, "_busy_seconds", lambda: used[0])
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    assert free_cpus(enough=1.5) == pytest.approx(free)
    assert len(slept) == looks


def test_a_number_of_threads_that_the_quota_gave_is_not_of_the_user(monkeypatch):
    monkeypatch.setattr(environment, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(environment, "usable_cpus", lambda: 2)
    monkeypatch.setattr(environment, "_set_here", {})
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_are_set()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert not threads_are_set()
    set_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert not threads_are_set()


@pytest.mark.parametrize(("variable", "called"), [(None, True), ("MALLOC_ARENA_MAX", False), ("GLIBC_TUNABLES", False)])
def test_freed_memory_is_kept_unless_the_user_has_set_the_allocator(monkeypatch, variable, called):
    for name in [name for name in os.environ if name.startswith(environment.MALLOC_VARIABLES)]:
        monkeypatch.delenv(name)
    if variable is not None:
        monkeypatch.setenv(variable, "2")
    calls = []

    class Libc:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

    monkeypatch.setattr(environment.sys, "platform", "linux")
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: Libc())
    keep_freed_memory()
    assert calls == ([(-4, 0), (-1, -1)] if called else [])


FRESH_BLOCKS = """
import resource, torch
from driftkit.runtime.environment import keep_freed_memory
if {kept}:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the allocator of glibc")
def test_a_tensor_in_kept_memory_costs_no_page_faults():
    plain = {key: value for key, value in os.environ.items() if not key.startswith(environment.MALLOC_VARIABLES)}
    faults = {}
    for kept in (True, False):
        command = [sys.executable, "-c", FRESH_BLOCKS.format(kept=kept)]
        faults[kept] = int(subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout)
    assert faults[True] < faults[False] / 10


UNKNOWN_USER = """
import getpass, os, pathlib, pwd
pwd.getpwuid = lambda number: {}[number]
from driftkit.cli import app
app.app = lambda: print(pathlib.Path.home(), pathlib.Path("~/.cache").expanduser(), getpass.getuser())
app.main()
"""
USER_VARIABLES = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")


def test_every_command_of_a_user_without_name_and_home_has_both(tmp_path):
    known = {key: value for key, value in os.environ.items() if key not in USER_VARIABLES}
    line, home = [sys.executable, "-c", UNKNOWN_USER], tmp_path / f"driftkit-home-{os.getuid()}"
    for _ in range(2):  # the same folder again, with what is kept in it
        done = subprocess.run(line, capture_output=True, text=True, env={**known, "TMPDIR": str(tmp_path)}, check=True)
        assert done.stdout.split() == [str(home), f"{home}/.cache", f"uid{os.getuid()}"]
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_home_that_somebody_else_laid_there_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    for name in USER_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # of whom no file here is
    set_user_defaults()
    assert os.environ["USER"] == "uid54321"
    home = Path(os.environ["HOME"])
    assert home.parent == tmp_path
    assert home.name != "driftkit-home-54321"


def test_nothing_loads_torch_before_they_stand():
    code = "import sys, driftkit.cli.app; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
