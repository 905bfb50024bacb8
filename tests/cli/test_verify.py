"""`driftkit verify` tells people and programs the same, with an exit code."""

import json
import os
from pathlib import Path

import pytest

from driftkit.storage.files import write_json
from tests.conftest import driftkit, train_tiny


@pytest.fixture
def run(tmp_path):
    train_tiny(tmp_path / "run", "ddpm", "--sample-every", 0, steps=1)
    return Path("run")


def test_what_is_as_written_is_said_to_be_with_code_0(run):
    result = driftkit("verify", run, "data")
    assert result.exit_code == 0, result.output
    assert "as written: checkpoint (1)" in " ".join(result.stdout.split())
    assert result.stderr == ""


def test_a_problem_is_a_line_with_its_fix_and_code_3(run):
    os.truncate(run / "checkpoints" / "step-00000001" / "raw.safetensors", 100)
    write_json(run / "evaluations" / "a.json", {"kind": "run", "format_version": 99})
    result = driftkit("verify", run)
    assert result.exit_code == 3
    assert result.stderr == "error: 2 problems in what was read; each is named with its fix [artifact]\n"
    flat = " ".join(result.stdout.split())
    assert f"damaged {run}/checkpoints/step-00000001/raw.safetensors:" in flat
    assert f"future {run}/evaluations/a.json:" in flat
    assert flat.count("fix: ") == 2


def test_json_is_one_document(run):
    (run / ".manifest.elsewhere-7-abcdef.partial.json").write_text("{")
    good = json.loads(driftkit("verify", run, "--json").stdout)
    assert good["ok"] is True
    assert good["problems"] == []
    assert [n["kind"] for n in good["notes"]] == ["leftover"]
    assert good["bytes"] > 10_000
    os.unlink(run / "metrics.jsonl")
    result = driftkit("verify", run, "absent", "--json")
    assert result.exit_code == 3
    problems = json.loads(result.stdout)["problems"]
    assert [(p["path"], p["kind"]) for p in problems] == [("run/metrics.jsonl", "missing"), ("absent", "missing")]
    assert all(p["fix"] for p in problems)


def test_names_with_markup_are_shown_as_they_are(run):
    run.rename("[red]run")
    os.unlink(Path("[red]run") / "metrics.jsonl")
    assert "[red]run/metrics.jsonl" in driftkit("verify", "[red]run").stdout
