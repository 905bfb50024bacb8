"""Samplers for a denoiser that predicts the noise: ancestral (DDPM), DDIM and DPM-Solver++(2M).

Each is a plain function with a `schedule` to bind, that of the training (`functools.partial(sample_ddim,
schedule=schedule)` is a `protocols.Sampler`). They take a network that predicts the noise of (x [N, C, H, W], t [N],
condition) and standard normal noise [N, C, H, W], and return images [N, C, H, W] float32, the last estimate of the
clean images, and the number of network calls, the NFE. An NFE or option that is not listed is a UsageError. All keep a
float32 state, compute their coefficients in float64, and clip only the estimate of the clean image, never the state.
"""

import math

import torch

from driftkit.errors import UsageError
from driftkit.methods.base import read_options
from driftkit.methods.ddpm.config import (
    DDIM_NFE,
    DPM_SOLVER_NFE,
    AncestralOptions,
    DDIMOptions,
    SolverOptions,
    Spacing,
    ancestral_variance,
)
from driftkit.methods.ddpm.schedule import NoiseSchedule, check_nfe, half_log_snr, timesteps
from driftkit.protocols import Condition, Network, SampleRequest


class _CountedDenoiser:
    """Calls the network on a whole batch at one time, turns its noise into an image estimate, and counts the calls."""

    def __init__(self, network: Network, condition: Condition, schedule: NoiseSchedule, *, clip_x0: bool):
        self.network = network
        self.condition = condition
        self.schedule = schedule
        self.clip_x0 = clip_x0
        self.calls = 0

    def __call__(self, x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The estimate of the clean images and the predicted noise, both float32 like x."""
        self.calls += 1
        times = torch.full((len(x),), t, device=x.device, dtype=torch.long)
        noise = self.network(x, times, self.condition).float()
        alpha_bar = self.schedule.signal_share(t)
        x0 = (x - math.sqrt(1 - alpha_bar) * noise) / math.sqrt(alpha_bar)
        return (x0.clamp(-1, 1) if self.clip_x0 else x0), noise


def sample_ddpm(
    network: Network, noise: torch.Tensor, request: SampleRequest, *, schedule: NoiseSchedule
) -> tuple[torch.Tensor, int]:
    """Ancestral sampling: each step draws from the posterior of the next cleaner state.

    With nfe < T the chain visits `nfe` of the T times and uses the posterior between those (respacing).

    Args:
        request: nfe 1 to T (default T); `step_noise(i)` is drawn at every step but the last. Options:
            spacing: "trailing" (default) or "leading"; equal at nfe = T.
            variance: "large", beta, or "small", the posterior's own beta-tilde; the default is `ancestral_variance`.
            clip_x0: clip the image estimate to [-1, 1] before the posterior mean is taken (default true).

    Source: Ho et al. 2020 (arXiv 2006.11239), Algorithm 2 and Eq. (6), (7); respacing: arXiv 2102.09672, section 4.
    Differs: the mean is taken of a clipped x0, as in the authors' code.
    """
    nfe = schedule.num_steps if request.nfe is None else request.nfe
    options = read_options("ddpm", AncestralOptions, request.options)
    posterior_variance = (options.variance or ancestral_variance(nfe, schedule.num_steps)) == "small"
    denoise = _CountedDenoiser(network, request.condition, schedule, clip_x0=options.clip_x0)
    x = x0 = noise.float()
    for i, (t, t_next) in enumerate(_steps(timesteps(schedule, nfe, options.spacing))):
        x0, _ = denoise(x, t)
        if t_next < 0:
            break
        alpha_bar, alpha_bar_next = schedule.signal_share(t), schedule.signal_share(t_next)
        alpha = alpha_bar / alpha_bar_next
        x = (
            math.sqrt(alpha_bar_next) * (1 - alpha) / (1 - alpha_bar) * x0
            + math.sqrt(alpha) * (1 - alpha_bar_next) / (1 - alpha_bar) * x
        )
        variance = (1 - alpha) * ((1 - alpha_bar_next) / (1 - alpha_bar) if posterior_variance else 1.0)
        x = x + math.sqrt(variance) * request.step_noise(i).to(x)
    return x0, denoise.calls


def sample_ddim(
    network: Network, noise: torch.Tensor, request: SampleRequest, *, schedule: NoiseSchedule
) -> tuple[torch.Tensor, int]:
    """DDIM: deterministic at eta = 0, as noisy as ancestral sampling at eta = 1.

    Args:
        request: nfe 1 to T (default 50); `step_noise(i)` is drawn where eta > 0, at every step but the last. Options:
            eta: >= 0 (default 0).
            spacing: "trailing" (default: starts at T - 1, where the state really is pure noise, which few steps need)
                or "leading" (that of the DDIM paper's code).
            clip_x0: clip the image estimate to [-1, 1] (default true); the predicted noise stays as it is.

    Source: Song et al. 2021 (arXiv 2010.02502), Eq. (12), (16). Differs: the clipping of x0.
    """
    nfe = DDIM_NFE if request.nfe is None else request.nfe
    options = read_options("ddim", DDIMOptions, request.options)
    eta = options.eta
    denoise = _CountedDenoiser(network, request.condition, schedule, clip_x0=options.clip_x0)
    x = x0 = noise.float()
    for i, (t, t_next) in enumerate(_steps(timesteps(schedule, nfe, options.spacing))):
        x0, predicted = denoise(x, t)
        if t_next < 0:
            break
        alpha_bar, alpha_bar_next = schedule.signal_share(t), schedule.signal_share(t_next)
        sigma = eta * math.sqrt((1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next))
        # eta > 1 may ask for more noise than the next time holds; then all of it is fresh.
        kept = math.sqrt(max(0.0, 1 - alpha_bar_next - sigma**2))
        x = math.sqrt(alpha_bar_next) * x0 + kept * predicted
        if sigma > 0:
            x = x + sigma * request.step_noise(i).to(x)
    return x0, denoise.calls


def sample_dpm_solver(
    network: Network, noise: torch.Tensor, request: SampleRequest, *, schedule: NoiseSchedule
) -> tuple[torch.Tensor, int]:
    """DPM-Solver++(2M): deterministic, second order, with one network call per step.

    The first step has no history and the last one goes to zero noise, where the time scale ends: both are first
    order. This is diffusers' `DPMSolverMultistepScheduler` with dpmsolver++, solver_order 2, midpoint,
    final_sigmas_type "zero", lower_order_final; clip_x0 is its thresholding with sample_max_value 1.

    Args:
        request: nfe 1 to T (default 20). Options:
            spacing: "trailing" (default) or "leading". Leading leaves out time 0, from which a step to zero noise
                would be all but empty: multiples of floor(T / (nfe + 1)) from the first on; nfe is then at most T - 1.
            clip_x0: clip the image estimate to [-1, 1] (default true).

    Source: Lu et al. 2022 (arXiv 2211.01095), Algorithm 2. Differs: the clipping of x0; the last step is first order.
    """
    nfe = DPM_SOLVER_NFE if request.nfe is None else request.nfe
    options = read_options("dpm-solver", SolverOptions, request.options)
    denoise = _CountedDenoiser(network, request.condition, schedule, clip_x0=options.clip_x0)
    x = x0 = noise.float()
    previous: tuple[torch.Tensor, float] | None = None  # image estimate and lambda-step of the step before
    for t, t_next in _steps(_solver_timesteps(schedule, nfe, options.spacing)):
        x0, _ = denoise(x, t)
        if t_next < 0:
            break
        alpha_bar, alpha_bar_next = schedule.signal_share(t), schedule.signal_share(t_next)
        h = half_log_snr(alpha_bar_next) - half_log_snr(alpha_bar)
        direction = x0
        if previous is not None:
            before, h_before = previous
            slope = h / (2 * h_before)
            direction = (1 + slope) * x0 - slope * before
        x = (
            math.sqrt((1 - alpha_bar_next) / (1 - alpha_bar)) * x
            - math.sqrt(alpha_bar_next) * math.expm1(-h) * direction
        )
        previous = (x0, h)
    return x0, denoise.calls


def _solver_timesteps(schedule: NoiseSchedule, nfe: int, spacing: Spacing) -> list[int]:
    check_nfe(schedule, nfe)
    if spacing != "leading":
        return timesteps(schedule, nfe, spacing)
    if nfe == schedule.num_steps:
        raise UsageError(f"nfe: dpm-solver with leading spacing takes 1 to {nfe - 1} steps, got {nfe}; use trailing")
    return timesteps(schedule, nfe + 1, "leading")[:-1]


def _steps(times: list[int]) -> list[tuple[int, int]]:
    """Pairs of (time, the next time); -1 stands for the clean image."""
    return list(zip(times, [*times[1:], -1], strict=True))
