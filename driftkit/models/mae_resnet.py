"""The masked autoencoder one can train oneself: a GroupNorm ResNet encoder with a U-Net decoder."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from driftkit.config.settings import OnResume
from driftkit.models.blocks import ResBlock, in_layout_of
from driftkit.models.contract import Model, NetworkConfig, divisible_sizes, register

Blocks = Annotated[int, Field(ge=1, le=256)]


class MAEResNetConfig(NetworkConfig):
    """Shape of the masked autoencoder."""

    kind: Literal["mae_resnet"] = Field("mae_resnet", description="which network this section configures")
    base_channels: int = Field(
        64, ge=4, le=4096, multiple_of=4, description="channels of the first scale; doubled at each next"
    )
    num_blocks: tuple[Blocks, Blocks, Blocks, Blocks] = Field((2, 2, 2, 2), description="basic blocks per scale")
    num_classes: Annotated[int | None, OnResume.FROM_DATA] = Field(
        None,
        ge=2,
        le=1_000_000,
        description="classes of the linear head; None: no head, or that of the images when it is trained",
    )
    decoder: Annotated[bool | None, OnResume.FROM_DATA] = Field(
        None, description="false: encoder and head alone, which fill in nothing; None: as the objective needs"
    )

    def check_image_size(self, image_size: int) -> None:
        """Raise ValueError when three halvings of `image_size` do not come out even."""
        if image_size % 8 or image_size < 8:
            raise ValueError(f"image size {image_size} cannot be halved three times: {divisible_sizes(image_size, 8)}")


class MAEResNet(nn.Module):
    """Encoder of four scales (full, 1/2, 1/4, 1/8 resolution) and a decoder with skip connections.

    With `num_classes` a linear head stands on the mean of the last map, for fine-tuning.

    Source: arXiv 2602.04770, Appendix A.3. Differs: the stem keeps the full resolution, since images here are 32x32
    and not latents of larger ones; widths are free.
    """

    def __init__(self, config: MAEResNetConfig):
        super().__init__()
        widths = [config.base_channels * 2**i for i in range(4)]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        channels = widths[0]
        for scale, (width, count) in enumerate(zip(widths, config.num_blocks, strict=True)):
            blocks = [ResBlock(channels, width, stride=1 if scale == 0 else 2)]
            blocks += [ResBlock(width, width) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = width
        if config.decoder is not False:
            self.decoder = nn.ModuleList([ResBlock(widths[i + 1] + widths[i], widths[i]) for i in reversed(range(3))])
            self.output = nn.Conv2d(widths[0], 3, 3, padding=1)
        self.head = nn.Linear(widths[-1], config.num_classes) if config.num_classes else None

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images [N, 3, H, W] -> four maps, [N, width * 2^i, H / 2^i, W / 2^i]."""
        h = self.stem(in_layout_of(self.stem.weight, images))
        maps = []
        for stage in self.stages:
            h = stage(h)
            maps.append(h)
        return maps

    def forward(self, images: torch.Tensor, *, classify: bool = False) -> torch.Tensor:
        """Masked images [N, 3, H, W] -> reconstruction [N, 3, H, W]; whole ones -> logits [N, num_classes].

        Both are one call, so that a compiled network serves both.
        """
        *skips, h = self.encode(images)
        if classify:
            assert self.head is not None, "built without num_classes"
            logits: torch.Tensor = self.head(h.mean(dim=(2, 3)))
            return logits
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0, mode="nearest"), skip], dim=1))
        out: torch.Tensor = self.output(h)
        return out


register(Model("mae_resnet", MAEResNetConfig, lambda config, image_size: MAEResNet(config), role="encoder"))
