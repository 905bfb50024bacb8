"""Encoders: their shapes, their weights files, their gradients, and what they refuse."""

import json

import pytest
import timm
import torch

from driftkit.encoders.feature_sets import FEATURE_SETS, STD_EPSILON, field_calls, mean_and_std
from driftkit.encoders.frozen_encoder import layer_normalised
from driftkit.encoders.trained_encoder import MAEEncoder
from driftkit.encoders.weights import read_weights
from driftkit.errors import ArtifactError, UsageError
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.protocols import FeatureMap
from driftkit.storage.files import write_tensors
from tests.conftest import driftkit, train_tiny
from tests.encoders.loading import load

SHAPES = {
    "dinov2-multires": (
        [("block3", 768, 16), ("block6", 768, 16), ("block9", 768, 16), ("block12", 768, 16)],
        [(768, 72)],
    ),
    "convnextv2": (
        [("stage1", 128, 56), ("stage2", 256, 28), ("stage3", 512, 14), ("stage4", 1024, 7)],
        [(128, 18), (256, 18), (512, 18), (1024, 18)],
    ),
    "mocov2": (
        [("layer1", 256, 56), ("layer2", 512, 28), ("layer3", 1024, 14), ("layer4", 2048, 7)],
        [(256, 18), (512, 18), (1024, 18), (2048, 18)],
    ),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_probe_shows_the_maps_and_field_calls(name):
    result = driftkit("probe-encoder", name, "--random-weights", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    maps, calls = SHAPES[name]
    assert document["encoder"] == name
    assert document["input_size"] == 224
    assert [(m["name"], m["channels"], m["height"]) for m in document["maps"]] == maps
    assert all(m["vectors"] == 18 and m["height"] == m["width"] for m in document["maps"])
    assert [(c["channels"], c["vectors"]) for c in document["field_calls"]] == calls
    assert document["weights"] == "random"


def test_pixel_encoder_is_the_flat_image():
    encoder = load("pixel", image_size=8)
    images = torch.randn(2, 3, 8, 8)
    (only,) = encoder.maps(images)
    assert torch.equal(only.values[:, :, 0, 0], images.flatten(1))


def moco_file(tmp_path, **changes):
    network = timm.create_model("resnet50", num_classes=0)
    state = {f"module.encoder_q.{k}": v for k, v in network.state_dict().items()}
    state |= {
        "module.encoder_q.fc.0.weight": torch.zeros(2, 2),
        "module.encoder_k.conv1.weight": torch.zeros(1),
        "module.queue": torch.zeros(2),
    }
    state = {k: v for k, v in {**state, **changes}.items() if v is not None}
    path = tmp_path / "moco.pth.tar"
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {}}, path)
    return path, network


def test_official_moco_layout_loads_and_its_features_are_those_of_the_network(tmp_path):
    path, network = moco_file(tmp_path)
    encoder = load("mocov2", encoder_weights=path, input_size=64)
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
    )
    want = network.eval().forward_features((images / 2 + 0.5 - mean) / std)
    assert torch.allclose(encoder.maps(images)[-1].values, want, atol=1e-5)
    assert not encoder.random_weights
    assert len(encoder.weights_digest) == 64


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"module.encoder_q.layer1.0.conv1.weight": None}, "lacks layer1.0.conv1.weight"),
        ({"module.encoder_q.extra": torch.zeros(1)}, "unknown extra"),
        ({"module.encoder_q.conv1.weight": torch.zeros(3)}, "conv1.weight is"),
    ],
)
def test_wrong_moco_checkpoints_are_refused_by_name(tmp_path, changes, says):
    path, _ = moco_file(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=says):
        load("mocov2", encoder_weights=path)


