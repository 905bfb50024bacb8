"""Building blocks of the networks: normalisation, residual blocks, self-attention, resampling, time embedding."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with as many groups, up to 32, as leave at least four channels to each."""
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def zero_initialised(module: nn.Module) -> nn.Module:
    """The module with all its parameters set to zero, so that a residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def in_layout_of(weight: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The images [N, C, H, W] in the layout of a convolution's weight, which all layers behind it then keep."""
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding, `channels` wide, of the time t, from 0 to 1000, then a two-layer perceptron."""

    frequencies: torch.Tensor

    def __init__(self, channels: int, width: int):
        super().__init__()
        frequencies = torch.exp(torch.arange(channels // 2) * (-math.log(10_000) / (channels // 2)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * (channels // 2), width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """t [N] -> [N, width]."""
        phase = t.float()[:, None] * self.frequencies[None]  # [N, channels // 2]
        embedding: torch.Tensor = self.mlp(torch.cat([phase.cos(), phase.sin()], dim=1))
        return embedding


class ConditionedResBlock(nn.Module):
    """Residual block whose second normalisation is scaled and shifted by the time embedding."""

    def __init__(self, in_channels: int, out_channels: int, *, embedding: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_initialised(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        out: torch.Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out


class PointwiseConv2d(nn.Conv2d):
    """A convolution of one position, which takes the positions it needs before it starts.

    The same numbers as its base class. There the weight gradient of a strided one writes outside its memory on a CPU
    with channels_last and few channels (torch 2.15).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows, columns = self.stride
        return F.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)


class ResBlock(nn.Module):
    """Basic residual block with GroupNorm (two 3x3 convolutions), optionally halving the resolution."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(
                PointwiseConv2d(in_channels, out_channels, 1, stride=stride, bias=False), group_norm(out_channels)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the positions of a feature map, as a residual branch."""

    def __init__(self, channels: int, *, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_initialised(nn.Conv2d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.num_heads, c // self.num_heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [N, heads, H*W, C / heads]
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, height, width)
        out: torch.Tensor = x + self.out(h)
        return out


class Upsample(nn.Module):
    """Doubles the resolution (nearest), then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
