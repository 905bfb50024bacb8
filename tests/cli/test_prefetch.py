"""`driftkit prefetch` as a command: its exit code, and what goes to which stream."""

import json

from tests.conftest import driftkit
from tests.stages.test_prefetch import site  # noqa: F401


def test_json_on_stdout_and_progress_on_stderr(site):  # noqa: F811
    result = driftkit("prefetch", "mocov2", "cifar10", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["ok"]
    assert [(file["name"], file["state"]) for file in document["files"]] == [
        ("mocov2", "fetched"),
        ("cifar10", "fetched"),
    ]
    assert "1 of 2: mocov2 from http" in result.stderr


def test_a_file_that_did_not_come_is_one_line_and_exit_3(site):  # noqa: F811
    del site.files["/moco.pth.tar"]
    result = driftkit("prefetch", "mocov2", "inception")
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("missing mocov2: ") and "by --encoder-weights PATH" in line]
    assert [line for line in lines if line.startswith("fetched inception: inception.pth, ")]
    assert result.stderr.splitlines()[-1].startswith("error: 1 of 2 is missing: mocov2")