def test_a_file_of_another_network_is_refused(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(ArtifactError, match=r"module\.encoder_q"):
        load("mocov2", encoder_weights=tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="does not fit"):
        load("convnextv2", encoder_weights=tmp_path / "w.safetensors")


def test_nothing_in_a_weights_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(ArtifactError, match="nothing in it was run"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["convnextv2", "mocov2", "dinov2-multires"])
def test_missing_weights_name_the_file_and_the_option(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    result = driftkit("probe-encoder", name)
    assert result.exit_code == 3, result.output
    assert "--encoder-weights" in result.stderr
    assert "model.safetensors" in result.stderr or "moco_v2_800ep_pretrain.pth.tar" in result.stderr


def test_mae_run_is_an_encoder_with_the_papers_feature_set(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    result = driftkit("probe-encoder", tmp_path / "mae", "--json")
    document = json.loads(result.stdout)
    assert document["feature_set"] == "paper"
    assert [m["name"] for m in document["maps"]] == ["stage1", "stage2", "stage3", "stage4", "input"]
    encoder = load(str(tmp_path / "mae"))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    sum(m.values.sum() for m in encoder.maps(images)).backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.train().training


def test_a_mae_run_exports_its_encoder_as_one_file(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    images = torch.randn(2, 3, 8, 8)
    run, file = (load(str(tmp_path / p)) for p in ("mae", "mae/encoder.safetensors"))
    assert run.weights_digest == file.weights_digest
    assert run.input_size == file.input_size == 8
    for a, b in zip(run.maps(images), file.maps(images), strict=True):
        assert torch.equal(a.values, b.values)
    train_tiny(tmp_path / "drift", "drift", "--encoder", tmp_path / "mae" / "encoder.safetensors")
    weights = next((tmp_path / "mae" / "checkpoints").rglob("ema.safetensors"))
    with pytest.raises(UsageError, match="was not exported"):
        load(str(weights))


def test_a_mae_is_read_at_some_of_its_scales(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    whole, part = (load(str(tmp_path / "mae"), taps=taps) for taps in (None, ["stage3", "stage1"]))
    images = torch.randn(2, 3, 8, 8)
    assert [m.name for m in part.maps(images)] == ["stage1", "stage3"]
    assert torch.equal(part.maps(images)[1].values, whole.maps(images)[2].values)
    assert part.num_parameters < whole.num_parameters / 2  # the last stage is the largest
    assert part.weights_digest == whole.weights_digest
    with pytest.raises(UsageError, match=r"expected some of stem, stage1\.block1, stage1, stage2\.block1, .*, stage4$"):
        load(str(tmp_path / "mae"), taps=["stage5"])


def resnet(*num_blocks, width=8):
    return MAEResNet(MAEResNetConfig(base_channels=width, num_blocks=num_blocks)).eval()


def test_a_mae_is_read_at_its_stem_and_blocks():
    network, images = resnet(1, 2, 1, 3), torch.randn(2, 3, 16, 16)
    taps = ["stage4.block2", "stem", "stage2.block1", "stage2"]
    encoder = MAEEncoder("mae", network, input_size=16, taps=taps)
    encoder.freeze()
    stem = network.stem(images)
    first = network.stages[1][0](network.stages[0](stem))
    second = network.stages[1](network.stages[0](stem))
    last = network.stages[3][1](network.stages[3][0](network.stages[2](second)))
    maps = encoder.maps(images)
    assert [m.name for m in maps] == ["stem", "stage2.block1", "stage2", "stage4.block2"]
    for got, want in zip(maps, (stem, first, second, last), strict=True):
        assert torch.equal(got.values, want)
    unused = [network.stages[3][2], network.decoder, network.output]
    whole = sum(p.numel() for p in network.parameters())
    assert encoder.num_parameters == whole - sum(p.numel() for part in unused for p in part.parameters())


def test_the_release_has_86_terms_of_6734_vectors_at_32_pixels():
    """12 maps: the stem, every second block of stages of 3, 4, 6 and 3 blocks, and the stages; 7 terms each, 2 more."""
    encoder = MAEEncoder("mae", resnet(3, 4, 6, 3, width=4), input_size=32, feature_set="paper-full")
    blocks = ["1.block2", "2.block2", "2.block4", "3.block2", "3.block4", "3.block6", "4.block2"]
    assert set(encoder.taps) == {"stem", "stage1", "stage2", "stage3", "stage4", *(f"stage{b}" for b in blocks)}
    images = torch.randn(1, 3, 32, 32)
    maps = encoder.maps(images)
    assert [m.values.shape[-1] for m in maps] == [32] * 3 + [16] * 3 + [8] * 4 + [4] * 2
    groups = FEATURE_SETS["paper-full"](maps, images)
    assert len({g.name for g in groups}) == 12 * 7 + 2 == 86
    assert sum(g.values.shape[0] for g in groups) == 3 * 1666 + 3 * 418 + 4 * 106 + 2 * 28 + 2 == 6734


def test_every_set_but_the_full_one_reads_a_mae_at_its_stages():
    for name in (None, *FEATURE_SETS):
        taps = MAEEncoder("mae", resnet(2, 1, 1, 2), input_size=16, feature_set=name).taps
        stages = ["stage1", "stage2", "stage3", "stage4"]
        full = ["stem", "stage1.block2", "stage1", "stage2", "stage3", "stage4.block2", "stage4"]
        assert taps == (full if name == "paper-full" else stages)


@pytest.mark.parametrize("side", [4, 6, 8])
def test_the_full_set_equals_plain_loops_in_float64(side):
    values, images = torch.randn(2, 3, side, side), torch.randn(2, 3, 8, 8)
    groups = {g.name: g.values.double() for g in FEATURE_SETS["paper-full"]([FeatureMap("m", values)], images)}
    wide = values.double()
    for row in range(side):
        for column in range(side):
            assert torch.equal(groups["m/locations"][row * side + column], wide[:, :, row, column])
    for label, cell in {"global": side, "2x2": 2, "4x4": 4}.items():
        mean, std = groups.pop(f"m/{label}-mean"), groups.pop(f"m/{label}-std")
        assert len(mean) == len(std) == (side // cell) ** 2
        for row in range(side // cell):
            for column in range(side // cell):
                part = wide[:, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
                place = row * (side // cell) + column
                assert torch.allclose(mean[place], part.mean((2, 3)), atol=1e-6)
                assert torch.allclose(std[place], (part.var((2, 3), unbiased=False) + 1e-6).sqrt(), atol=1e-5)
    rms = (images.double().square().mean((2, 3)) + 1e-6).sqrt()
    assert torch.allclose(groups["input/rms"][0], rms, atol=1e-6)
    assert torch.equal(groups["input/pixels"][0], images.double().flatten(1))
    assert set(groups) == {"m/locations", "input/rms", "input/pixels"}


@pytest.mark.slow
def test_a_mae_compiles_as_one_graph_with_its_resizing_for_changing_batch_sizes():
    encoder = MAEEncoder(
        "mae", resnet(1, 2, 1, 1), input_size=16, map_norm="layer", resize_mode="bilinear", feature_set="paper-full"
    )
    encoder.freeze()
    check_compiled(encoder, side=8)


def check_compiled(encoder, *, side):
    compiled = torch.compile(encoder._read, backend="aot_eager", fullgraph=True)
    for count in (2, 3):
        images = torch.rand(count, 3, side, side) * 2 - 1
        gradients = []
        for read in (encoder._read, compiled):
            inputs = images.clone().requires_grad_()
            outputs = read(inputs)
            sum(o.float().square().mean() for o in outputs).backward()
            gradients.append((outputs, inputs.grad))
        for a, b in zip(*(g[0] for g in gradients), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-6)
        assert gradients[1][1].abs().sum() > 0


@pytest.mark.slow
def test_a_network_of_timm_compiles_as_one_graph_with_its_resizing():
    check_compiled(load("timm:test_vit2", random_weights=True, input_size=64), side=32)


@pytest.mark.parametrize("options", [{"map_norm": "layer"}, {"resize": "bilinear"}])
def test_map_norm_and_resizing_are_part_of_what_features_follow_from(options, tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    for name in (str(tmp_path / "mae"), str(tmp_path / "mae" / "encoder.safetensors"), "efficientnet-lite0"):
        known = {} if name != "efficientnet-lite0" else {"random_weights": True}
        plain, changed = (load(name, input_size=32, **known, **o) for o in ({}, options))
        assert (plain.describe()["map_norm"], plain.describe()["resize"]) == ("none", "bicubic")
        assert plain.describe() | options == changed.describe() != plain.describe()
        images = torch.rand(1, 3, 24, 24)
        for a, b in zip(plain.maps(images), changed.maps(images), strict=True):
            assert a.values.shape == b.values.shape
            assert not torch.allclose(a.values, b.values, atol=1e-3)


def test_a_layer_norm_of_a_map_equals_plain_loops_in_float64():
    values = torch.randn(2, 5, 3, 4).mul(7).add(100).to(torch.bfloat16)
    got = layer_normalised(values)
    assert got.dtype == torch.float32
    for image in range(2):
        for row in range(3):
            for column in range(4):
                position = values[image, :, row, column].double()
                want = (position - position.mean()) / (position.var(unbiased=False).sqrt() + 1e-3)
                assert torch.allclose(got[image, :, row, column].double(), want, atol=1e-4)


def test_a_layer_norm_of_a_constant_position_is_zero_with_a_finite_gradient():
    values = torch.full((1, 4, 2, 2), 3.0, requires_grad=True)
    result = layer_normalised(values)
    result.square().sum().backward()
    assert result.abs().max() == 0
    assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize("map_norm", ["layer", "final"])
def test_pixels_are_not_normalised(map_norm):
    with pytest.raises(UsageError, match=f"`map_norm` {map_norm}: encoder pixel .*; expected none"):
        load("pixel", map_norm=map_norm)
    assert load("pixel", map_norm="none").map_norm == "none"


def test_a_final_norm_that_is_not_there_or_does_not_fit_is_refused(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    for name in (str(tmp_path / "mae"), "efficientnet-lite0", "convnextv2", "mocov2"):
        known = {} if name.startswith("/") else {"random_weights": True, "device": "meta"}
        with pytest.raises(UsageError, match=r"`map_norm` final: .* has no final norm; expected none or layer"):
            load(name, map_norm="final", **known)
    swin = {"random_weights": True, "device": "meta", "map_norm": "final"}
    with pytest.raises(UsageError, match=r"takes 768 channels, .* has 96; expected none or layer, or other `taps`"):
        load("timm:swin_tiny_patch4_window7_224", **swin)


@pytest.mark.parametrize("words", [["--map-norm", "layer"], ["--resize", "bilinear"]])
def test_train_and_probe_take_the_settings_and_write_them_down(words, tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    train_tiny(tmp_path / "drift", "drift", "--encoder", tmp_path / "mae", "--input-size", 16, *words)
    manifest = json.loads((tmp_path / "drift" / "manifest.json").read_text())
    key = words[0][2:].replace("-", "_")
    assert manifest["config"]["objective"][key] == manifest["encoder"][key] == words[1]
    assert manifest["encoder"]["taps"] == ["stage1", "stage2", "stage3", "stage4"]
    document = json.loads(driftkit("probe-encoder", tmp_path / "mae", *words, "--json").stdout)
    assert document[key] == words[1]
    for command in (["probe-encoder", tmp_path / "mae"], ["train", "--encoder", tmp_path / "mae"]):
        result = driftkit(*command, words[0], "other")
        assert result.exit_code == 2
        assert "other" in result.stderr


def test_a_mae_trains_a_generator_with_the_full_set(tmp_path):
    train_tiny(tmp_path / "mae", "mae", "--set", "model.num_blocks=[1,2,1,1]")
    train_tiny(tmp_path / "drift", "drift", "--encoder", tmp_path / "mae", "--feature-set", "paper-full")
    manifest = json.loads((tmp_path / "drift" / "manifest.json").read_text())
    assert manifest["encoder"]["taps"] == ["stem", "stage1", "stage2.block2", "stage2", "stage3", "stage4"]
    assert any(entry["architecture"].startswith("the pixels") for entry in manifest["encoder"]["lineage"])


def test_the_detailed_set_is_that_of_multires_with_every_location():
    maps, images = [FeatureMap("m", torch.randn(2, 3, 8, 8))], torch.randn(2, 3, 8, 8)
    groups = {g.name: g.values for g in FEATURE_SETS["detailed"](maps, images)}
    pooled = {g.name: g.values for g in FEATURE_SETS["multires"](maps, images)}
    assert list(groups) == list(pooled) == ["m/locations", "m/mean", "m/std"]
    assert torch.equal(groups["m/locations"], maps[0].values.flatten(2).permute(2, 0, 1))
    assert all(torch.equal(groups[name], pooled[name]) for name in ("m/mean", "m/std"))


@pytest.mark.parametrize("name", ["multires", "paper", "paper-full", "detailed", "last", "global", "locations"])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8, 14])
def test_no_vector_of_a_map_is_constant(name, side):
    """Statistics over cells of one position would say nothing, and count as much as the others."""
    torch.manual_seed(0)
    groups = FEATURE_SETS[name]([FeatureMap("m", torch.randn(6, 4, side, side))], torch.randn(6, 3, 16, 16))
    for group in groups:
        assert (group.values.std(dim=1) > 1e-4).all(), group.name
    if name == "paper":
        for one in groups:
            for other in groups:
                assert (
                    one is other or one.values.shape != other.values.shape or not torch.equal(one.values, other.values)
                )


def test_a_run_that_is_no_mae_is_no_encoder(tmp_path):
    train_tiny(tmp_path / "ddpm", "ddpm")
    with pytest.raises(UsageError, match="trained no encoder"):
        load(str(tmp_path / "ddpm"))


def test_no_image_change_escapes_the_papers_set_as_stripes_escape_pooling(tmp_path):
    """Stripes of one pixel vanish in pooled maps of a pooling encoder, but not in the paper's set."""
    images = torch.zeros(1, 3, 32, 32)
    stripes = images.clone()
    stripes[..., ::2] += 0.5
    stripes[..., 1::2] -= 0.5

    def difference(name):
        groups = [FEATURE_SETS[name]([FeatureMap("identity", i)], i) for i in (images, stripes)]
        return {a.name: (a.values - b.values).abs().max().item() for a, b in zip(*groups, strict=True)}

    pooled = difference("multires")
    assert pooled["identity/locations"] < 1e-6
    paper = difference("paper")
    assert paper["identity/8x8-std"] > 0.1
    assert paper["input/rms"] > 0.1
    assert paper["input/pixels"] > 0.1


def test_patch_statistics_equal_plain_loops():
    values = torch.randn(2, 3, 8, 8)
    mean, std = mean_and_std(values, 4)
    for row in range(4):
        for column in range(4):
            patch = values[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].double()
            assert torch.allclose(mean[4 * row + column].double(), patch.mean((2, 3)), atol=1e-6)
            assert torch.allclose(
                std[4 * row + column].double(), (patch.var((2, 3), unbiased=False) + STD_EPSILON).sqrt(), atol=1e-5
            )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("side", "grid"), [(8, 1), (8, 4), (7, 1), (7, 4), (14, 4)])  # cells of 7 / 4 overlap
@pytest.mark.parametrize(("dtype", "offset"), [(torch.float32, 0.0), (torch.float32, 1e3), (torch.bfloat16, 100.0)])
def test_statistics_keep_their_digits_beside_a_large_mean(memory_format, side, grid, dtype, offset):
    """Values, and the gradient, against float64; a mean of squares would lose them all at an offset of 1,000."""
    values = (offset + torch.randn(3, 5, side, side)).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    wide = values.detach().double().requires_grad_()
    edges = [(i * side // grid, -(-(i + 1) * side // grid)) for i in range(grid)]
    cells = [wide[:, :, a:b, c:d] for a, b in edges for c, d in edges]
    means = torch.stack([cell.mean((2, 3)) for cell in cells])
    stds = torch.stack([(cell.var((2, 3), unbiased=False) + STD_EPSILON).sqrt() for cell in cells])
    mean, std = mean_and_std(values, grid)
    torch.testing.assert_close(mean.double(), means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(std.double(), stds, rtol=1e-3 if offset == 1e3 else 1e-4, atol=1e-5)
    weights = torch.randn(2, *mean.shape)
    (mean * weights[0] + std * weights[1]).sum().backward()
    (means * weights[0] + stds * weights[1]).sum().backward()
    rounding = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(values.grad.double(), wide.grad, **rounding)


def test_statistics_keep_the_map_alone_for_the_backward_pass():
    values, kept = torch.randn(4, 8, 16, 16, requires_grad=True), {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        statistics = mean_and_std(values, 4)
    assert sum(kept.values()) < 1.2 * values.nbytes, len(statistics)


def test_groups_of_equal_channels_share_a_field_call():
    maps = [
        FeatureMap("a", torch.randn(5, 4, 8, 8)),
        FeatureMap("b", torch.randn(5, 6, 8, 8)),
        FeatureMap("c", torch.randn(5, 4, 4, 4)),
    ]
    calls = field_calls(FEATURE_SETS["multires"](maps, torch.randn(5, 3, 8, 8)))
    assert [(c.channels, c.vectors, len(c.groups)) for c in calls] == [(4, 36, 6), (6, 18, 3)]
    assert calls[0].values().shape == (36, 5, 4)
    assert [calls[0].membership().count(n) for n in range(6)] == [16, 1, 1, 16, 1, 1]
