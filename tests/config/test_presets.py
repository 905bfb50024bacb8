"""Every preset resolves for its methods, and its network makes images from noise in one step."""

import contextlib

import pytest
import torch

from driftkit.config.layers import preset_names
from driftkit.errors import UsageError
from driftkit.methods.registry import METHODS
from driftkit.models.registry import MODELS, build_network
from driftkit.protocols import Condition
from driftkit.training.train_config import resolve_config

IMAGE_SIZE = {"demo": 16, "imagenet256-ablation": 32}  # else 32; that of ImageNet is of its latents
CLASSES = {"imagenet256-ablation": 1000}
MILLIONS = {  # of the networks that are trained with drifting, at these sizes and classes
    "cifar10-multires": 38.3,
    "cifar10-dinov2-last": 38.3,
    "cifar10-mae": 38.6,
    "cifar10-efficientnet": 38.6,
    "cifar10-paper": 33.7,
    "imagenet256-ablation": 133.3,
}


def resolved(preset, method):
    """The config of a method; None where the preset is not for it."""
    with contextlib.suppress(UsageError):
        return resolve_config(preset=preset, objective=method)[0]


@pytest.mark.parametrize(("preset", "size"), [("cifar10-paper", "S"), ("imagenet256-ablation", "B")])
def test_the_size_of_a_preset_can_be_another(preset, size):
    assert resolved(preset, "drift").model.size == size
    larger, _ = resolve_config(preset=preset, objective="drift", assignments=["model.size=L"])
    assert (larger.model.hidden_size, larger.model.depth, larger.model.size) == (1024, 24, "L")


@pytest.mark.parametrize("preset", preset_names())
def test_one_step_of_every_preset_gives_images(preset):
    side, classes = IMAGE_SIZE.get(preset, 32), CLASSES.get(preset, 10)
    methods = {name: resolved(preset, name) for name in METHODS}
    methods = {name: config for name, config in methods.items() if config is not None}
    assert methods
    for name, config in methods.items():
        if MODELS[config.model.kind].role != "generator":
            continue
        filled = {"num_classes": classes if config.objective.class_conditional else 0}
        filled["guided"] = config.objective.trains_guidance
        with torch.device("meta"):
            network = build_network(config.model.model_copy(update=filled), image_size=side)
            labels = torch.zeros(2, dtype=torch.long) if filled["num_classes"] else None
            images = network(torch.zeros(2, 3, side, side), torch.zeros(2), Condition(labels))
        assert images.shape == (2, 3, side, side)
        if name == "drift" and preset in MILLIONS:
            count = sum(p.numel() for p in network.parameters()) / 1e6
            assert count == pytest.approx(MILLIONS[preset], abs=0.1), preset


def test_settings_of_the_one_encoder_of_a_preset_are_not_those_of_several():
    several = {"encoder": ["pixel", "resnet18?random=true"]}
    objective = resolve_config(preset="cifar10-dinov2-last", options={"objective": several})[0].objective
    assert objective.encoder == tuple(several["encoder"])
    assert (objective.taps, objective.input_size, objective.map_norm) == (None, None, None)
    assert objective.feature_set == "paper-full"
    alone = resolve_config(preset="cifar10-dinov2-last", options={"objective": {"encoder": ["dinov2"]}})[0].objective
    assert alone.taps == ("block12",)
    with pytest.raises(UsageError, match="`taps` is for one encoder"):
        resolve_config(preset="cifar10-dinov2-last", options={"objective": {**several, "taps": ["layer1"]}})
