"""The registry of methods loads without torch, and names what it lacks."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from driftkit.errors import UsageError
from driftkit.methods.registry import DEFAULT_METHOD, METHODS, build_sampler, find_method, find_sampler, generators
from driftkit.models.mae_resnet import MAEResNetConfig
from driftkit.models.registry import MODELS


def test_methods_and_rows_of_networks_load_without_torch():
    code = "import sys, driftkit.methods.registry, driftkit.models.contract; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_method_has_a_network_of_its_role_and_generators_a_graph():
    for method in METHODS.values():
        assert MODELS[method.network].role == method.network_role
        assert (method.graph is not None) == method.generates == bool(method.samplers)
        assert method.config().name == method.name
    assert DEFAULT_METHOD in generators()


def test_samplers_are_found_by_name_and_default_to_the_first():
    config = METHODS["ddpm"].config()
    assert build_sampler(config, None)[0].name == "ddim"
    spec, _ = build_sampler(config, "ddpm")
    assert spec.default_nfe(config) == 1000
    assert spec.recorded_options(config, 10, {"clip_x0": False}) == {"variance": "small", "clip_x0": False}


def test_unknown_methods_and_samplers_are_usage_errors():
    with pytest.raises(UsageError, match="did you mean drift"):
        find_method("drifft")
    with pytest.raises(UsageError, match="did you mean ddim"):
        find_sampler("ddpm", "dddim")
    with pytest.raises(UsageError, match="generates no images"):
        find_sampler("mae", None)
    with pytest.raises(UsageError, match="eta"):
        METHODS["ddpm"].samplers["ddim"].recorded_options(None, None, {"etaa": 1.0})


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("ddpm", {"beta_start": 0.02, "beta_end": 0.01}, "beta_end 0.01 lies below beta_start 0.02"),
        ("flow", {"label_dropout": 0.2}, "no labels to drop without class_conditional"),
        ("drift", {"guidance_max": 2.0}, "needs class_conditional, and unconditional images"),
        ("drift", {"guidance_power": 5.0}, "need guidance_max above 1"),
        ("drift", {"class_conditional": True, "unconditional": 8}, "weight 0 without guidance"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(method, settings, says):
    with pytest.raises(ValidationError, match=says):
        METHODS[method].config(**settings)


@pytest.mark.parametrize(
    ("method", "network", "says"),
    [
        ("mae", {"decoder": False}, "a MAE fills in images, which takes a decoder"),
        ("classifier", {"num_classes": 2}, "`model.num_classes` 2: photos has 3 classes"),
    ],
)
def test_an_encoders_network_that_does_not_fit_the_images_is_refused(method, network, says):
    pack = SimpleNamespace(classes=("a", "b", "c"), path="photos")
    with pytest.raises(UsageError, match=says):
        METHODS[method].complete(METHODS[method].config(), MAEResNetConfig(**network), pack)
