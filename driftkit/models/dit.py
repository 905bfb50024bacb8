"""The diffusion transformer that generators train in place of the U-Net, whatever it predicts."""

import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from driftkit.models.blocks import TimeEmbedding, zero_initialised
from driftkit.models.conditioning import ConditionEmbedding
from driftkit.models.contract import GeneratorNetworkConfig, Model, register
from driftkit.protocols import UNCONDITIONAL, Condition

SIZES: dict[str, dict[str, int]] = {
    "Ti": {"hidden_size": 192, "depth": 12, "num_heads": 3},
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
}
TIME_CHANNELS = 256  # sines and cosines of the time and of the guidance scale
SLOWEST = 10_000  # a position's slowest angle turns this much slower than its fastest
EPSILON = 1e-6  # of norms


class DiTConfig(GeneratorNetworkConfig):
    """Shape of the transformer. The defaults give 32.6 M parameters."""

    kind: Literal["dit"] = Field("dit", description="which network this section configures")
    size: Literal["Ti", "S", "B", "L"] | None = Field(
        "S",
        description="fills hidden_size, depth and num_heads where they are not given; None where they are of no size",
    )
    patch_size: int = Field(2, ge=1, le=256, description="side of a token's patch in pixels; divides the image")
    hidden_size: int = Field(384, ge=4, le=16_384, description="channels of a token")
    depth: int = Field(12, ge=1, le=256, description="blocks, each of self-attention and a gated MLP")
    num_heads: int = Field(6, ge=1, description="attention heads; each takes a multiple of 4 channels")
    mlp_ratio: float = Field(
        4.0, gt=0, le=64, description="size of the MLP over hidden_size, as if it were not gated: 2/3 of it are built"
    )
    register_tokens: int = Field(16, ge=0, le=1024, description="tokens made of the condition, before the patches")

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size = values.get("size") or "S"
        filled = {**SIZES.get(str(size), {}), **values}
        if str(size) in SIZES:  # else it is refused
            filled["size"] = next((name for name, shape in SIZES.items() if shape.items() <= filled.items()), None)
        return filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        channels = self.hidden_size // self.num_heads
        if channels % 4:
            raise ValueError(
                f"num_heads {self.num_heads} leaves {channels} channels of hidden_size {self.hidden_size} to a head, "
                "expected a multiple of 4: rows and columns each rotate pairs of them"
            )
        return self

    @property
    def mlp_size(self) -> int:
        """Channels inside the gated MLP: 2/3 of `mlp_ratio` times `hidden_size`, up to a multiple of 32.

        A gated MLP has three matrices where a plain one has two, so that both then are of one size.
        """
        return 32 * math.ceil(self.hidden_size * self.mlp_ratio * 2 / 3 / 32)

    def check_image_size(self, image_size: int) -> None:
        """Raise ValueError when patches do not fill an image of side `image_size`."""
        if image_size % self.patch_size:
            raise ValueError(
                f"`model.patch_size` {self.patch_size} does not divide the image size {image_size}: "
                f"use one of {', '.join(str(patch) for patch in range(1, 33) if image_size % patch == 0)}"
            )


