"""Files and folders that may not be read or written are named, and nothing is half-done."""

import os

import pytest

from tests.bad_input.case import Case
from tests.bad_input.cases_train import TINY
from tests.bad_input.conftest import words_of
from tests.bad_input.given import Given, all_of, folder_named, image, images, text
from tests.bad_input.test_refused import assert_refused
from tests.conftest import driftkit


def closed(name: str, mode: int) -> Given:
    """Take permissions from a file or folder."""
    return lambda folder: (folder / name).chmod(mode)


CASES = [
    Case("unreadable-folder", "data photos", 3, ["photos"], all_of(images(), closed("photos", 0))),
    Case("unreadable-image", "data photos", 3, ["a.png"], all_of(image("photos/a.png"), closed("photos/a.png", 0))),
    Case(
        "unreadable-config", f"{TINY} --config c.toml", 2, ["c.toml"], all_of(text("", "c.toml"), closed("c.toml", 0))
    ),
    Case("unwritable-run", f"{TINY} -o shut/run", 4, ["shut"], all_of(folder_named("shut"), closed("shut", 0o500))),
    Case(
        "unwritable-evaluation",
        "fid {samples} -r {pack} --extractor encoder:{mae} --device cpu -o shut/e.json",
        4,
        ["shut/e.json", "not permitted"],
        all_of(folder_named("shut"), closed("shut", 0o500)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_refused_for_lack_of_permission(case, world, tmp_path):
    (tmp_path / "closed").touch(0)
    if os.access(tmp_path / "closed", os.R_OK):
        pytest.skip("this user (root) may read and write everything")
    case.given(tmp_path)
    there = sorted(os.listdir(tmp_path))
    closed_paths = {path: path.stat().st_mode for path in tmp_path.rglob("*")}
    try:
        done = driftkit(*words_of(case.line, world))
    finally:
        kept = {path: path.stat().st_mode for path in closed_paths}
        for path in closed_paths:
            path.chmod(0o700)
    assert kept == closed_paths
    assert_refused(done.exit_code, done.stdout, done.stderr, case)
    assert sorted(os.listdir(tmp_path)) == there
