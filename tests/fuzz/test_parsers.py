"""Readers of files and words of others: whatever they are given, they read it or raise a DriftkitError."""

import errno
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftkit.errors import DriftkitError
from tests.fuzz.edits import nearly
from tests.fuzz.targets import TARGETS

CASES = Path(__file__).parent / "cases"
RUNS = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def made(request, tmp_path):
    return TARGETS[request.param](tmp_path)


def read_or_refuse(target, content):
    try:
        target.read(content)
    except DriftkitError:
        pass
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # which the command line says in a line of its own
            raise


@pytest.mark.parametrize("made", TARGETS, indirect=True)
def test_valid_content_is_read(made):
    for seed in made.seeds:
        read_or_refuse(made, seed)


@pytest.mark.parametrize("made", TARGETS, indirect=True)
@given(data=st.data())
@RUNS
def test_anything_is_read_or_refused(made, data):
    edits = st.tuples(st.sampled_from(made.seeds), st.binary(min_size=1, max_size=24))
    content = data.draw(st.one_of(edits.map(lambda e: nearly(e[0], made.form, e[1])), st.binary(max_size=64)))
    read_or_refuse(made, content)


@pytest.mark.parametrize(
    ("made", "case"),
    [(path.parent.name, path) for path in sorted(CASES.glob("*/*"))],
    indirect=["made"],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_what_was_found_once_is_refused_or_read(made, case):
    read_or_refuse(made, case.read_bytes())
