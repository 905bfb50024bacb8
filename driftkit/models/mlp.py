"""A perceptron from noise to points, for toys. It makes no images, so it has no row of `MODELS`."""

from collections.abc import Sequence

import torch
from torch import nn

from driftkit.errors import UsageError

ROUNDING = 4 * torch.finfo(torch.float32).eps


class PointGenerator(nn.Sequential):
    """Noise [N, noise_channels] -> points [N, 2], by `depth` hidden layers of `width` channels."""

    def __init__(self, *, noise_channels: int, width: int, depth: int):
        layers: list[nn.Module] = []
        for layer in range(depth):
            layers += [nn.Linear(width if layer else noise_channels, width), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, 2))

    @torch.no_grad()
    def start_at(self, place: Sequence[float], *, spread: float, noise: torch.Tensor) -> None:
        """Shift and scale the last layer so that `noise` becomes points around `place`.

        Args:
            place: their mean, (x, y).
            spread: their standard deviation in each direction.

        Raises UsageError where all noise becomes one point, but for rounding.
        """
        last = self[-1]
        assert isinstance(last, nn.Linear)
        points = self(noise)
        std = points.std(dim=0)
        if not bool((std > ROUNDING * points.abs().amax(dim=0)).all()):
            raise UsageError(
                "the untrained generator makes one point of all noise, which no training spreads; set `width` higher "
                "or `depth` lower"
            )
        factor = spread / std
        last.weight.mul_(factor[:, None])
        last.bias.copy_(factor * (last.bias - points.mean(dim=0)) + torch.tensor(place))
