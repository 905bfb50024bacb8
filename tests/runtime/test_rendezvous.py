"""A process that waits for others says so, hears the first signal, keeps to its time, and refuses half a launcher."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from driftkit.errors import UsageError
from driftkit.runtime.environment import Launch, read_launch
from tests.conftest import TINY_DATA, driftkit, first_is_fast, free_port

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PROGRAM = """
import sys
from driftkit.cli import app
from driftkit.runtime import rendezvous
from driftkit.runtime.ranks import Ranks
rendezvous.FIRST_REPORT_S = 0.3
@app.app.command("meet")
def meet(timeout_s: float):
    ranks = Ranks.start(device_type="cpu", timeout_s=timeout_s)
    print(ranks.rank, len(ranks.peers), flush=True)
    ranks.stop()
app.main()
"""


def start(rank, port, timeout_s):
    """A process of two."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    line = [sys.executable, "-c", PROGRAM, "meet", str(timeout_s)]
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("rank", "awaited"), first_is_fast((0, "1 of 2 processes at {} (rank 1)"), (1, "rank 0 at {}"))
)
def test_others_that_do_not_come_are_waited_for_as_long_as_is_set(rank, awaited):
    port = free_port()
    out, errors = start(rank, port, 1.0).communicate(timeout=60)
    waiting, gave_up = errors.splitlines()
    line = f"waiting for {awaited.format(f'127.0.0.1:{port}')}"
    assert re.fullmatch(re.escape(line) + r", at most \d s", waiting)
    assert gave_up.startswith(f"error: gave up {line} after 1 s; start all with the")
    assert out == ""


@pytest.mark.parametrize(
    ("rank", "number", "code"),
    first_is_fast((0, signal.SIGTERM, 143), (0, signal.SIGINT, 130), (1, signal.SIGTERM, 143)),
)
def test_the_first_signal_ends_the_wait(rank, number, code):
    process = start(rank, free_port(), 600.0)
    assert process.stderr.readline().startswith("waiting for ")
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - began < 5.0  # of which nearly all is Python's own end
    assert errors == f"stopped by {number.name}; nothing half-written is left; give the same command again\n"


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_a_process_that_comes_late_is_met(late):
    port = free_port()
    early = start(1 - late, port, 60.0)
    assert early.stderr.readline().startswith("waiting for ")
    assert start(late, port, 60.0).communicate(timeout=60)[0] == f"{late} 2\n"
    assert early.communicate(timeout=60)[0] == f"{1 - late} 2\n"


@pytest.mark.slow
def test_a_port_that_another_program_uses_is_named():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        process = start(0, port, 60.0)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert f"error: MASTER_PORT {port} is used by another program here" in errors.splitlines()[-1]


@pytest.fixture
def launcher(monkeypatch):
    """Sets all of a launcher's variables: those that are given, and no others."""

    def set_variables(given):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return set_variables


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
HALF = [
    ({"WORLD_SIZE": "2"}, "RANK is not set, although there is WORLD_SIZE='2'"),
    ({"RANK": "0"}, "WORLD_SIZE is not set, although there is RANK='0'"),
    ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is empty, although there is RANK='0'"),
    ({"RANK": "", "WORLD_SIZE": "2"}, "RANK is empty"),
    ({**WHOLE, "WORLD_SIZE": "two"}, "WORLD_SIZE='two': expected a whole number of at least 1"),
    ({**WHOLE, "WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
    ({**WHOLE, "RANK": "2"}, "RANK='2' with WORLD_SIZE=2: expected a whole number from 0 to 1"),
    ({**WHOLE, "RANK": "-1"}, "RANK='-1'"),
    ({**WHOLE, "MASTER_ADDR": ""}, "MASTER_ADDR is empty"),
    ({**WHOLE, "MASTER_PORT": "99999"}, "MASTER_PORT='99999': expected a whole number from 1 to 65535"),
    ({k: v for k, v in WHOLE.items() if k != "MASTER_ADDR"}, "MASTER_ADDR is not set, although there is RANK='1'"),
    ({**WHOLE, "LOCAL_RANK": "x"}, "LOCAL_RANK='x'"),
]


@pytest.mark.parametrize(("given", "says"), HALF)
def test_a_launcher_that_is_set_in_part_is_refused(given, says, launcher):
    launcher(given)
    with pytest.raises(UsageError, match=re.escape(says)):
        read_launch()


def test_a_launcher_is_read_as_a_whole(launcher):
    launcher({**WHOLE, "LOCAL_RANK": "1"})
    assert read_launch() == Launch(1, 2, 1, "host", 29500)
    launcher({"MASTER_ADDR": "host", "MASTER_PORT": "left over"})
    assert read_launch() == Launch()
    launcher({"RANK": "0", "WORLD_SIZE": "1"})
    assert read_launch() == Launch()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--encoder", "pixel", *TINY_DATA],
        ["train", "--encoder", "pixel", *TINY_DATA, "--dry-run"],
        ["fid", "images", "-r", "shapes?image_size=8&count=64"],
    ],
)
@pytest.mark.parametrize("given", [{"WORLD_SIZE": "2"}, {"RANK": "0"}])
def test_every_command_with_processes_refuses_half_a_launcher(words, given, launcher, tmp_path):
    (tmp_path / "images").mkdir()
    launcher(given)
    result = driftkit(*words)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert " is not set, although there is " in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
