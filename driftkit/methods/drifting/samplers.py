"""Sampling of a drifting model: one call of the generator."""

from collections.abc import Sequence

import torch
from torch import nn

from driftkit.errors import UsageError
from driftkit.methods.base import SamplerOptions, read_options
from driftkit.protocols import UNCONDITIONAL, Condition, Network, SampleRequest


def generate_one_step(generator: Network, noise: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
    """f(noise): the network at t = 0. noise [N, 3, H, W] -> images [N, 3, H, W], nominally in [-1, 1]."""
    t = torch.zeros(noise.shape[0], dtype=torch.long, device=noise.device)  # not len(): a traced graph keeps it
    return generator(noise, t, condition).float()


def sample_one_step(network: Network, noise: torch.Tensor, request: SampleRequest) -> tuple[torch.Tensor, int]:
    """One evaluation per image.

    Raises:
        UsageError: any other NFE, or any option: there is nothing to choose.
    """
    if request.nfe not in (None, 1):
        raise UsageError(f"`nfe` {request.nfe}: a drifting generator takes exactly 1 evaluation; leave `nfe` out")
    read_options("one-step", SamplerOptions, request.options)
    return generate_one_step(network, noise, request.condition), 1


class OneStepGenerator(nn.Module):
    """noise [N, 3, H, W] and parts of a condition -> images [N, 3, H, W], nominally in [-1, 1], to be exported.

    `parts` names the parts of the condition that are inputs, in their order.
    """

    def __init__(self, network: nn.Module, parts: Sequence[str] = ()):
        super().__init__()
        self.network, self.parts = network, tuple(parts)

    def forward(
        self,
        noise: torch.Tensor,
        first: torch.Tensor | None = None,
        second: torch.Tensor | None = None,
        third: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # Named parameters, since exporters name the axes of the batch by them.
        given = dict(zip(self.parts, (first, second, third), strict=False))
        return generate_one_step(self.network, noise, Condition(**given))
