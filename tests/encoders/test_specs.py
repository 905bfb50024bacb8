"""The table of encoders: every row is a network that timm has, with the shapes the row says."""

import dataclasses

import pytest
import timm
import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import feature_set, field_calls
from driftkit.encoders.resizing import resize
from driftkit.encoders.specs import NORMALISATIONS, PACKAGED, SPECS
from driftkit.encoders.timm_encoder import timm_spec
from driftkit.errors import UsageError
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.protocols import Batch, Execution
from driftkit.runtime.ranks import Ranks
from driftkit.scoring.extractors import dinov2
from driftkit.storage.files import state_digest, write_tensors
from driftkit.storage.images import to_float
from tests.encoders.loading import load

# Of the same families as the rows, with the same names of layers, but small enough to run.
SMALL = {
    **dict.fromkeys(PACKAGED, "tf_efficientnet_lite0.in1k"),
    "resnet18": "resnet10t.c3_in1k",
    "dinov2": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-last": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-multires": "vit_small_patch14_dinov2.lvd142m",
    "convnextv2": "convnextv2_atto.fcmae_ft_in1k",
    "convnextv2-fcmae": "convnextv2_atto.fcmae",
    "mocov2": "resnet26.bt_in1k",
    "dinov3": "vit_small_patch16_dinov3.lvd1689m",
    "eva02": "eva02_tiny_patch14_224.mim_in22k",
    "siglip2": "vit_base_patch32_siglip_256.v2_webli",
    "clip": "vit_base_patch32_clip_quickgelu_224.openai",
    "aimv2": "aimv2_large_patch14_224.apple_pt_dist",
    "radio": "vit_base_patch16_radio_v3.c_radio",
}
VECTORS = {"multires": 18, "last": 18, "global": 1}


@pytest.mark.parametrize("name", list(SPECS))
def test_a_row_is_true_of_the_full_network(name):
    """On the meta device, where a network of 300 M parameters costs neither memory nor time."""
    spec = SPECS[name]
    encoder = load(name, random_weights=True, device="meta")
    assert encoder.num_parameters == spec.parameters
    images = torch.zeros(2, 3, 32, 32, device="meta")
    maps = encoder.maps(images)
    assert [m.name for m in maps] == [tap for tap, _ in spec.taps]
    side = [1] if spec.reading == "class token" else [spec.input_size // stride for stride in spec.strides]
    assert [m.values.shape[-1] for m in maps] == side
    groups = feature_set(encoder.feature_set)(maps, images)
    paper = 42 + 42 + 26 + 6 + 2  # maps of 16, 8, 4 and 2 positions a side; the input's RMS and pixels
    wanted = paper if spec.feature_set == "paper" else VECTORS[spec.feature_set] * len(spec.taps)
    assert sum(g.values.shape[0] for g in groups) == wanted
    cfg = timm.models.get_pretrained_cfg(spec.model)
    for got, want in zip(NORMALISATIONS[spec.normalisation], (cfg.mean, cfg.std), strict=True):
        assert got == pytest.approx(want)


def test_the_rows_that_predecessors_had_give_one_vector_of_their_width():
    for name, channels in {"resnet18": 128, "dinov2": 768}.items():
        encoder = load(name, random_weights=True, device="meta")
        images = torch.zeros(2, 3, 32, 32, device="meta")
        (call,) = field_calls(feature_set(encoder.feature_set)(encoder.maps(images), images))
        assert (call.vectors, call.channels) == (1, channels)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("aimv2", "radio")])
def test_a_small_network_of_the_family_trains_a_generator(name, monkeypatch):
    spec = dataclasses.replace(SPECS[name], model=SMALL[name])
    monkeypatch.setitem(SPECS, name, spec)
    side = 64 if "patch32" in spec.model else 2 * spec.patch  # a larger patch stands in for one of 16 pixels
    encoder = load(name, random_weights=True, input_size=side)
    objective = Drifting(DriftingConfig(encoder=name), EncoderUnion.of(encoder), ranks=Ranks())
    shift = torch.nn.Parameter(torch.zeros(3, 1, 1))

    class Generator(torch.nn.Module):
        def forward(self, x, t, condition):
            return 0.3 * x + shift

    images = torch.rand(4, 3, 32, 32) * 2 - 1
    outcome = objective.accumulate(Generator(), Batch(images, torch.zeros(4), range(4), 0, 0), Execution())
    assert torch.isfinite(outcome.total)
    assert shift.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.weights
