"""How many processors may be used, and the settings of OpenMP that the program makes before torch loads."""

import os
import subprocess
import sys

import pytest

from driftkit.runtime import environment
from driftkit.runtime.environment import cpu_quota, set_thread_defaults, usable_cpus


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


def test_nothing_loads_torch_before_they_stand():
    code = "import sys, driftkit.cli.app; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
