"""Signals: the first one ends cleanly or after the step, the second one at once, with the documented exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import first_is_fast

WAIT = """
import signal, sys, time
from driftkit.runtime.signals import {what}
with {what}(){name}:
    print("ready", flush=True)
    while {condition}:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""


def heed_hangups():
    """Whatever started the tests, perhaps nohup, may have ignored them."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(what, name, condition):
    code = WAIT.format(what=what, name=name, condition=condition)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_hangups
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code"), first_is_fast((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129))
)
def test_a_second_signal_ends_at_once_and_copies_of_the_first_do_not(number, code):
    process = start("StopRequest", " as stop", "stop.signal is None")
    process.send_signal(number)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(number)  # what torchrun or timeout pass on
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=10) == code


def test_a_signal_that_is_ignored_from_outside_stays_ignored():
    line = [
        "nohup",
        sys.executable,
        "-c",
        WAIT.format(what="StopRequest", name=" as stop", condition="not stop.signal"),
    ]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), first_is_fast((signal.SIGTERM, 143), (signal.SIGINT, 130)))
def test_any_command_ends_with_one_line_and_leaves_nothing(number, code, tmp_path):
    words = ["data", "shapes?image_size=64&count=200000", "--output", str(tmp_path / "out" / "pack.safetensors")]
    process = subprocess.Popen(
        [sys.executable, "-m", "driftkit", *words], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    time.sleep(4.0)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert f"stopped by {signal.Signals(number).name}" in errors
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []
