"""`~` and variables in paths: what they stand for, and that every path that somebody types is expanded."""

import inspect
import json
import tempfile
from pathlib import Path
from typing import get_args

import pytest

from driftkit.cli.app import app
from driftkit.cli.options import PLACE_VARIABLES, typed_place
from driftkit.comparison.compare_config import CompareConfig
from driftkit.config.export_config import ExportConfig
from driftkit.config.pipeline_file import RunConfig, load_pipeline
from driftkit.config.places import EXPANDED, expand_place
from driftkit.config.settings import OnResume, resolve_settings
from driftkit.encoders.encoder_config import EncodersConfig
from driftkit.errors import UsageError
from driftkit.methods.registry import METHODS
from driftkit.runtime.environment import CACHE_VARIABLE, set_user_defaults
from driftkit.stages.data import ImportConfig
from driftkit.stages.fid import FidConfig
from driftkit.stages.probe_encoder import ProbeEncoderConfig
from driftkit.stages.sample import SampleConfig
from driftkit.training.train_config import DataConfig, EvaluationConfig, TrainConfig, load_config, resolve_config
from driftkit.tutorial.toy_config import ToyConfig
from tests.conftest import driftkit, train_tiny
from tests.image_files import as_folder, png

SETTINGS = (
    CompareConfig, ExportConfig, RunConfig, ImportConfig, FidConfig, ProbeEncoderConfig, SampleConfig, ToyConfig,
    TrainConfig, DataConfig, EvaluationConfig, *(method.config for method in METHODS.values()),
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUNS", "/mnt/runs")
    monkeypatch.delenv("UNSET", raising=False)
    return tmp_path / "home"


def write_images(folder):
    as_folder(folder, {f"{number}.png": png((20 * number, 0, 99)) for number in range(12)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~/images?split=test", "HOME/images?split=test"),
        ("~?split=test", "HOME?split=test"),
        ("encoder:~/runs/x", "encoder:HOME/runs/x"),
        ("~/run@raw", "HOME/run@raw"),
        ("$RUNS/x", "/mnt/runs/x"),
        ("a/${RUNS}x", "a//mnt/runsx"),
        ("mocov2?weights=~/w.pth&taps=layer2", "mocov2?weights=HOME/w.pth&taps=layer2"),
        ("mocov2?weights=$RUNS/w.pth", "mocov2?weights=/mnt/runs/w.pth"),
        ("outputs/a", "outputs/a"),
        ("cost$5", "cost$5"),
        ("a~b", "a~b"),
    ],
)
def test_home_and_variables_are_expanded(text, expected, home):
    assert expand_place(text) == expected.replace("HOME", str(home))


@pytest.mark.parametrize("name", ["~", "~/x", "$UNSET", "a$RUNS", "${RUNS}"])
@pytest.mark.parametrize("more", ["", "?split=test", "@raw"])
def test_a_path_that_exists_is_taken_as_it_is(name, more, tmp_path):
    (tmp_path / name).mkdir(parents=True)
    assert expand_place(name + more) == name + more


@pytest.mark.parametrize("text", ["$UNSET/x", "${UNSET}", "encoder:$UNSET/x", "a?weights=$UNSET"])
@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_or_empty_variable_is_named(text, value, monkeypatch):
    if value is not None:
        monkeypatch.setenv("UNSET", value)
    with pytest.raises(UsageError, match="variable UNSET is not set"):
        expand_place(text)


def without_home(monkeypatch):
    """A process whose user has no home folder, as in some containers."""

    def absent(_):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", absent)
    monkeypatch.setattr("pwd.getpwnam", absent)


def test_without_a_home_folder_only_what_needs_it_is_refused(monkeypatch):
    without_home(monkeypatch)
    assert driftkit("data", "shapes?count=4&image_size=8").exit_code == 0
    result = driftkit("data", "~/images")
    assert result.exit_code == 2
    assert "HOME is not set" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("text", "says"), [("~/x", "HOME is not set"), ("~nobody/x", "there is no user nobody")])
def test_an_unknown_home_folder_is_named(text, says, monkeypatch):
    without_home(monkeypatch)
    with pytest.raises(UsageError, match=says):
        expand_place(text)


@pytest.mark.parametrize("text", ["~/x", "$HOME/x"])
def test_a_temporary_home_folder_is_none(text, tmp_path, monkeypatch):
    without_home(monkeypatch)
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    set_user_defaults()
    assert Path.home().parent == tmp_path
    with pytest.raises(UsageError, match="HOME is not set"):
        expand_place(text)


def test_an_empty_home_is_none(monkeypatch):
    monkeypatch.setenv("HOME", "")
    with pytest.raises(UsageError, match="HOME is not set"):
        expand_place("~/x")


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.__name__)
def test_every_setting_that_is_a_path_is_expanded(settings):
    for name, field in settings.model_fields.items():
        if "Path" in str(field.annotation) or OnResume.PLACE in field.metadata or name.endswith("r_weights"):
            assert EXPANDED in field.metadata, name


def test_every_path_of_the_command_line_is_expanded():
    checked = 0
    for command in app.registered_commands:
        for parameter in inspect.signature(command.callback).parameters.values():
            kind, *metadata = get_args(parameter.annotation)
            # Settings are expanded when they are resolved, and so is the file of --config.
            if "Path" in str(kind) and not parameter.name.startswith("option_") and parameter.name != "config":
                assert metadata[0].callback is typed_place, (command.name, parameter.name)
                checked += 1
    assert checked >= 8


