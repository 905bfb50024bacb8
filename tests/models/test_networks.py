"""Shapes, sizes and initial behaviour of the networks."""

import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from driftkit.errors import UsageError
from driftkit.models.blocks import PointwiseConv2d
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.models.registry import build_network
from driftkit.models.unet import UNet, UNetConfig


def test_default_unet_has_the_published_size():
    network = UNet(UNetConfig(), image_size=32)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 38.3


@pytest.mark.parametrize("size", [8, 16, 24, 32])
def test_unet_keeps_the_image_size_and_starts_at_zero(size):
    config = UNetConfig(base_channels=8, channel_multipliers=(1, 2, 2), attention_resolutions=(size // 2,))
    network = UNet(config, image_size=size).eval()
    x = torch.randn(2, 3, size, size)
    out = network(x, torch.tensor([0, 999]))
    assert out.shape == x.shape
    assert out.abs().max() == 0  # zero-initialised output
    torch.nn.init.normal_(network.output.weight)
    for block in network.down:
        for part in block.children():
            if hasattr(part, "conv2"):
                torch.nn.init.normal_(part.conv2.weight)
    same = x[:1].expand(2, -1, -1, -1)
    out = network(same, torch.tensor([0, 999]))
    assert not torch.allclose(out[0], out[1])  # time matters


def test_the_output_is_computed_in_float32_under_autocast():
    config = UNetConfig(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=())
    network = UNet(config, image_size=8).eval()
    torch.nn.init.normal_(network.output.weight)
    hidden = []
    network.output_norm.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0, 999])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, t)
    (h,) = hidden
    assert (out.dtype, h.dtype) == (torch.float32, torch.float32)
    assert torch.equal(h, h.bfloat16().float())  # the body is as before
    want = network.output(torch.nn.functional.silu(network.output_norm(h)))
    assert torch.equal(out, want)
    assert not torch.equal(out, network(x, t))
    assert network.to("meta")(x.to("meta"), t.to("meta")).shape == x.shape


@pytest.mark.parametrize(
    ("config", "size", "says"),
    [
        (UNetConfig(), 20, "cannot be halved 3 times: use `data.image_size` 24 or 16, or fewer model.channel_mult"),
        (UNetConfig(channel_multipliers=(1, 2, 2)), 30, "halved 2 times: use `data.image_size` 32 or 28"),
        (UNetConfig(patch_size=3, channel_multipliers=(1, 2)), 10, "use `data.image_size` 12, or"),
        (UNetConfig(channels=4), 30, "use images with latents of side 32 or 24"),
        (MAEResNetConfig(), 12, "three times: use `data.image_size` 16 or 8"),
    ],
)
def test_sizes_that_cannot_be_halved_name_the_nearest_that_can(config, size, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        build_network(config, image_size=size)


def test_mae_has_four_scales_and_reconstructs_at_full_size():
    network = MAEResNet(MAEResNetConfig(base_channels=8, num_blocks=(1, 1, 1, 1)))
    x = torch.randn(2, 3, 32, 32)
    assert [tuple(m.shape[1:]) for m in network.encode(x)] == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert network(x).shape == x.shape


def test_a_strided_pointwise_convolution_is_that_of_torch():
    torch.manual_seed(0)
    ours = PointwiseConv2d(8, 16, 1, stride=2, bias=False)
    theirs = torch.nn.Conv2d(8, 16, 1, stride=2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 7, 6)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("channels", [4, 8])
def test_narrow_networks_in_channels_last_do_not_write_outside_their_memory(channels):
    """In a process of its own, since torch's own strided convolution ends it."""
    program = (
        "import torch; from driftkit.models.blocks import ResBlock\n"
        f"block = ResBlock({channels}, {2 * channels}, stride=2).to(memory_format=torch.channels_last)\n"
        "for side in (8, 16, 32, 64) * 5:\n"
        f"    x = torch.randn(16, {channels}, side, side).contiguous(memory_format=torch.channels_last)\n"
        "    block(x.requires_grad_()).sum().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("network", ["unet", "mae", "classifier"])
def test_networks_are_one_graph(network):
    images, more = torch.randn(2, 3, 16, 16), {}
    if network == "unet":
        config = UNetConfig(base_channels=16, num_heads=2, attention_resolutions=(8,), channel_multipliers=(1, 2))
        model, more = UNet(config, image_size=16), {"t": torch.zeros(2, dtype=torch.long)}
    else:
        model = MAEResNet(MAEResNetConfig(base_channels=8, num_classes=3))
        more = {"classify": True} if network == "classifier" else {}
    torch._dynamo.reset()
    found = torch._dynamo.explain(model.train())(images, **more)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_patches_of_a_unet_are_its_positions():
    """The channels of a position hold the pixels of its patch; the last convolution sees pixels again."""
    config = UNetConfig(patch_size=2, base_channels=8, channel_multipliers=(1, 2), num_heads=2, num_res_blocks=1)
    network = UNet(config, image_size=16)
    seen = []
    network.input.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    nn.init.normal_(network.output.weight)
    x = torch.randn(2, 3, 16, 16)
    out = network(x, torch.zeros(2))
    assert out.shape == x.shape
    assert seen[0].shape == (2, 12, 8, 8)
    assert torch.equal(seen[0][0, :4, 3, 5], x[0, 0, 6:8, 10:12].flatten())
    pixels = F.pixel_shuffle(network.unpatch(torch.randn(1, 8, 4, 4)), 2)
    assert torch.equal(pixels[..., ::2, ::2], pixels[..., 1::2, 1::2])  # all pixels of a patch begin alike
    with pytest.raises(UsageError, match="20 in patches of 2 pixels cannot be halved 2 times"):
        build_network(config.model_copy(update={"channel_multipliers": (1, 2, 2)}), image_size=20)
