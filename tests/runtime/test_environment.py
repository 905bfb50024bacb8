"""How many processors may be used, and the settings of OpenMP that the program makes before torch loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from driftkit.runtime import environment
from driftkit.runtime.environment import cpu_quota, set_thread_defaults, set_user_defaults, usable_cpus


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