def test_a_config_file_an_option_and_a_variable_are_expanded(home, tmp_path, monkeypatch):
    monkeypatch.setattr("driftkit.cli.train._budget", lambda *_: {"budget": None, "budget_unknown": "not asked"})
    (tmp_path / "c.toml").write_text("[data]\nspec = '~/images?split=test'\n[evaluation]\nreference = '$RUNS/s'\n")
    monkeypatch.setenv("CONFIGS", str(tmp_path))
    monkeypatch.setenv("DRIFTKIT_TRAIN_INIT_FROM", "${RUNS}/run@raw")
    words = ("--encoder", "pixel", "--output", "~/out", "--set", "evaluation.extractor=encoder:~/mae")
    result = driftkit("train", "--config", "$CONFIGS/c.toml", *words, "--dry-run", "--json")
    document = json.loads(result.stdout)
    config = document["config"]
    assert config["data"]["spec"] == f"{home}/images?split=test"
    assert config["evaluation"]["reference"] == "/mnt/runs/s"
    assert config["evaluation"]["extractor"] == f"encoder:{home}/mae"
    assert config["init_from"] == "/mnt/runs/run@raw"
    assert document["output"] == f"{home}/out"


def test_encoders_and_the_settings_in_their_texts_are_expanded(home):
    (one, two) = resolve_settings(
        EncodersConfig, options={"encoder": ["~/mae", "mocov2?weights=$RUNS/w.pth"]}
    )[0].each()  # fmt: skip
    assert (one.encoder, two.encoder, two.encoder_weights) == (f"{home}/mae", "mocov2", "/mnt/runs/w.pth")
    single = resolve_settings(EncodersConfig, options={"encoder": "mocov2?weights=$RUNS/w.pth"})[0]
    assert single.encoder_weights == "/mnt/runs/w.pth"


def test_an_unset_variable_is_one_line_with_the_option_or_key(tmp_path):
    for words, says in (
        (("fid", "$UNSET/run", "--reference", "shapes"), "$UNSET/run: the variable UNSET is not set"),
        (("fid", "run", "--reference", "$UNSET"), "--reference: the variable UNSET is not set"),
        (("train", "--set", "data.spec=$UNSET/x", "--dry-run"), "(from --set): the variable UNSET is not set"),
        (("train", "--config", "$UNSET.toml"), "$UNSET.toml: the variable UNSET is not set"),
    ):
        result = driftkit(*words)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stderr.count("\n") == 1


def test_variables_that_name_places_are_expanded(home, tmp_path, monkeypatch):
    from driftkit.scoring.extractors import INCEPTION_VARIABLE

    assert {CACHE_VARIABLE, INCEPTION_VARIABLE, "DRIFTKIT_DATA_DIR"} == set(PLACE_VARIABLES)
    monkeypatch.setenv("DRIFTKIT_DATA_DIR", "~/packs")
    assert driftkit("data", "shapes?count=4&image_size=8").exit_code == 0
    assert list((home / "packs").glob("*.safetensors"))
    assert not (tmp_path / "~").exists()
    monkeypatch.setenv("DRIFTKIT_CACHE", "$UNSET/cache")
    result = driftkit("data", "shapes?count=4&image_size=8")
    assert result.exit_code == 2
    assert "DRIFTKIT_CACHE $UNSET/cache: the variable UNSET is not set" in result.stderr


def test_a_pipeline_expands_its_output_and_what_its_stages_read(home, tmp_path):
    (tmp_path / "p.toml").write_text(
        "output = '~/out'\n[[stage]]\nname = 'd'\ncommand = 'data'\nspec = '$RUNS/images?split=test'\n"
        "output = '{output}/d'\ngrid = '~/g.png'\n"
    )
    pipeline = load_pipeline(tmp_path / "p.toml")
    assert pipeline.output == home / "out"
    (stage,) = pipeline.stages
    assert stage.inputs == ("/mnt/runs/images?split=test",)
    assert stage.arguments == (*stage.inputs, "--output", f"{home}/out/d", "--grid", f"{home}/g.png")
    (tmp_path / "p.toml").write_text("[[stage]]\nname = 'd'\ncommand = 'data'\nspec = '$UNSET/images'\n")
    with pytest.raises(UsageError, match=r"p\.toml: stage d: spec \$UNSET/images: the variable UNSET is not set"):
        load_pipeline(tmp_path / "p.toml")


def test_a_recorded_config_is_read_as_it_is():
    """The folder whose name has a `$` may be gone by now."""
    document = resolve_config()[0].model_dump(mode="json")
    document["data"]["spec"] = "$UNSET/images"
    document["objective"]["encoder"] = ["~/mae", "mocov2?weights=$UNSET/w.pth"]
    config = load_config(document)
    assert config.data.spec == "$UNSET/images"
    assert config.objective.encoder == ("~/mae", "mocov2?weights=$UNSET/w.pth")


def test_a_manifest_has_what_was_resolved_and_relative_paths_as_given(home, tmp_path):
    write_images(home / "images")
    train_tiny(Path("~/run"), "ddpm", "--data", "~/images", steps=0)
    manifest = json.loads((home / "run" / "manifest.json").read_text())
    assert manifest["config"]["data"]["spec"] == f"{home}/images"
    (home / "images").rename(tmp_path / "images")
    train_tiny(tmp_path / "run", "ddpm", "--data", "images", steps=0)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["data"]["spec"] == "images"
