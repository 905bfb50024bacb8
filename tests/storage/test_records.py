"""A record comes back as it was written, and everything else is one clear error."""

import json
from typing import ClassVar

import pytest

from driftkit.errors import ArtifactError, NotFoundError
from driftkit.storage.records import Record


class Score(Record):
    kind: ClassVar[str] = "score"
    format_version: ClassVar[int] = 2
    value: float
    names: tuple[str, ...] = ()


def edit(path, **changes):
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(document))


@pytest.fixture
def path(tmp_path):
    Score(value=1.5, names=("a",)).write(tmp_path / "score.json")
    return tmp_path / "score.json"


def test_round_trip(path):
    assert Score.read(path) == Score(value=1.5, names=("a",))


def test_unknown_keys_are_ignored(path):
    edit(path, later=3)
    assert Score.read(path).value == 1.5


@pytest.mark.parametrize(
    ("changes", "shown"),
    [({"kind": "pack"}, "kind score"), ({"format_version": 1}, "format version 1"), ({"value": "x"}, "value: ")],
)
def test_other_records_are_refused(path, changes, shown):
    edit(path, **changes)
    with pytest.raises(ArtifactError, match=shown):
        Score.read(path)


def test_absent(tmp_path):
    with pytest.raises(NotFoundError):
        Score.read(tmp_path / "score.json")
