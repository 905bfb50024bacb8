"""Whole commands with several training encoders: trained here, random of timm, and pixels."""

import json
import shutil

import pytest

from driftkit.config.pipeline_file import load_pipeline
from driftkit.stages.run import fingerprint
from driftkit.storage.run_folder import Run
from driftkit.training.train_config import default_output, resolve_config
from tests.conftest import TINY_DATA, document, driftkit, train_tiny

LITE = "efficientnet-lite0?random=true&input_size=32&feature_set=last"


@pytest.fixture
def mae(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    return tmp_path / "mae"


def test_a_run_of_two_encoders_is_trained_scored_compared_and_exported(mae, tmp_path):
    run = tmp_path / "run"
    train_tiny(run, "drift", "--encoder", mae, "--encoder", LITE)
    manifest = Run.open(run).manifest()
    assert manifest.config["objective"]["encoder"] == [str(mae), LITE]
    assert manifest.encoder["name"] == "mae+efficientnet-lite0"
    assert [part["name"] for part in manifest.encoder["parts"]] == [str(mae), "efficientnet-lite0"]
    terms = Run(run).metrics()[-1]["terms"]
    assert {name.partition("/")[0] for name in terms} == {"mae", "efficientnet-lite0", "input"}

    scored = ["fid", run, "--reference", TINY_DATA[1], "--num-images", 16, "--device", "cpu", "--allow-collapsed"]
    for extractor, degree in ((f"encoder:{mae}", "kin"), ("efficientnet-lite2", "related"), ("pixels", "related")):
        found = document(*scored, "--extractor", extractor)
        assert found["kinship"]["degree"] == degree, extractor

    compared = document("compare", run, "--output", tmp_path / "report")
    (row,) = compared["runs"]
    assert (row["encoder"], row["feature_set"]) == ("mae+efficientnet-lite0", "paper+last")
    assert any("random weights" in warning for warning in row["warnings"])

    exported = document("export", run, "--format", "torchscript", "--output", tmp_path / "model")
    card = next((tmp_path / "model").glob("*.md")).read_text()
    assert "an encoder trained with driftkit" in card
    assert "`efficientnet-lite0`, features `last`, **random weights**" in card
    assert exported
    assert driftkit("verify", run).exit_code == 0


def test_a_run_of_two_encoders_is_resumed_where_each_has_its_content(mae, tmp_path):
    run, line = tmp_path / "run", ["--encoder", "pixel?input_size=16", "--cache-features"]
    train_tiny(run, "drift", "--encoder", mae, *line)
    shutil.copytree(mae, tmp_path / "moved")
    resumed = train_tiny(run, "drift", "--encoder", tmp_path / "moved", *line, steps=4)
    assert "resumed from step 2" in resumed.stderr
    train_tiny(tmp_path / "whole", "drift", "--encoder", mae, *line, steps=4)
    losses = [Run(path).metrics()[-1]["loss"] for path in (run, tmp_path / "whole")]
    assert losses[0] == losses[1]

    train_tiny(tmp_path / "other", "mae", "--seed", 1)
    again = ["train", *TINY_DATA, "--steps", 6, "--output", run, *shared_words(run)]
    for encoders, reason in (
        ([tmp_path / "other", "pixel?input_size=16"], "other weights of"),
        (["pixel?input_size=16", mae], "another config"),
        ([mae, "pixel?input_size=24"], "another config"),
        ([mae], "another config"),
    ):
        words = [word for encoder in encoders for word in ("--encoder", encoder)]
        refused = driftkit(*again, "--cache-features", *words)
        assert refused.exit_code == 2, refused.output
        assert reason in refused.stderr


def shared_words(run):
    """The tiny settings of a run as `--set` words."""
    config = Run.open(run).manifest().config
    keys = {"model": ("base_channels", "channel_multipliers", "num_heads", "attention_resolutions", "num_res_blocks"),
            "trainer": ("batch_size", "log_every", "sample_every")}  # fmt: skip
    pairs = [(section, key) for section, names in keys.items() for key in names]
    words = [f"{section}.{key}={json.dumps(config[section][key])}" for section, key in pairs]
    return [word for text in words for word in ("--set", text)] + ["--device", "cpu"]


def test_the_cost_of_a_step_is_that_of_all_encoders():
    def shapes(*encoders):
        words = [word for encoder in encoders for word in ("--encoder", encoder)]
        return document("train", "--dry-run", *words, "--set", "data.image_size=32")["budget"]["shapes"]

    resnet = "timm:resnet10t?input_size=64"
    pixel, lite, other, both = shapes("pixel"), shapes(LITE), shapes(resnet), shapes(LITE, resnet)
    for key in ("encoder_flops", "encoder_bytes"):
        assert both[key] == lite[key] + other[key] > lite[key] > 0
    assert both["batch"]["calls"] == [*lite["batch"]["calls"], *other["batch"]["calls"]]
    kept = [shape["saved_bytes"] - pixel["saved_bytes"] for shape in (both, lite, other)]  # by the encoders alone
    assert kept[0] == pytest.approx(kept[1] + kept[2], rel=1e-3)


@pytest.mark.parametrize("measured", [[], ["--data", "shapes?image_size=8&count=160", "--num-images", "64",
                                           "--batch-size", "8", "--no-speed", "--taus", "0.2"]])  # fmt: skip
def test_the_probe_of_several_has_each_and_their_union(mae, tmp_path, measured):
    found = document("probe-encoder", mae, "pixel?input_size=16", *measured, "--output", tmp_path / "probe")
    assert found["encoder"] == "mae+pixel"
    first, second = found["parts"]
    assert (first["encoder"], second["encoder"]) == (str(mae), "pixel")
    named = [f"mae/{row['name']}" for row in first["maps"] if row["name"] != "input"]
    assert [row["name"] for row in found["maps"]] == [*named, "pixel/pixels", "input"]
    vectors = [sum(call["vectors"] for call in record["field_calls"]) for record in (found, first, second)]
    assert vectors[0] == vectors[1] + vectors[2]
    assert found["memory"]["features_bytes"] == sum(part["memory"]["features_bytes"] for part in found["parts"])
    assert (tmp_path / "probe" / "probe.png").is_file() == bool(measured)
    assert all(bool(record["verdict"]) == bool(measured) for record in (found, first, second))
    if not measured:
        text = driftkit("probe-encoder", mae, "pixel?input_size=16").stdout
        assert text.index("map norm") < text.index("mae+pixel") < text.index("mae/stage1")


def test_pipelines_and_output_folders_know_several_encoders(tmp_path):
    path = tmp_path / "p.toml"
    stage_text = "[[stage]]\nname = 'a'\ncommand = 'train'\nencoder = ['{output}/mae', 'mocov2?weights=w.pth']\n"
    path.write_text(stage_text)
    (stage,) = load_pipeline(path, output=tmp_path).stages
    assert stage.arguments == ("--encoder", f"{tmp_path}/mae", "--encoder", "mocov2?weights=w.pth")
    assert stage.inputs == (f"{tmp_path}/mae", "mocov2?weights=w.pth")
    before = fingerprint(stage)
    (tmp_path / "w.pth").write_bytes(b"weights")
    assert fingerprint(stage) != before
    path.write_text(stage_text.replace("w.pth", f"{tmp_path}/c++/w%41.pth"))
    (stage,) = load_pipeline(path, output=tmp_path).stages
    before = fingerprint(stage)
    (tmp_path / "c++").mkdir()
    (tmp_path / "c++" / "w%41.pth").write_bytes(b"weights")
    assert fingerprint(stage) != before
    config, _ = resolve_config(options={"objective": {"encoder": ["outputs/mae", "mocov2?input_size=64"]}})
    assert str(default_output(config)) == "outputs/drift_mae+mocov2"
