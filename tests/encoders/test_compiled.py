"""Encoders as compiled functions from images to feature groups, and frozen weights in the type of autocast."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import feature_set
from driftkit.encoders.trained_encoder import MAEEncoder
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.methods.registry import METHODS
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.runtime.ranks import Ranks
from tests.conftest import first_is_fast, setting
from tests.encoders.loading import load

# One of each architecture: residual with batch norms, transformer, ConvNeXt with layer norms, convolutions with "same".
SIZES = {"mocov2": 64, "dinov2-multires": 56, "convnextv2": 64, "efficientnet-lite0": 64}

# Deviations of cells that hardly vary are roots of differences near STD_EPSILON: rounding grows to its root there.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def mae_encoder(*, input_size: int) -> MAEEncoder:
    encoder = MAEEncoder("mae", MAEResNet(MAEResNetConfig(base_channels=8)), input_size=input_size)
    encoder.freeze()
    return encoder


@pytest.mark.parametrize("name", first_is_fast("mae", *SIZES))
def test_resizing_network_and_feature_set_are_one_graph(name):
    size = SIZES.get(name, 48)
    encoder = load(name, random_weights=True, input_size=size) if name in SIZES else mae_encoder(input_size=size)
    features = feature_set(encoder.feature_set)
    torch._dynamo.reset()
    found = torch._dynamo.explain(lambda images: features(encoder.maps(images), images))(torch.randn(2, 3, 32, 32))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.slow
@pytest.mark.parametrize(("size", "several"), [(16, False), (24, False), (24, True)])  # as they come, and resized
def test_compiled_features_and_their_gradients_are_the_eager_ones(monkeypatch, size, several):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    encoder = mae_encoder(input_size=size)
    union = EncoderUnion.of(encoder)
    if several:
        union = EncoderUnion([replace(union.members[0], label=label) for label in ("a", "b")])
    eager, compiled = (Drifting(DriftingConfig(), union, ranks=Ranks(), compiled=c) for c in (False, True))
    for count in (4, 3):
        images = [torch.randn(count, 3, 16, 16).requires_grad_()]
        images.append(images[0].detach().clone().requires_grad_())
        groups = [one._features(x) for one, x in zip((eager, compiled), images, strict=True)]
        for mine, other in zip(*groups, strict=True):
            assert (mine.map, mine.kind) == (other.map, other.kind)
            torch.testing.assert_close(mine.values, other.values, **ROUNDING)
            (mine.values.sin().mean() + other.values.sin().mean()).backward(retain_graph=True)
        torch.testing.assert_close(images[0].grad, images[1].grad, rtol=1e-3, atol=1e-5)
        with torch.no_grad():  # as real images are encoded
            torch.testing.assert_close(compiled._features(images[1])[0].values, groups[0][0].values, **ROUNDING)


@pytest.mark.parametrize("name", first_is_fast("mae", "dinov2-multires"))
def test_weights_stored_in_bfloat16_give_the_features_of_autocast(name):
    size = SIZES.get(name, 32)
    encoder = load(name, random_weights=True, input_size=size) if name in SIZES else mae_encoder(input_size=size)
    images = torch.randn(2, 3, 32, 32)

    def features_and_gradient():
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = [m.values for m in encoder.maps(x)]
        torch.stack([values.float().square().mean() for values in maps]).sum().backward()
        return [*maps, x.grad]

    before = features_and_gradient()
    encoder.prepare(torch.device("cpu"), torch.bfloat16)
    dtypes = {type(m).__name__: {p.dtype for p in m.parameters(recurse=False)} for m in encoder.modules()}
    assert dtypes["Conv2d"] == {torch.bfloat16}
    norms = [kinds for layer, kinds in dtypes.items() if "Norm" in layer]
    assert set().union(*norms) == {torch.float32}
    for old, new in zip(before, features_and_gradient(), strict=True):
        assert torch.equal(old, new)


def test_encoders_of_grouped_convolutions_stay_float32_on_a_cpu():
    encoder = load("efficientnet-lite0", random_weights=True, input_size=32)
    images = torch.randn(2, 3, 32, 32)
    encoder.prepare(torch.device("cpu"), torch.bfloat16)
    wanted = [m.values for m in encoder.maps(images)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [m.values for m in encoder.maps(images)]
    assert {values.dtype for values in found} == {torch.float32}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_stores_weights_once_and_records_the_digest_of_the_original_ones(tmp_path, dtype):
    encoder = load("dinov2", random_weights=True, input_size=28)
    config = DriftingConfig(encoder="dinov2", random_weights=True, input_size=28)
    built = METHODS["drift"].build(config, setting(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), dtype=dtype))
    assert built.encoder["weights_digest"] == encoder.weights_digest
    assert built.encoder["parameters"] == encoder.num_parameters
    kinds = {p.dtype for p in built.objective.encoders.encoders[0].parameters()}
    assert kinds == {torch.float32, dtype}
