"""Kinship: who may judge what whom taught."""

import json
import shutil
from itertools import product

import pytest
import timm
import torch

from driftkit.encoders.lineage import (
    PIXEL_TERM,
    PIXELS,
    Lineage,
    data_of_tag,
    family_of,
    kinship,
    lineage_of_run,
    read_kinship,
    read_lineage,
    training_encoders_of,
)
from driftkit.encoders.specs import SPECS
from driftkit.encoders.weights import published, read_weights
from driftkit.storage.records import RunManifest
from tests.encoders.loading import load
from tests.scoring.fakes import make_run

LITE0 = Lineage("a0", "tf_efficientnet_lite0", "efficientnet", ("ImageNet-1k",), True)
LITE2 = Lineage("a2", "tf_efficientnet_lite2", "efficientnet", ("ImageNet-1k",), True)
INCEPTION = Lineage("b0", "inception-v3", "inception", ("ImageNet-1k",), True)
MAE = Lineage("c0", "mae_resnet", "mae_resnet", ("images 1234",), False)
CLASSIFIER = Lineage("c1", "mae_resnet", "mae_resnet", ("images 1234",), True)
ELSEWHERE = Lineage("c2", "mae_resnet", "mae_resnet", ("images 5678",), True)
RANDOM = Lineage("random", "resnet18", "resnet", ())
UNKNOWN = Lineage("d0", "strange", "strange family", None)


@pytest.mark.parametrize(
    ("training_encoders", "evaluator", "degree", "reason"),
    [
        ([LITE0], LITE0, "kin", "itself"),
        ([MAE], CLASSIFIER, "kin", "mae_resnet"),  # another seed, labels: the same architecture and images
        ([RANDOM], RANDOM, "kin", "architecture"),
        ([PIXELS], PIXELS, "kin", "architecture"),
        ([LITE0], LITE2, "related", "family"),
        ([LITE0], INCEPTION, "related", "ImageNet-1k"),
        ([MAE], ELSEWHERE, "related", "family"),
        ([UNKNOWN], LITE2, "related", "nobody knows"),
        ([LITE0], UNKNOWN, "related", "nobody knows"),
        ([None], LITE2, "related", "not recorded"),
        ([LITE0], None, "related", "not recorded"),
        ([LITE0], CLASSIFIER, "independent", "other images"),
        ([MAE], LITE2, "independent", "other images"),
        ([RANDOM], LITE2, "independent", "another family"),
        ([LITE0], PIXELS, "independent", "another family"),
        ([], LITE2, "independent", "no training encoder"),
        ([], None, "independent", "no training encoder"),
        ([LITE0, PIXEL_TERM], PIXELS, "related", "the pixels among the terms of the loss"),
        ([MAE, LITE0], LITE2, "related", "family"),
    ],
)
def test_degree_and_reason(training_encoders, evaluator, degree, reason):
    found = kinship(training_encoders, evaluator)
    assert found.degree == degree
    assert reason in found.reason
    assert found.counts == (degree == "independent")


def test_kinship_of_two_known_networks_goes_both_ways():
    everybody = (LITE0, LITE2, INCEPTION, MAE, CLASSIFIER, ELSEWHERE, RANDOM, UNKNOWN, PIXELS)
    for one, other in product(everybody, everybody):
        assert kinship([one], other).degree == kinship([other], one).degree


def test_lineage_survives_its_json_and_strangers_are_none():
    assert read_lineage(json.loads(json.dumps(LITE0.describe()))) == LITE0
    assert read_lineage({**LITE0.describe(), "data": None}).data is None
    for broken in (None, 3, {}, {"weights": 1, "architecture": "a", "family": "b"}):
        assert read_lineage(broken) is None


def test_a_kinship_that_is_not_recorded_decides_nothing():
    assert read_kinship({"degree": "independent", "reason": "r"}).counts
    for broken in (None, {}, {"degree": "friend"}):
        assert not read_kinship(broken).counts


def test_tags_of_timm_name_their_images():
    assert data_of_tag("augreg_in21k_ft_in1k") == ("ImageNet-22k", "ImageNet-1k")
    assert data_of_tag("lvd142m") == ("LVD-142M",)
    assert data_of_tag("mystery") is None


def test_one_family_of_networks_may_stand_in_several_modules():
    names = ("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "resnet10t")
    assert [family_of(timm.create_model(name, num_classes=0)) for name in names] == ["vit", "vit", "resnet"]


def test_a_weights_file_that_is_another_one_than_the_published_is_of_unknown_origin(tmp_path):
    published_file = published(SPECS["efficientnet-lite0"]).locate()
    shutil.copy(published_file, tmp_path / "same.pth")
    changed = {name: value.clone() for name, value in read_weights(published_file).items()}
    changed["_conv_stem.weight"] *= 1.01
    torch.save(changed, tmp_path / "tuned.pth")
    same, tuned = (load("efficientnet-lite0", encoder_weights=tmp_path / f"{n}.pth").lineage for n in ("same", "tuned"))
    assert same == load("efficientnet-lite0").lineage
    assert tuned.data is None
    assert kinship([tuned], CLASSIFIER).degree == "related"


def test_every_row_of_the_table_says_what_trained_it():
    for spec in SPECS.values():
        assert spec.data, spec.name


def manifest(config, **data):
    return RunManifest(id="1", created="", config=config, inputs={"data": data})


def test_runs_say_what_taught_them_and_what_they_are(tmp_path):
    drift = make_run(tmp_path / "drift", encoder={"name": "e", "lineage": [LITE0.describe(), PIXEL_TERM.describe()]})
    assert training_encoders_of(drift.manifest()) == [LITE0, PIXEL_TERM]
    assert training_encoders_of(make_run(tmp_path / "old", encoder={"name": "e"}).manifest()) == [None]
    assert training_encoders_of(make_run(tmp_path / "ddpm", "ddpm").manifest()) == []
    untold = RunManifest(id="r", created="now", config={"objective": {"name": "drift", "encoder": "e"}})
    assert training_encoders_of(untold) == [None]
    config = {"objective": {"name": "mae"}, "model": {"kind": "mae_resnet", "num_classes": None}}
    mae = RunManifest(id="r", created="now", config=config, inputs={"data": {"spec": "train.zip", "digest": "1234"}})
    assert lineage_of_run(mae, "c0") == MAE
    assert lineage_of_run(RunManifest(id="r", created="now", config={}), "c0").data is None


def test_encoders_know_their_lineage():
    assert load("pixel").lineage == PIXELS
    random = load("timm:resnet18", random_weights=True).lineage
    assert random == RANDOM
    lite = load("efficientnet-lite0").lineage
    assert (lite.architecture, lite.family, lite.data, lite.labels) == (
        LITE0.architecture, LITE0.family, LITE0.data, True,
    )  # fmt: skip
