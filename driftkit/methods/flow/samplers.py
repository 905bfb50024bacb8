"""The straight path, and samplers that integrate its predicted velocity from noise at t = 1 to images, in even steps.

Both samplers take a network that predicts the velocity of (x [N, C, H, W], 1000 t [N], condition), standard normal
noise [N, C, H, W], and an NFE of at least 1 (default 50). They return images [N, C, H, W] float32 and the number of
network calls, the NFE. Another NFE or any option is a UsageError. The state is float32; no call is at t = 0.
"""

import torch

from driftkit.errors import UsageError
from driftkit.methods.base import SamplerOptions, read_options
from driftkit.methods.flow.method import EULER_NFE, HEUN_NFE
from driftkit.protocols import Network, SampleRequest

TIME_SCALE = 1000.0  # of the networks' time embedding, whose times run from 0 to 1000


def straight_path(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The point of the path at time t, and its velocity dx_t / dt.

    Args:
        x0: images, float [N, C, H, W] in [-1, 1], at t = 0.
        noise: standard normal, shape and dtype of x0, at t = 1.
        t: times in [0, 1], float [N].

    Returns:
        x_t = (1 - t) x0 + t noise and noise - x0, both [N, C, H, W] in the dtype of x0.

    Raises:
        ValueError: shapes disagree, or t is not a float.

    Source: Liu et al. 2022 (arXiv 2209.03003), Eq. (1); Lipman et al. 2022 (arXiv 2210.02747), Eq. (22) with
    sigma_min = 0. Differs: time runs from images to noise, as in DDPM, where both papers run it from noise to images.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise: expected {list(x0.shape)} like x0, got {list(noise.shape)}")
    if t.shape != x0.shape[:1] or not t.is_floating_point():
        raise ValueError(f"t: expected floats [{len(x0)}], got {t.dtype} {list(t.shape)}")
    t = t.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))  # [N, 1, 1, 1]
    return (1 - t) * x0 + t * noise, noise - x0


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
