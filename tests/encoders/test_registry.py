"""Encoders and feature sets that are registered at run time work wherever those of the package do."""

import json

import pytest
import torch

from driftkit.encoders import registry
from driftkit.encoders.encoder_config import EncoderCard
from driftkit.encoders.feature_sets import FEATURE_SETS, FeatureGroup, FeatureSet
from driftkit.encoders.frozen_encoder import EncoderKind, FrozenEncoder
from driftkit.encoders.lineage import Lineage
from driftkit.encoders.registry import encoder_names, names_a_place
from driftkit.errors import NotFoundError, UsageError
from driftkit.protocols import FeatureMap
from tests.conftest import driftkit, train_tiny
from tests.encoders.loading import load


class CoarseColours(FrozenEncoder):
    """Colours of a 4x4 grid."""

    def __init__(self):
        super().__init__("coarse", input_size=8, feature_set="corner")
        self.lineage = Lineage("none", "coarse", "coarse", ())
        self.freeze()

    def maps(self, images):
        return [FeatureMap("colours", torch.nn.functional.avg_pool2d(self._resized(images), 2))]


@pytest.fixture
def plugged_in(monkeypatch):
    card = EncoderCard(name="coarse", trained_by="nothing", maps=("colours",), feature_set="corner", licence="MIT")
    kind = EncoderKind(
        accepts=lambda name: name == "coarse",
        load=lambda config, image_size, device: CoarseColours().to(device),
        names=lambda: ("coarse",),
        describe=lambda name: card,
        licence=lambda name: "MIT",
    )
    monkeypatch.setitem(registry.ENCODERS, "coarse", kind)
    corner = FeatureSet(
        "corner",
        lambda maps, images: [FeatureGroup(m.name, "corner", m.values[None, :, :, 0, 0]) for m in maps],
        "The upper left location of every map.",
    )
    monkeypatch.setitem(FEATURE_SETS, "corner", corner)


@pytest.mark.usefixtures("plugged_in")
def test_a_plug_in_trains_a_generator(tmp_path):
    train_tiny(tmp_path / "drift", "drift", "--encoder", "coarse", "--input-size", 8)
    manifest = json.loads((tmp_path / "drift" / "manifest.json").read_text())
    assert (manifest["encoder"]["name"], manifest["encoder"]["feature_set"]) == ("coarse", "corner")
    train_tiny(tmp_path / "pixels", "drift", "--encoder", "pixel", "--feature-set", "corner")


@pytest.mark.usefixtures("plugged_in")
def test_a_plug_in_is_probed_and_listed():
    data = ["--data", "shapes?image_size=8&count=160", "--num-images", "64", "--batch-size", "8", "--no-speed"]
    result = driftkit("probe-encoder", "coarse", *data, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["licence"] == "MIT"
    assert [group["name"] for group in document["measurement"]["groups"]] == ["colours/corner"]
    text = driftkit("probe-encoder", "--list").stdout
    assert "coarse" in text
    assert "The upper left location of every map." in text


@pytest.mark.usefixtures("plugged_in")
def test_a_misspelt_plug_in_is_suggested():
    with pytest.raises(UsageError, match="did you mean coarse"):
        load("coars")
    result = driftkit("probe-encoder", "pixel", "--feature-set", "cornr")
    assert result.exit_code == 2
    assert "did you mean corner" in result.stderr


def test_names_and_places():
    assert "pixel" in encoder_names()
    assert not any(names_a_place(name) for name in (*encoder_names(), "timm:resnet18"))
    assert names_a_place("outputs/mae")
    with pytest.raises(NotFoundError):
        load("outputs/mae")
    with pytest.raises(UsageError, match="empty name"):
        load(" ")


def test_an_encoder_with_its_own_weights_takes_no_others(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    for name in ("pixel", tmp_path / "mae"):
        for settings in ({"random_weights": True}, {"encoder_weights": "w.safetensors"}):
            with pytest.raises(UsageError, match="leave out `encoder_weights` and `random_weights`"):
                load(name, **settings)