@pytest.mark.parametrize("name", list(SPECS))
def test_published_weights_load(name):
    encoder = load(name)
    assert all(torch.isfinite(m.values).all() for m in encoder.maps(torch.zeros(1, 3, 32, 32)))


@pytest.fixture
def small_dinov2(monkeypatch):
    for name in ("dinov2", "dinov2-last", "dinov2-multires"):
        monkeypatch.setitem(SPECS, name, dataclasses.replace(SPECS[name], model=SMALL[name]))


@pytest.mark.slow
def test_class_token_and_last_map_are_what_the_network_gives_after_its_norm(small_dinov2):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    encoder = load("dinov2", random_weights=True, input_size=56)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(SMALL["dinov2"], num_classes=0, img_size=56).eval()
    want = network.forward_features((resize(images, 56) / 2 + 0.5 - encoder.mean) / encoder.std)
    (token,) = encoder.maps(images)
    assert torch.allclose(token.values[:, :, 0, 0], want[:, 0], atol=1e-5)
    (patches,) = load("dinov2-last", random_weights=True, input_size=56).maps(images)
    assert torch.allclose(patches.values.flatten(2).transpose(1, 2), want[:, 1:], atol=1e-5)


def test_position_embeddings_of_the_native_size_are_resized(small_dinov2, tmp_path):
    native = timm.create_model(SMALL["dinov2"], num_classes=0)
    write_tensors(tmp_path / "native.safetensors", native.state_dict())
    encoder = load("dinov2-last", encoder_weights=tmp_path / "native.safetensors", input_size=56)
    assert native.pos_embed.shape[1] == 1370
    assert encoder.network.pos_embed.shape[1] == 17
    ours = encoder.network.pos_embed
    assert torch.equal(ours[:, :1], native.pos_embed[:, :1])
    for row in range(4):
        for column in range(4):
            want = bicubic_position(native.pos_embed[0, 1:].detach().double().view(37, 37, -1), row, column)
            assert torch.allclose(ours[0, 1 + 4 * row + column].double(), want, atol=1e-6)


