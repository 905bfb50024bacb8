"""The U-Net that generators train, whatever it predicts: noise, velocity or, at t = 0, the image itself."""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from driftkit.models.blocks import (
    ConditionedResBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    group_norm,
    in_layout_of,
    zero_initialised,
)
from driftkit.models.conditioning import ConditionEmbedding
from driftkit.models.contract import GeneratorNetworkConfig, Model, divisible_sizes, register
from driftkit.protocols import UNCONDITIONAL, Condition

MAX_MULTIPLIER = 64


class UNetConfig(GeneratorNetworkConfig):
    """Shape of the U-Net. The defaults give 38.3 M parameters at 32x32."""

    kind: Literal["unet"] = Field("unet", description="which network this section configures")
    patch_size: int = Field(
        1, ge=1, le=64, description="side in pixels of the patches that are one position at the first level; 1: pixels"
    )
    base_channels: int = Field(128, ge=4, le=4096, multiple_of=4, description="channels of the first level")
    channel_multipliers: tuple[int, ...] = Field(
        (1, 2, 2, 2), min_length=1, max_length=8, description="channels per level over base"
    )
    num_res_blocks: int = Field(2, ge=1, le=64, description="residual blocks per level")
    attention_resolutions: tuple[int, ...] = Field(
        (16,), description="sides in positions at which self-attention stands"
    )
    num_heads: int = Field(4, ge=1, description="attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout probability inside the residual blocks")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(1 <= m <= MAX_MULTIPLIER for m in self.channel_multipliers):
            raise ValueError(
                f"channel_multipliers: expected integers from 1 to {MAX_MULTIPLIER}, got {self.channel_multipliers}"
            )
        for multiplier in self.channel_multipliers:
            if self.base_channels * multiplier % self.num_heads:
                raise ValueError(
                    f"num_heads {self.num_heads} does not divide the {self.base_channels * multiplier} channels"
                )
        return self

    def check_image_size(self, image_size: int) -> None:
        """Raise ValueError when the levels cannot halve `image_size` often enough."""
        halvings = len(self.channel_multipliers) - 1
        factor = self.patch_size * 2**halvings
        if image_size % factor or image_size < factor:
            patches = f"in patches of {self.patch_size} pixels " if self.patch_size > 1 else ""
            raise ValueError(
                f"image size {image_size} {patches}cannot be halved {halvings} times: "
                f"{divisible_sizes(image_size, factor, latents=self.channels != 3)}, or fewer model.channel_multipliers"
            )


class UNet(nn.Module):
    """U-Net conditioned by scale and shift, with self-attention at chosen resolutions and a zero-initialised output.

    Args:
        config: widths and depths.
        image_size: side of the square images, in pixels; only decides where attention stands.

    Source: Ho et al. 2020 (arXiv 2006.11239), Appendix B. Differs: scale-shift conditioning and four heads, after
    Nichol and Dhariwal 2021 (arXiv 2102.09672); patches (`patch_size`), which spare the costly levels of few channels.
    """

    def __init__(self, config: UNetConfig, *, image_size: int):
        super().__init__()
        config.check_image_size(image_size)
        base = config.base_channels
        embedding = 4 * base
        self.time_embedding = TimeEmbedding(base, embedding)
        self.condition_embedding = ConditionEmbedding(config, channels=base, width=embedding)
        self.patch_size = config.patch_size
        self.input = nn.Conv2d(config.channels * config.patch_size**2, base, 3, padding=1)
        self.down = nn.ModuleList()
        channels, skips = base, [base]
        size = image_size // config.patch_size

        def block(in_channels: int, out_channels: int) -> nn.ModuleList:
            parts: list[nn.Module] = [
                ConditionedResBlock(in_channels, out_channels, embedding=embedding, dropout=config.dropout)
            ]
            if size in config.attention_resolutions:
                parts.append(SelfAttention(out_channels, num_heads=config.num_heads))
            return nn.ModuleList(parts)

        last = len(config.channel_multipliers) - 1
        for level, multiplier in enumerate(config.channel_multipliers):
            for _ in range(config.num_res_blocks):
                self.down.append(block(channels, base * multiplier))
                channels = base * multiplier
                skips.append(channels)
            if level != last:
                self.down.append(nn.ModuleList([nn.Conv2d(channels, channels, 3, stride=2, padding=1)]))
                skips.append(channels)
                size //= 2
        self.middle = nn.ModuleList(
            [
                ConditionedResBlock(channels, channels, embedding=embedding, dropout=config.dropout),
                SelfAttention(channels, num_heads=config.num_heads),
                ConditionedResBlock(channels, channels, embedding=embedding, dropout=config.dropout),
            ]
        )
        self.up = nn.ModuleList()  # behind the middle: gradients are exchanged in the order of parameters, backwards
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(block(channels + skips.pop(), base * multiplier))
                channels = base * multiplier
            if level != 0:
                self.up[-1].append(Upsample(channels))  # type: ignore[operator]
                size *= 2
        self.unpatch = None
        if config.patch_size > 1:  # the last convolution sees pixels, else borders of patches are seen in images
            pixel_channels = max(8, channels // 8)
            self.unpatch = nn.Conv2d(channels, pixel_channels * config.patch_size**2, 3, padding=1)
            with torch.no_grad():  # all pixels of a patch begin alike (Aitken et al. 2017, arXiv 1707.02937)
                weight, bias = self.unpatch.weight, self.unpatch.bias
                assert bias is not None
                pixels = config.patch_size**2
                weight.copy_(weight[::pixels].repeat_interleave(pixels, dim=0))
                bias.copy_(bias[::pixels].repeat_interleave(pixels, dim=0))
            channels = pixel_channels
        self.output_norm = group_norm(channels)
        self.output = zero_initialised(nn.Conv2d(channels, config.channels, 3, padding=1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        """x [N, C, H, W], t [N] from 0 to 1000, condition -> [N, C, H, W].

        The last norm and convolution are float32 even under autocast: 8 bits are too coarse for images and noise.
        """
        embedding = self.condition_embedding(self.time_embedding(t), condition)
        h = self.input(in_layout_of(self.input.weight, F.pixel_unshuffle(x, self.patch_size)))
        skips = [h]
        for parts in self.down:
            h = _apply(parts, h, embedding)
            skips.append(h)
        h = _apply(self.middle, h, embedding)
        for parts in self.up:
            h = _apply(parts, torch.cat([h, skips.pop()], dim=1), embedding)
        if self.unpatch is not None:
            h = F.pixel_shuffle(self.unpatch(h), self.patch_size)
        device = "cpu" if h.is_meta else h.device.type  # meta tensors have no autocast of their own
        with torch.autocast(device, enabled=False):
            out: torch.Tensor = self.output(F.silu(self.output_norm(h.float())))
        return out


def _apply(parts: nn.Module, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    for part in parts.children():
        h = part(h, embedding) if isinstance(part, ConditionedResBlock) else part(h)
    return h


register(Model("unet", UNetConfig, lambda config, image_size: UNet(config, image_size=image_size)))
