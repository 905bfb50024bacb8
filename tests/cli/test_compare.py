"""`driftkit compare` as typed: its table, its document, its errors."""

import json

import pytest
from typer.testing import CliRunner

from driftkit.cli.app import app
from driftkit.storage.files import write_json
from tests.scoring.fakes import KIN, add_samples, evaluation, make_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, objective, fid in (("drift_with_quite_a_long_name_indeed", "drift", 9.0), ("ddpm", "ddpm", 7.5)):
        run = make_run(tmp_path / name, objective)
        write_json(
            run.path / "evaluations" / "a.json", evaluation(fid, **({"kinship": KIN} if objective == "drift" else {}))
        )
        add_samples(run)
    (tmp_path / "notes").mkdir()
    return sorted(p.name for p in tmp_path.iterdir())


def invoke(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words), "--device", "cpu"])


def test_table_fits_100_columns_and_skipped_folders_are_named_on_stderr(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = invoke(*runs, "--no-speed")
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 100
    for words in ("ddpm", "fid@100", "7.50", "1.50", "kin evaluator", "outputs/comparison/report.html"):
        assert words in result.stdout
    assert "skipped notes" in result.stderr


def test_json_is_one_document_that_names_the_report(runs, tmp_path):
    result = invoke(*runs, "--no-speed", "--json", "--output", "page")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["report"] == "page/report.html"
    assert (tmp_path / "page" / "report.html").is_file()
    assert document["skipped"] == [{"path": "notes", "reason": "no driftkit run, it has no manifest.json"}]
    assert len(document["score_tables"]) == 1


def test_settings_come_from_a_file_and_from_set_too(runs, tmp_path):
    (tmp_path / "c.toml").write_text('speed = false\noutput = "page"\n')
    result = invoke("ddpm", "--config", "c.toml", "--set", "neighbours=false", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["report"] == "page/report.html"
    assert document["speed"]["results"] == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["notes"], 3, "nothing is left to compare"),
        ([], 2, "RUN"),
        (["ddpm", "--speed-batch", "0"], 2, "--speed-batch"),
        (["ddpm", "--speed-seconds", "0"], 2, "--speed-seconds"),
        (["ddpm", "--output", "file"], 2, "got a file"),
        (["ddpm", "--set", "speed_batsh=2"], 2, "did you mean speed_batch"),
        (["ddpm", "--neighbours-by", "colour"], 2, "--neighbours-by"),
        (["ddpm", "--nfe", "1,ten"], 2, "--nfe"),
        (["ddpm", "--evaluate"], 2, "--reference SPEC"),
    ],
)
def test_errors_are_one_line_with_their_code(runs, tmp_path, words, code, says):
    (tmp_path / "file").write_text("")
    result = invoke(*words)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stderr.strip().count("\n") == 0
