"""Help answers fast, without torch, for every command; errors are one line with the documented code."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from driftkit.cli.app import app, check
from driftkit.errors import UsageError

COMMANDS = [
    "toy",
    "probe-encoder",
    "data",
    "train",
    "sample",
    "fid",
    "compare",
    "export",
    "run",
    "prefetch",
    "verify",
    "doctor",
]


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)], ids=lambda c: c[0] if c else "driftkit")
def test_help_leads_with_examples_and_does_not_import_torch(command):
    code = (
        "import sys\n"
        "from driftkit.cli.app import app\n"
        "try: app([*sys.argv[1:], '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Examples" in done.stdout
    assert done.stdout.index("Examples") < done.stdout.index("Options")


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)], ids=lambda c: c[0] if c else "driftkit")
def test_help_fits_eighty_columns_and_cuts_nothing_off(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = CliRunner().invoke(app, [*command, "--help"]).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    program = typer.main.get_command(app)
    described = program.commands[command[0]] if command else program
    for parameter in described.params:
        assert parameter.help, parameter.name
        for flag in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]:
            assert flag in text.replace("[no-]", ""), flag


def test_wide_terminals_get_longer_lines_up_to_a_hundred_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = CliRunner().invoke(app, ["train", "--help"]).stdout.splitlines()
    assert 80 < max(map(len, lines)) <= 100


def test_help_says_what_an_option_takes_and_what_it_is_without():
    text = " ".join(CliRunner().invoke(app, ["fid", "--help"]).stdout.split())
    assert (
        "-b, --batch-size N Images at a time; changes speed, not scores. [default: 64; 256 on a GPU; at least 1]"
        in text
    )
    assert "--[no-]cache Keep" in text
    assert "[required]" in text
    assert "--precision auto|float32|bfloat16 Number" in text


@pytest.mark.parametrize(
    ("command", "usage"), [("toy", "[TOY]..."), ("probe-encoder", "[NAME]..."), ("compare", "{RUN}...")]
)
def test_usage_shows_once_that_words_may_repeat(command, usage):
    line = next(line for line in CliRunner().invoke(app, [command, "--help"]).stdout.splitlines() if "Usage:" in line)
    assert line.split()[-1] == usage


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "no command is given"),
        (["trian"], 2, "Did you mean 'train'"),
        (["train", "--stepz", "3"], 2, "--stepz"),
        (["train", "--steps", "many"], 2, "many"),
        (["train", "--steps", "-1"], 2, "--steps"),
        (["train", "--objective", "drifft"], 2, "did you mean drift"),
        (["train", "--set", "trainer.stepz=3"], 2, "did you mean trainer.steps"),
        (["train", "--set", "steps=3"], 2, "did you mean trainer.steps"),
        (["train", "--set", "nonsense"], 2, "section.key=value"),
        (["train", "--preset", "nope"], 2, "cpu"),
        (["train", "--resume", "maybe"], 2, "auto or never"),
        (["train", "--config", "absent.toml"], 3, "absent.toml"),
        (["train", "--data", "shapes", "--batch-size", "1", "--encoder", "pixel"], 2, "at least 2 images"),
        (["train", "--data", "shapes", "--encoder", "pixl"], 2, "did you mean pixel"),
        (["train", "--data", "no/such/folder"], 3, "no/such/folder"),
        (["train", "--data", "shapes", "--device", "tpu"], 2, "auto, cpu or cuda"),
        (["sample", "absent"], 3, "absent"),
        (["sample", "absent", "--weights", "best"], 2, "ema, ema-DECAY, raw"),
        (["export", "absent"], 3, "absent"),
        (["export", "absent", "--weights", "best"], 2, "ema, ema-DECAY, raw"),
        (["compare", "absent", "--evaluate"], 2, "--reference"),
        (["compare", "absent", "--reference", "shapes"], 2, "--evaluate"),
        (["compare", "absent", "--evaluate", "--reference", "shapes", "--nfe", "1,x"], 2, "a valid integer"),
        (["compare", "absent", "--neighbours-by", "hue"], 2, "pixels or features"),
        (["toy", "--points", "swiss-rol"], 2, "checkerboard, swiss-roll or two-modes"),
        (["toy", "--attraction", "0", "--repulsion", "0"], 2, "nothing would move"),
        (["probe-encoder", "dinov2-multires", "--input-size", "230", "--random-weights"], 2, "224 or 238"),
        (["probe-encoder", "nope"], 2, "pixel"),
        (["probe-encoder", "pixel", "--feature-set", "nope"], 2, "multires"),
        (["run", "absent.toml"], 3, "absent.toml"),
        (["verify", "absent"], 3, "1 problem"),
        (["prefetch"], 2, "--all"),
        (["prefetch", "mocv2"], 2, "did you mean mocov2"),
        (["prefetch", "fid:dinov2"], 2, "did you mean evaluator:dinov2"),
        (["prefetch", "evaluator:incepton"], 2, "did you mean inception"),
        (["prefetch", "pixel"], 2, "needs no files"),
    ],
)
def test_bad_input_gets_one_line_and_its_exit_code(words, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTKIT_DATA_DIR", str(tmp_path / "data"))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["sample", "absent", "--debug"])
    assert type(result.exception).__name__ == "NotFoundError"


def test_environment_variables_lie_between_files_and_options(monkeypatch, tmp_path):
    import json

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTKIT_TRAIN_STEPS", "7")
    monkeypatch.setenv("DRIFTKIT_TRAIN_SEED", "8")
    (tmp_path / "c.toml").write_text("seed = 1\n[trainer]\nsteps = 2\nbatch_size = 3\n")
    words = ["train", "--dry-run", "--json", "--config", "c.toml", "--seed", "9"]
    document = json.loads(CliRunner().invoke(app, words).stdout)
    assert document["config"]["trainer"]["steps"] == 7
    assert document["config"]["trainer"]["batch_size"] == 3
    assert document["config"]["seed"] == 9
    assert document["origins"]["trainer.steps"] == "environment"
    assert document["origins"]["trainer.batch_size"] == "file c.toml"
    assert document["origins"]["seed"] == "option"


def test_a_line_can_be_checked_without_running_it():
    check(["train", "--steps", "3"], where="here")
    with pytest.raises(UsageError, match=r"here: .*--stepz"):
        check(["train", "--stepz", "3"], where="here")
