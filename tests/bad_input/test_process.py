"""A few rows through the program itself: what a shell sees is what the table says."""

import os
import subprocess
import sys

import pytest

from tests.bad_input.conftest import snapshot, words_of
from tests.bad_input.test_refused import CASES, assert_refused

# One that never imports torch, one refused before the images are opened, and one after the networks are there.
IDS = ("app-command-misspelt", "train-output-in-proc", "fid-reference-of-another-size")


def program(words, folder, **options):
    line = [sys.executable, "-m", "driftkit", *words]
    return subprocess.run(line, text=True, cwd=folder, env=dict(os.environ), check=False, **options)


def test_closed_streams_are_no_failure(tmp_path):
    """As whoever starts daemons leaves them."""

    def close():
        os.closerange(0, 3)

    assert program(["data", "shapes?count=8&image_size=8", "--json"], tmp_path, preexec_fn=close).returncode == 0
    assert list(tmp_path.rglob("shapes*.safetensors"))


def test_a_removed_working_folder_is_named(tmp_path):
    (tmp_path / "gone").mkdir()
    line = f"rmdir ../gone; exec {sys.executable} -m driftkit verify {tmp_path}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path / "gone", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the working folder was removed; change to another folder [usage]\n"


@pytest.mark.parametrize("case", [case for case in CASES if case.id in IDS], ids=lambda case: case.id)
def test_refused_by_the_program(case, world, tmp_path):
    before = snapshot(world["root"], tmp_path)
    done = program(words_of(case.line, world), tmp_path, capture_output=True)
    assert_refused(done.returncode, done.stdout, done.stderr, case)
    assert snapshot(world["root"], tmp_path) == before
