"""A few rows through the program itself: what a shell sees is what the table says."""

import os
import subprocess
import sys

import pytest

from tests.bad_input.conftest import snapshot, words_of
from tests.bad_input.test_refused import CASES, assert_refused

# One that never imports torch, one refused before the images are opened, and one after the networks are there.
IDS = ("app-command-misspelt", "train-output-in-proc", "fid-reference-of-another-size")


@pytest.mark.parametrize("case", [case for case in CASES if case.id in IDS], ids=lambda case: case.id)
def test_refused_by_the_program(case, world, tmp_path):
    before = snapshot(world["root"], tmp_path)
    line = [sys.executable, "-m", "driftkit", *words_of(case.line, world)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), check=False)
    assert_refused(done.returncode, done.stdout, done.stderr, case)
    assert snapshot(world["root"], tmp_path) == before
