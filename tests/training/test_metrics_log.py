"""Progress in terminals of all sorts, and where there is none."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.conftest import first_is_fast

PROGRAM = """
import time
from driftkit.training.metrics_log import TrainingProgress
with TrainingProgress(total=3000, shown=True) as shown:
    shown.begin(0)
    for step in (1000, 2000, 3000):
        shown.step(step)
        shown.record({"step": step, "images_per_second": 265.1, "loss": 7.93,
                      "health": {"drift_norm": 0.0244, "spread": 0.24, "collapsed": 1.0},
                      "seconds_per_step": {"generator": 0.6, "field": 0.2, "optimizer": 0.2}})
        if step == 2000:
            shown.warn("collapse: [bold]look[/bold]")
        time.sleep(0.15)
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM")}
    return {**kept, "TERM": "xterm-256color", **more}


def on_terminal(columns, **variables):
    """What the program writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, env=environment(**variables))
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so where the other end is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0
    return written.decode()


def shown_lines(written):
    """The lines as they were drawn, without control sequences."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written))


@pytest.mark.slow
@pytest.mark.parametrize("columns", first_is_fast(40, 20, 79))
def test_a_narrow_terminal_keeps_the_count_and_its_width(columns):
    lines = shown_lines(on_terminal(columns))
    drawn = [line for line in lines if "/3000" in line]
    assert any(line.startswith("2000/3000 C") for line in drawn)
    assert any(re.search(r"-?:--|\d:\d\d", line) for line in drawn) == (columns >= 60)  # the time left
    assert all(len(line) <= columns for line in drawn)
    assert "warning: collapse: [bold]look[/bold]" in lines


@pytest.mark.slow
def test_a_wide_terminal_shows_everything():
    written = on_terminal(200)
    assert COLOUR.search(written)
    assert any("generator 60%" in line and "3000/3000" in line for line in shown_lines(written))


@pytest.mark.slow
def test_no_color_is_heard():
    assert not COLOUR.search(on_terminal(120, NO_COLOR="1"))


@pytest.mark.slow
def test_a_dumb_terminal_gets_plain_lines():
    written = on_terminal(80, TERM="dumb").replace("\r\n", "\n")
    assert not CONTROL.search(written)
    assert written.startswith("step 1000/3000  265 images/s  loss 7.93")
    assert "spread 0.24  COLLAPSED" in written


def test_without_a_terminal_there_is_a_line_now_and_then_and_no_control_character():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True, env=environment(), check=True
    )
    assert not CONTROL.search(done.stderr)
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "warning:", "step"]  # the second record came too soon
    assert lines[-1].startswith("step 3000/3000")
