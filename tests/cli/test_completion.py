"""Completion in the shell offers what there is, and does not wait for torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driftkit.cli.app import app
from driftkit.cli.completion import runs
from driftkit.config.layers import config_keys, preset_names
from driftkit.encoders.registry import encoder_names
from driftkit.methods.registry import METHODS
from driftkit.models.registry import MODELS
from driftkit.scoring.extractor_names import NAMES
from driftkit.stages.prefetch import items

PIPELINE = """
[[stage]]
name = "mae"
command = "train"
[[stage]]
name = "drift-{each}"
each = ["a", "b"]
command = "train"
"""


def completed(*words):
    """What the shell is given for a line of these words, of which the last is being typed."""
    line = ["driftkit", *words]
    shell = {"_DRIFTKIT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(line) - 1)}
    return CliRunner().invoke(app, [], env=shell).stdout.split()


@pytest.fixture
def outputs():
    """Two runs, of which one lies deeper, and a folder that is none."""
    for run, method in (("outputs/ddpm", "ddpm"), ("outputs/demo/drift", "drift")):
        Path(run, "checkpoints").mkdir(parents=True)
        Path(run, "manifest.json").write_text(json.dumps({"config": {"objective": {"name": method}}}))
    Path("outputs/report").mkdir()


def test_commands_and_options_are_completed():
    assert completed("pro") == ["probe-encoder"]
    assert completed("train", "--pre") == ["--preset", "--precision"]


def test_methods_presets_and_words_of_an_option_are_completed():
    assert completed("train", "--objective", "") == list(METHODS)
    assert completed("train", "--preset", "") == preset_names()
    assert completed("train", "--schedule", "c") == ["constant", "cosine"]
    assert completed("train", "--device", "c") == ["cpu", "cuda"]


@pytest.mark.parametrize("command", ["sample", "export", "fid", "compare", "verify"])
@pytest.mark.usefixtures("outputs")
def test_runs_are_completed(command):
    assert completed(command, "") == ["outputs/ddpm", "outputs/demo/drift"]
    assert completed(command, "out") == ["outputs/ddpm", "outputs/demo/drift"]
    assert completed(command, "outputs/de") == ["outputs/demo/drift"]
    assert completed(command, "outputs/demo/") == ["outputs/demo/drift"]
    assert completed(command, "outputs/report") == []


@pytest.mark.usefixtures("outputs")
def test_runs_elsewhere_are_completed_from_the_folder_that_is_typed(tmp_path):
    assert runs(f"{tmp_path}/outputs/dd") == [f"{tmp_path}/outputs/ddpm"]
    assert runs("absent/") == []


@pytest.mark.usefixtures("outputs")
def test_encoders_are_names_and_runs():
    offered = completed("train", "--encoder", "")
    assert set(offered) == {*encoder_names(), "timm:", "outputs/ddpm", "outputs/demo/drift"}
    assert completed("probe-encoder", "moc") == ["mocov2"]


@pytest.mark.usefixtures("outputs")
def test_extractors_are_names_and_runs():
    assert completed("fid", "x", "--extractor", "") == [re.sub("(?<=:).*", "", name) for name in NAMES]
    assert completed("fid", "x", "--extractor", "encoder:outputs/dd") == ["encoder:outputs/ddpm"]


@pytest.mark.usefixtures("outputs")
def test_samplers_are_those_of_the_run():
    assert completed("sample", "outputs/ddpm", "--sampler", "") == list(METHODS["ddpm"].samplers)
    assert completed("sample", "outputs/demo/drift", "--nfe", "1", "--sampler", "") == list(METHODS["drift"].samplers)
    assert set(completed("sample", "absent", "--sampler", "")) == {n for m in METHODS.values() for n in m.samplers}


def test_pipelines_and_their_stages_are_completed():
    Path("pipelines").mkdir()
    Path("pipelines/all.toml").write_text(PIPELINE)
    Path("settings.toml").write_text("seed = 3\n")
    assert completed("run", "") == ["pipelines/all.toml"]
    assert completed("run", "pipelines/a") == ["pipelines/all.toml"]
    assert completed("run", "pipelines/all.toml", "--stage", "") == ["mae", "drift-a", "drift-b"]
    assert completed("run", "pipelines/all.toml", "--stage", "mae", "--stage", "drift-b") == ["drift-b"]
    assert completed("run", "settings.toml", "--stage", "") == []


def test_keys_of_set_are_those_of_the_command_and_of_every_network():
    offered = completed("train", "--set", "")
    assert {"seed=", "trainer.steps=", "objective.taus="} <= set(offered)
    networks = {f"model.{key}=" for model in MODELS.values() for key in config_keys(model.config)}
    assert {key for key in offered if key.startswith("model.")} >= networks
    assert completed("sample", "x", "--set", "et") == ["eta="]
    assert completed("data", "--set", "im") == ["image_size="]


def test_what_is_fetched_by_name_is_known_to_prefetch():
    assert set(completed("prefetch", "")) == {*items(), "timm:"}


def test_completion_does_not_load_torch_and_takes_a_fraction_of_a_second():
    code = (
        "import sys, time\n"
        "from typer.testing import CliRunner\n"
        "from driftkit.cli.app import app\n"
        "for line in sys.argv[1:]:\n"
        "    started = time.process_time()\n"
        "    shell = {'_DRIFTKIT_COMPLETE': 'complete_bash', 'COMP_WORDS': line, 'COMP_CWORD': str(line.count(' '))}\n"
        "    assert CliRunner().invoke(app, [], env=shell).stdout, line\n"
        "    assert time.process_time() - started < 0.5, line\n"
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    lines = ["train --set model.", "train --encoder ", "fid x --extractor ", "sample x --sampler ", "prefetch moc"]
    line = [sys.executable, "-c", code, *(f"driftkit {words}" for words in lines)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