def patchify(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """[N, C, H, W] -> [N, H W / patch_size^2, C patch_size^2]: patches by rows, in each channels, rows, columns."""
    n, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    parts = images.reshape(n, channels, rows, patch_size, columns, patch_size).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(n, rows * columns, channels * patch_size**2)


def unpatchify(patches: torch.Tensor, patch_size: int, *, rows: int) -> torch.Tensor:
    """The inverse of `patchify`: [N, rows columns, C patch_size^2] -> [N, C, rows patch_size, columns patch_size]."""
    n, count, values = patches.shape
    columns, channels = count // rows, values // patch_size**2
    parts = patches.reshape(n, rows, columns, channels, patch_size, patch_size).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(n, channels, rows * patch_size, columns * patch_size)


def axis_angles(side: int, count: int) -> torch.Tensor:
    """[side, count]: the angles of positions along one axis, from 1 radian a step to nearly 1 / 10,000."""
    frequencies = SLOWEST ** (-torch.arange(count, dtype=torch.float64) / count)
    return (torch.arange(side)[:, None] * frequencies[None]).float()


def grid_angles(axis: torch.Tensor) -> torch.Tensor:
    """[side, count] of one axis -> [side^2, 2 count] of a square grid by rows: those of the row, then of the column."""
    side = len(axis)
    return torch.cat([axis.repeat_interleave(side, dim=0), axis.repeat(side, 1)], dim=1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate channel i and channel i + C / 2 of each token by its angle i.

    Args:
        x: [..., T, C], C even.
        cos, sin: of the angles, [T, C / 2].

    Returns:
        [..., T, C]. The product of two rotated vectors depends on their angles only through the difference.

    Source: Su et al. 2021 (arXiv 2104.09864), Eq. (34). Differs: pairs are halves apart instead of neighbours, which
    only orders the channels.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class RotaryAttention(nn.Module):
    """Multi-head self-attention whose queries and keys are normalised, then rotated by the positions of tokens.

    Both happen in float32 whatever the autocast; the attention itself is in its number format.
    """

    def __init__(self, channels: int, *, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = _linear(channels, 3 * channels)
        self.query_scale = nn.Parameter(torch.ones(channels // num_heads))
        self.key_scale = nn.Parameter(torch.ones(channels // num_heads))
        self.out = _linear(channels, channels)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [N, T, C], cos and sin [T, C / heads / 2] -> [N, T, C]."""
        n, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, T, C / heads]
        q = rotate(_rms_norm(q.float(), self.query_scale), cos, sin).to(v.dtype)
        k = rotate(_rms_norm(k.float(), self.key_scale), cos, sin).to(v.dtype)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, channels)
        out: torch.Tensor = self.out(h)
        return out


class SwiGLU(nn.Module):
    """MLP whose hidden channels are multiplied by a gate (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.gate_and_value = _linear(channels, 2 * hidden)
        self.out = _linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        out: torch.Tensor = self.out(F.silu(gate) * value)
        return out


class DiTBlock(nn.Module):
    """Self-attention and MLP as residual branches, scaled, shifted and gated by the condition. Starts as identity."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        channels = config.hidden_size
        self.modulation = zero_initialised(nn.Linear(channels, 6 * channels))
        self.attention = RotaryAttention(channels, num_heads=config.num_heads)
        self.mlp = SwiGLU(channels, config.mlp_size)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [N, T, C], condition [N, C], cos and sin [T, C / heads / 2] -> [N, T, C]."""
        parts = self.modulation(condition)[:, None].chunk(6, dim=-1)  # each [N, 1, C]
        x = x + parts[2] * self.attention(_modulated(x, parts[0], parts[1]), cos, sin)
        out: torch.Tensor = x + parts[5] * self.mlp(_modulated(x, parts[3], parts[4]))
        return out


def _rms_norm(x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], scale, eps=EPSILON)


def _modulated(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return _rms_norm(x) * (1 + scale) + shift


class DiT(nn.Module):
    """Transformer over the patches of an image, conditioned by scale, shift and gate (adaLN-zero) and by registers.

    Registers are tokens before the patches, each the condition's projection plus an embedding of its own. Positions of
    patches are added to them as fixed sines and cosines, and rotate queries and keys.

    Args:
        config: widths and depths.
        image_size: side of the square images, in pixels.

    Source: arXiv 2602.04770, Appendix A.2 and Table 8; Peebles and Xie 2023 (arXiv 2212.09748) for adaLN-zero and the
    initial values. Differs: positions rotate by row and by column, not by the place in one sequence of all tokens, so
    that the neighbour below is as near as the one to the right; registers, which have no place in the image, are not
    rotated. Norms before a modulation have no scale of their own, which `1 + scale` already is. The time is embedded,
    too, as DDPM and rectified flow need. Attention is in the number format of autocast instead of in float32, since
    normalised queries and keys bound its logits.
    """

    position_axis: torch.Tensor
    rotation_axis: torch.Tensor

    def __init__(self, config: DiTConfig, *, image_size: int):
        super().__init__()
        config.check_image_size(image_size)
        width = config.hidden_size
        values = config.channels * config.patch_size**2
        self.patch_size, self.side = config.patch_size, image_size // config.patch_size
        self.time_embedding = TimeEmbedding(TIME_CHANNELS, width)
        self.condition_embedding = ConditionEmbedding(config, channels=TIME_CHANNELS, width=width)
        self.num_registers = config.register_tokens
        self.registers = nn.Parameter(0.02 * torch.randn(self.num_registers, width)) if self.num_registers else None
        self.register_projection = _linear(width, width) if self.num_registers else None
        self.input = _linear(values, width)
        self.blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.depth)])
        self.output_modulation = zero_initialised(nn.Linear(width, 2 * width))
        self.output = zero_initialised(nn.Linear(width, values))
        # Of one axis only: a config read from a file cannot ask for memory that its weights do not take.
        self.register_buffer("position_axis", axis_angles(self.side, width // 4), persistent=False)
        self.register_buffer("rotation_axis", axis_angles(self.side, width // config.num_heads // 4), persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        """x [N, C, H, W], t [N] from 0 to 1000, condition -> [N, C, H, W].

        The last norm and matrix are float32 even under autocast: 8 bits are too coarse for images and noise.
        """
        embedding = self.condition_embedding(self.time_embedding(t), condition)  # [N, width]
        positions = grid_angles(self.position_axis)
        h = self.input(patchify(x, self.patch_size)) + torch.cat([positions.sin(), positions.cos()], dim=1)
        if self.registers is not None and self.register_projection is not None:
            h = torch.cat([self.registers + self.register_projection(embedding)[:, None], h], dim=1)
        angles = F.pad(grid_angles(self.rotation_axis), (0, 0, self.num_registers, 0))  # [T, width / heads / 2]
        cos, sin = angles.cos(), angles.sin()
        embedding = F.silu(embedding)
        for block in self.blocks:
            h = block(h, embedding, cos, sin)
        device = "cpu" if h.is_meta else h.device.type  # meta tensors have no autocast of their own
        with torch.autocast(device, enabled=False):
            scale, shift = self.output_modulation(embedding.float())[:, None].chunk(2, dim=-1)
            h = self.output(_modulated(h[:, self.num_registers :].float(), scale, shift))
        return unpatchify(h, self.patch_size, rows=self.side)


register(
    Model(
        "dit",
        DiTConfig,
        lambda config, image_size: DiT(config, image_size=image_size),
        memory_format="contiguous_format",
    )
)
