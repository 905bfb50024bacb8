"""Samplers that integrate a predicted velocity from noise at t = 1 to images at t = 0, in even steps.

Both keep a float32 state. NFE counts calls of the network, which is never called at t = 0.
"""

import torch

from driftkit.errors import UsageError
from driftkit.methods.base import SamplerOptions, read_options
from driftkit.methods.flow.config import EULER_NFE, HEUN_NFE
from driftkit.methods.flow.path import TIME_SCALE
from driftkit.protocols import Network, SampleRequest


class _CountedVelocity:
    """Calls the network on a whole batch at one time, and counts the calls."""

    def __init__(self, network: Network, request: SampleRequest):
        self.network, self.condition, self.calls = network, request.condition, 0

    def __call__(self, x: torch.Tensor, t: float) -> torch.Tensor:
        self.calls += 1
        times = torch.full((len(x),), TIME_SCALE * t, device=x.device)
        return self.network(x, times, self.condition).float()


def sample_euler(network: Network, noise: torch.Tensor, request: SampleRequest) -> tuple[torch.Tensor, int]:
    """Euler's method: first order, one network call per step.

    Args:
        network: predicts the velocity of (x [N, C, H, W], 1000 t [N], condition).
        noise: standard normal, [N, C, H, W].
        request: nfe at least 1 (default 50). It has no options.

    Returns:
        Images [N, C, H, W] float32, and the number of network calls.

    Raises:
        UsageError: nfe is below 1, or an option.

    Source: Liu et al. 2022 (arXiv 2209.03003), Algorithm 1. Differs: the direction of time.
    """
    read_options("euler", SamplerOptions, request.options)
    steps = _checked_nfe(request.nfe, EULER_NFE)
    velocity = _CountedVelocity(network, request)
    x = noise.float()
    for i in range(steps):
        x = x - velocity(x, 1 - i / steps) / steps
    return x, velocity.calls


def sample_heun(network: Network, noise: torch.Tensor, request: SampleRequest) -> tuple[torch.Tensor, int]:
    """Heun's method: second order, two network calls per step; the last step is Euler's.

    With an even NFE the last two steps are Euler's, so that any NFE is spent in full.

    Args:
        network: predicts the velocity of (x [N, C, H, W], 1000 t [N], condition).
        noise: standard normal, [N, C, H, W].
        request: nfe at least 1 (default 50). It has no options.

    Returns:
        Images [N, C, H, W] float32, and the number of network calls.

    Raises:
        UsageError: nfe is below 1, or an option.

    Source: Karras et al. 2022 (arXiv 2206.00364), Algorithm 1. Differs: even steps of t, velocity instead of a
    denoiser, and the second Euler step of an even NFE.
    """
    read_options("heun", SamplerOptions, request.options)
    nfe = _checked_nfe(request.nfe, HEUN_NFE)
    heun_steps = (nfe - 1) // 2
    steps = nfe - heun_steps
    velocity = _CountedVelocity(network, request)
    x = noise.float()
    for i in range(steps):
        slope = velocity(x, 1 - i / steps)
        x_next = x - slope / steps
        if i < heun_steps:
            x_next = x - (slope + velocity(x_next, 1 - (i + 1) / steps)) / (2 * steps)
        x = x_next
    return x, velocity.calls


def _checked_nfe(nfe: int | None, default: int) -> int:
    if nfe is not None and (isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1):
        raise UsageError(f"`nfe` {nfe!r}: expected an integer of at least 1")
    return default if nfe is None else nfe
