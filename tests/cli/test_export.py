"""`driftkit export` as typed."""

import json

from tests.conftest import driftkit, train_tiny


def test_export_prints_where_it_lies_and_one_json_document(tmp_path):
    train_tiny(tmp_path / "run")
    shown = driftkit("export", "run", "--output", "out")
    assert shown.exit_code == 0, shown.output
    assert "out/generator.safetensors" in shown.stdout
    assert "out/README.md" in shown.stdout
    document = json.loads(driftkit("export", "run", "--output", "out", "--force", "--json").stdout)
    assert document["path"] == "out/generator.safetensors"
    assert document["kind"] == "export"
    again = driftkit("export", "run", "--output", "out")
    assert again.exit_code == 2
    assert len(again.stderr.strip().splitlines()) == 1


def test_unknown_formats_and_foreign_folders_are_one_line(tmp_path):
    train_tiny(tmp_path / "run")
    result = driftkit("export", "run", "--format", "pickle")
    assert (result.exit_code, "safetensors, run, onnx or torchscript" in result.stderr) == (2, True)
    assert driftkit("export", tmp_path).exit_code == 3