def bicubic_position(grid, row, column):
    """One position of a grid of 4x4 as DINOv2's code takes it: cubic convolution, a = -0.75, at a scale of 4.1/37."""

    def cubic(distance, a=-0.75):
        d = abs(distance)
        return (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    total = 0.0
    y, x = ((place + 0.5) * 37 / 4.1 - 0.5 for place in (row, column))
    for i in range(int(y) - 1, int(y) + 3):
        for j in range(int(x) - 1, int(x) + 3):
            total = total + cubic(y - i) * cubic(x - j) * grid[i, j]
    return total


@pytest.mark.slow
def test_training_and_scoring_see_the_same_features_of_dinov2(small_dinov2, tmp_path):
    """From weights of 518 pixels, at 224: position embeddings are resized the same way for both."""
    native = timm.create_model(SMALL["dinov2"], num_classes=0)
    torch.nn.init.normal_(native.pos_embed)
    write_tensors(tmp_path / "native.safetensors", native.state_dict())
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    scored = dinov2(tmp_path / "native.safetensors", torch.device("cpu"), model=SMALL["dinov2"])
    want, _ = scored.embed(images)
    (token,) = load("dinov2", encoder_weights=tmp_path / "native.safetensors").maps(to_float(images))
    assert torch.allclose(token.values[:, :, 0, 0], want, atol=1e-4)
    elsewhere = timm.create_model(SMALL["dinov2"], num_classes=0, img_size=224)
    state = timm.models.vision_transformer.checkpoint_filter_fn(native.state_dict(), elsewhere)
    assert not torch.allclose(load("dinov2", encoder_weights=tmp_path / "native.safetensors").network.pos_embed,
                              state["pos_embed"], atol=1e-2)  # fmt: skip


@pytest.mark.parametrize("map_norm", ["none", "layer", "final"])
def test_maps_of_a_transformer_are_raw_normalised_by_position_or_by_its_last_norm(map_norm, small_dinov2):
    images = torch.rand(1, 3, 56, 56) * 2 - 1
    encoder = load("dinov2-multires", random_weights=True, input_size=56, map_norm=map_norm)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(SMALL["dinov2"], num_classes=0, img_size=56).eval()
    tokens = network.patch_embed((images / 2 + 0.5 - encoder.mean) / encoder.std)
    tokens = network._pos_embed(tokens)
    for block, got in zip(network.blocks, range(12), strict=True):
        tokens = block(tokens)
        if got % 3 != 2:
            continue
        want = tokens
        if map_norm == "final":
            want = network.norm(tokens)
        if map_norm == "layer":
            wide = tokens.double()
            want = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, unbiased=False, keepdim=True).sqrt() + 1e-3)
        values = encoder.maps(images)[got // 3].values
        assert torch.allclose(values.flatten(2).mT.double(), want[:, 1:].double(), atol=1e-4)


def test_rows_say_which_norm_their_references_took():
    norms = {name: spec.map_norm for name, spec in SPECS.items() if spec.map_norm != "none"}
    assert norms == {"convnextv2": "layer", "convnextv2-fcmae": "layer", "dinov2": "final", "dinov2-last": "final",
                     "dinov2-multires": "final"}  # fmt: skip
    assert "fcmae_ft_in22k_in1k" in SPECS["convnextv2"].model
    assert SPECS["convnextv2"].data == ("ImageNet-22k", "ImageNet-1k")
    assert SPECS["convnextv2-fcmae"].data == ("ImageNet-1k",)


def test_layers_behind_the_last_tap_cost_nothing():
    whole = load("mocov2", random_weights=True, device="meta").num_parameters
    assert load("mocov2", random_weights=True, taps=["layer2"], device="meta").num_parameters < whole / 10


def test_taps_are_named_by_layer_and_come_in_their_order():
    encoder = load("mocov2", random_weights=True, taps=["layer3", "act1"], device="meta")
    assert [m.name for m in encoder.maps(torch.zeros(1, 3, 32, 32, device="meta"))] == ["act1", "layer3"]
    with pytest.raises(UsageError, match=r"has no layer layer9; expected some of act1, layer1"):
        load("mocov2", random_weights=True, taps=["layer9"], device="meta")
    with pytest.raises(UsageError, match="twice"):
        load("mocov2", random_weights=True, taps=["layer1", "layer1"], device="meta")
    with pytest.raises(UsageError, match="`taps`"):
        load("pixel", taps=["layer1"])


def test_only_layers_that_are_read_must_fit_the_input_size():
    assert load("mocov2", random_weights=True, taps=["layer2"], input_size=40, device="meta").input_size == 40
    with pytest.raises(UsageError, match="32 or 64"):
        load("resnet18", random_weights=True, taps=["layer4"], input_size=40, device="meta")


def test_clip_has_the_activation_its_weights_were_trained_with():
    encoder = load("clip", random_weights=True, device="meta")
    assert "quickgelu" in type(encoder.network.blocks[0].mlp.act).__name__.lower()


@pytest.mark.parametrize("model", ["tf_efficientnet_b3", "coat_tiny", "inception_v3", "levit_128s"])
def test_odd_timm_models_have_their_own_input_size_and_layers_of_different_names(model):
    encoder = load(f"timm:{model}", random_weights=True, device="meta")
    maps = encoder.maps(torch.zeros(2, 3, 32, 32, device="meta"))
    assert len({m.name for m in maps}) == len(maps) > 1


def test_any_timm_model_is_tapped_at_its_quarters_or_its_stages():
    plain = timm_spec("timm:vit_tiny_patch16_224")
    assert [name for name, _ in plain.taps] == ["block3", "block6", "block9", "block12"]
    staged = timm_spec("timm:resnet26")
    assert [name for name, _ in staged.taps] == ["layer1", "layer2", "layer3", "layer4"]
    assert (staged.input_size, staged.patch) == (224, 1)  # convolutions take any size
    encoder = load("timm:test_vit2", random_weights=True)
    maps = encoder.maps(torch.zeros(1, 3, 32, 32))
    assert encoder.name == "timm:test_vit2"
    assert len(maps) == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [("timm:resnet5", "did you mean timm:resnet50"), ("timm:resnet50.nobody", "it has resnet50.a1_in1k")],
)
def test_models_that_timm_lacks_are_named(name, says):
    with pytest.raises(UsageError, match=says):
        load(name, random_weights=True)


@pytest.mark.parametrize(("name", "size", "nearest"), [("dinov2", 100, "98 or 112"), ("clip", 10, "16")])
def test_an_input_size_that_the_patch_does_not_divide_names_the_nearest(name, size, nearest):
    with pytest.raises(UsageError, match=nearest):
        load(name, input_size=size, random_weights=True)


def test_random_weights_are_the_same_each_time():
    one, two = (load("timm:test_vit2", random_weights=True) for _ in range(2))
    assert state_digest(one.state_dict()) == state_digest(two.state_dict())
