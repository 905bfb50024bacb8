"""Sampling of a drifting model: one call of the generator."""

import torch
from torch import nn

from driftkit.errors import UsageError
from driftkit.protocols import SampleRequest


def generate_one_step(generator: nn.Module, noise: torch.Tensor) -> torch.Tensor:
    """f(noise): the U-Net at t = 0. noise [N, 3, H, W] -> images [N, 3, H, W], nominally in [-1, 1]."""
    t = torch.zeros(len(noise), dtype=torch.long, device=noise.device)
    images: torch.Tensor = generator(noise, t)
    return images.float()


def sample_one_step(network: nn.Module, noise: torch.Tensor, request: SampleRequest) -> tuple[torch.Tensor, int]:
    """One evaluation per image.

    Raises:
        UsageError: any other NFE, or any option: there is nothing to choose.
    """
    if request.nfe not in (None, 1):
        raise UsageError(f"--nfe {request.nfe}: a drifting generator takes exactly 1 evaluation; leave --nfe out")
    if request.options:
        raise UsageError(f"one-step sampling has no options, got {', '.join(request.options)}")
    return generate_one_step(network, noise), 1
