"""Progress on stderr, and results on a stdout that lacks characters."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.panel import Panel

from driftkit.cli.output import emit, progress_bars, show_line
from driftkit.runtime import progress
from driftkit.runtime.terminal import open_console, replace_unknown_characters


def test_what_is_done_again_is_counted_from_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "TICK_S", 1000.0)
    with progress_bars() as report:
        for _ in range(2):
            for _ in range(2):
                report("reference", 5, 10)
    counts = [line.split(" images")[0] for line in capsys.readouterr().err.splitlines()]
    assert counts == ["reference: 5 of 10", "reference: 10 of 10"] * 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_replaces_characters_that_stdout_lacks(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    line = [sys.executable, "-m", "driftkit", "train", "--help"]
    done = subprocess.run(line, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "--learning-rate" in text


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
