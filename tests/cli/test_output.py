"""Progress of commands that do the same thing several times."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest
from rich.panel import Panel

from driftkit.cli.output import emit, progress_bars, show_line
from driftkit.runtime import progress
from driftkit.runtime.terminal import open_console, replace_unknown_characters


def test_what_is_done_again_is_counted_from_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    with progress_bars() as report:
        for _ in range(2):
            for _ in range(2):
                report("reference", 5, 10)
    assert capsys.readouterr().err.splitlines() == ["reference: 5 of 10 images", "reference: 10 of 10 images"] * 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_replaces_characters_that_stdout_lacks(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    line = [sys.executable, "-m", "driftkit", "train", "--help"]
    done = subprocess.run(line, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "--learning-rate" in text
    assert "+---" in text  # rich's box


def test_names_that_stdout_lacks_are_shown_and_come_back_from_json(monkeypatch):
    written, name = io.BytesIO(), "b\u00e4r\u4e2d"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    replace_unknown_characters()
    show_line(name)
    open_console().print(Panel(name, title=name))
    sys.stdout.flush()
    assert written.getvalue().decode("ascii").count("b?r?") == 3
    written.truncate(written.seek(0))
    emit({"name": name}, as_json=True, show=lambda: None)
    assert json.loads(written.getvalue().decode("ascii")) == {"name": name}


def test_lines_of_progress_say_how_fast_and_how_long(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress._PlainLines()
    lines.report("sample", 1000, 5000)  # made by an earlier command: no part of the rate
    now[0] += 10
    lines.report("sample", 200, 5000)
    assert capsys.readouterr().err == "sample: 1,200 of 5,000 images, 20 images/s, 190 s left\n"


def test_work_that_stands_still_is_not_silent(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress._PlainLines()
    lines.report("sample", 0, 64)
    for _ in range(18):
        now[0] += 1
        lines.break_silence()
    assert capsys.readouterr().err.splitlines() == [f"sample: 0 of 64 images after {n} s" for n in (8, 16)]
    lines.report("sample", 64, 64)
    capsys.readouterr()
    now[0] += 20
    lines.break_silence()
    assert capsys.readouterr().err == ""


def test_silence_is_broken_while_nobody_reports(capsys, monkeypatch):
    broken = threading.Event()
    monkeypatch.setattr(progress._PlainLines, "break_silence", lambda lines: broken.set())
    with progress_bars():
        assert broken.wait(30)
