"""`driftkit probe-encoder` as a whole command on tiny generated images."""

import json

import pytest
from PIL import Image

from driftkit.encoders.feature_sets import FEATURE_SETS
from driftkit.encoders.registry import encoder_names
from driftkit.probing.probe_record import ProbeRecord
from tests.conftest import driftkit, train_tiny

DATA = ["--data", "shapes?image_size=8&count=160", "--num-images", "64", "--batch-size", "8", "--no-speed"]
MEASURED = ("data", "setup", "measurement", "verdict")


def probe(*words):
    result = driftkit("probe-encoder", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_without_data_only_shapes_and_memory():
    document = probe("pixel", "--batch-size", "32")
    assert not any(document[key] for key in (*MEASURED, "speed", "files"))
    assert document["memory"]["features_bytes"] == 3072 * 64 * 4
    text = driftkit("probe-encoder", "pixel").stdout
    assert "memory at a batch of 128" in text


def test_shapes_of_a_random_encoder_next_to_one_with_weights():
    found = probe("timm:test_vit2?random=true", "efficientnet-lite0")
    assert [bool(part["parameters"]) for part in found["parts"]] == [True, True]


def test_pixels_on_data_give_every_number_a_verdict_and_a_picture(tmp_path):
    document = probe("pixel", *DATA, "--output", tmp_path / "probe")
    assert all(document[key] for key in MEASURED)
    assert document["verdict"]["word"] in ("good", "usable", "poor")
    assert 0 <= document["verdict"]["score"] <= 1
    assert document["data"]["num_images"] == 64
    assert document["setup"]["skipped"] == [] or "class" in document["setup"]["skipped"][0]
    (group,) = document["measurement"]["groups"]
    assert group["name"] == "pixels/locations"
    assert [k["tau"] for k in group["kernel"]] == [0.02, 0.05, 0.1, 0.2, 0.5]
    assert {"noise", "blur", "shuffle", "shift"} <= set(group["separation"])
    assert ProbeRecord.read(tmp_path / "probe" / "probe.json").document() == document
    with Image.open(tmp_path / "probe" / "probe.png") as picture:
        assert picture.width > 1000


@pytest.mark.slow
def test_a_tiny_mae_with_every_feature_set(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    documents = {
        features: probe(tmp_path / "mae", *DATA, "--feature-set", features, "--taus", "0.05,0.2", "--seed", "3")
        for features in ("multires", "paper", "locations")
    }
    assert (
        len(documents["multires"]["measurement"]["groups"]) == 10
    )  # three of three maps, and the one position of the last
    assert any(g["name"] == "input/pixels" for g in documents["paper"]["measurement"]["groups"])
    verdicts = [document["verdict"] for document in documents.values()]
    assert all("input" not in verdict["taps"] and verdict["taps"] for verdict in verdicts)
    assert all(set(verdict["taus"]) <= {0.05, 0.2} for verdict in verdicts)
    again = probe(tmp_path / "mae", *DATA, "--feature-set", "paper", "--taus", "0.05,0.2", "--seed", "3")
    assert again == documents["paper"]


def test_text_and_speed():
    result = driftkit("probe-encoder", "pixel", *DATA[:-1], "--speed")
    assert result.exit_code == 0, result.output
    for words in ("images per second", "224 px", "score", "perplexity", "shuffle"):
        assert words in result.stdout


def test_speed_is_measured_alone_where_it_is_asked_for():
    document = probe("pixel", "--speed")
    assert not any(document[key] for key in MEASURED)
    assert [row["input_size"] for row in document["speed"]] == [32, 64, 112, 224]


def test_unlabelled_images_leave_the_classes_out(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        picture = Image.new("RGB", (8, 8), (6 * i, 255 - 6 * i, 3 * i))
        picture.putpixel((i % 8, i // 8), (255, 255, 255))
        picture.save(folder / f"{i}.png")
    document = probe("pixel", "--data", folder, "--no-speed")
    assert document["measurement"]["purity"] is None
    assert document["chance_purity"] is None
    assert document["data"]["classes"] is None
    assert "one class" not in document["verdict"]["detectability"]
    assert "no labels" in document["setup"]["skipped"][0]
    assert document["setup"]["batch_size"] == 10


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--data", "shapes", "--taus", "0.1,x"], 2, "--taus"),
        (["--data", "shapes", "--taus", "0,0.1"], 2, "greater than 0"),
        (["--data", "shapes?count=64", "--batch-size", "128"], 2, "512"),
        (["--data", "shapes?count=16"], 2, "at least 32"),
        (["--data", "shapes", "--num-images", "5"], 2, "than or equal to 32"),
        (["--data", "shapes", "--batch-size", "2"], 2, "than or equal to 8"),
        (["--data", "shapes", "--speed-seconds", "0"], 2, "greater than 0"),
        (["--data", "no/such"], 3, "no/such"),
        (["--data", "shapes", "--feature-set", "nope"], 2, "multires"),
    ],
)
def test_bad_input_is_one_line(words, code, says):
    result = driftkit("probe-encoder", "pixel", *words)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = driftkit("probe-encoder", "pixel", "--data", "shapes", "--output", tmp_path / "file")
    assert result.exit_code == 2
    assert "expected a folder" in result.stderr


def test_the_list_has_a_row_for_every_encoder():
    result = driftkit("probe-encoder", "--list", "--json")
    rows = {row["name"]: row for row in json.loads(result.stdout)["encoders"]}
    assert set(rows) == set(encoder_names())
    assert rows["convnextv2-fcmae"]["supervised"] is False
    assert rows["convnextv2"]["supervised"] is True
    assert rows["dinov2"]["reading"] == "class token"
    assert all(row["licence"] and row["parameters"] > 0 for name, row in rows.items() if "pixel" not in name)
    text = driftkit("probe-encoder", "--list").stdout
    assert all(name in text for name in encoder_names())
    assert "CC-BY-NC-4.0" in text
    assert all(name in text for name in FEATURE_SETS)


def test_without_a_name_it_says_where_the_names_are():
    result = driftkit("probe-encoder")
    assert result.exit_code == 2
    assert "--list" in result.stderr


def test_any_timm_model_by_layers(tmp_path):
    document = probe("timm:resnet26", "--taps", "layer1,layer3", "--random-weights", "--input-size", "64")
    assert [(m["name"], m["channels"], m["height"]) for m in document["maps"]] == [
        ("layer1", 256, 16),
        ("layer3", 1024, 4),
    ]
    assert document["licence"] == "apache-2.0"
    result = driftkit("probe-encoder", "timm:resnet26", "--taps", "layer7", "--random-weights")
    assert result.exit_code == 2
    assert "expected some of act1, layer1, layer2, layer3, layer4" in result.stderr


def test_settings_come_from_a_file_and_assignments_too(tmp_path):
    (tmp_path / "probe.toml").write_text('encoder = "pixel"\nbatch_size = 16\ntaus = [0.2, 0.05]\n')
    words = ["--config", tmp_path / "probe.toml", "--set", "data=shapes?image_size=8&count=160", "--set", "speed=false"]
    document = probe(*words)
    assert document["encoder"] == "pixel"
    assert (document["setup"]["batch_size"], document["setup"]["taus"]) == (16, [0.05, 0.2])
