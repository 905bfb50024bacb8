"""What is wrong is refused in one line with the documented exit code, and nothing is left behind or changed."""

import pytest

from tests.bad_input.case import Case
from tests.bad_input.cases_data import DATA
from tests.bad_input.cases_others import APP, PROBE, RUN, TOY, VERIFY
from tests.bad_input.cases_results import COMPARE, EXPORT, FID_CASES, SAMPLE
from tests.bad_input.cases_train import TRAIN
from tests.bad_input.conftest import snapshot, words_of
from tests.conftest import driftkit

CASES: list[Case] = [*APP, *DATA, *PROBE, *TOY, *TRAIN, *SAMPLE, *FID_CASES, *COMPARE, *EXPORT, *RUN, *VERIFY]


def one_per_kind(cases):
    """The cases, of which all but the first of a kind (command and option, as the id begins) are slow."""
    kinds = set()
    for case in cases:
        kind = tuple(case.id.split("-")[:2])
        yield pytest.param(case, marks=pytest.mark.slow if kind in kinds else ())
        kinds.add(kind)


def test_ids_are_unique():
    ids = [case.id for case in CASES]
    assert sorted(set(ids)) == sorted(ids)


@pytest.mark.parametrize("case", [*one_per_kind(CASES)], ids=lambda case: case.id)
def test_refused(case, world, tmp_path, monkeypatch):
    for name, value in case.environment:
        monkeypatch.setenv(name, value)
    case.given(tmp_path)
    before = snapshot(world["root"], tmp_path)
    done = driftkit(*words_of(case.line, world))
    assert_refused(done.exit_code, done.stdout, done.stderr, case)
    assert snapshot(world["root"], tmp_path) == before


def assert_refused(exit_code: int, stdout: str, stderr: str, case: Case):
    """The exit code, and one line on stderr that says the words."""
    shown = f"\n{case.line}\nexit code {exit_code}\n{stderr}"
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, shown
    assert exit_code == case.code, shown
    assert "Traceback" not in stderr, shown
    assert "(a bug" not in stderr, shown
    assert stdout == "", shown + stdout
    missing = [words for words in case.says if words not in errors[0]]
    assert not missing, f"{missing} not in:{shown}"
