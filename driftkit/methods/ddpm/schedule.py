"""The noise schedule, the forward process, and the times that a sampler visits."""

import math
from dataclasses import dataclass, field
from typing import get_args

import torch

from driftkit.errors import UsageError
from driftkit.methods.ddpm.config import Spacing

SPACINGS: tuple[str, ...] = get_args(Spacing)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise added by the forward process at the integer times 0 (cleanest) to num_steps - 1."""

    betas: torch.Tensor  # variance that one step adds, float64 [num_steps] on the CPU, in (0, 1)
    alpha_bar: torch.Tensor  # share of the signal's variance left at each time, float64 [num_steps] on the CPU, falling
    num_steps: int  # T
    _on: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def alpha_bar_on(self, device: torch.device) -> torch.Tensor:
        """`alpha_bar` on a device, where it stays: a copy at every step would wait for the work queued there."""
        if device not in self._on:
            self._on[device] = self.alpha_bar.to(device)
        return self._on[device]

    def signal_share(self, t: int) -> float:
        """alpha_bar at time t; 1.0 for t = -1, the clean image that follows time 0."""
        return 1.0 if t == -1 else float(self.alpha_bar[t])


def linear_schedule(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """Betas that rise linearly from `beta_start` to `beta_end` over `num_steps` steps.

    Raises:
        UsageError: num_steps < 1, or not 0 < beta_start <= beta_end < 1.

    Source: Ho et al. 2020 (arXiv 2006.11239), section 4. Differs: nothing.
    """
    if num_steps < 1:
        raise UsageError(f"num_steps: expected at least 1, got {num_steps}")
    if not 0 < beta_start <= beta_end < 1:
        raise UsageError(f"betas: expected 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
    betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
    return NoiseSchedule(betas, torch.cumprod(1 - betas, dim=0), num_steps)


def q_sample(x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, schedule: NoiseSchedule) -> torch.Tensor:
    """Noised images: sqrt(alpha_bar_t) * x0 + sqrt(1 - alpha_bar_t) * noise.

    Args:
        x0: clean images, float [N, C, H, W] in [-1, 1].
        t: integer times [N], each in [0, T).
        noise: standard normal, shape and dtype of x0.
        schedule: gives alpha_bar.

    Returns:
        [N, C, H, W] in the dtype of x0; the coefficients are computed in float64 before they are rounded to it.

    Raises:
        ValueError: shapes disagree, t is not integer, or (checked on the CPU only, where it costs no wait) a time lies
            outside [0, T).

    Source: Ho et al. 2020 (arXiv 2006.11239), Eq. (4). Differs: nothing.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise: expected {list(x0.shape)} like x0, got {list(noise.shape)}")
    if t.shape != x0.shape[:1] or t.is_floating_point():
        raise ValueError(f"t: expected integers [{len(x0)}], got {t.dtype} {list(t.shape)}")
    if t.device.type == "cpu" and t.numel() > 0 and not (int(t.min()) >= 0 and int(t.max()) < schedule.num_steps):
        raise ValueError(f"t: expected times in [0, {schedule.num_steps}), got {int(t.min())} to {int(t.max())}")
    alpha_bar = schedule.alpha_bar_on(x0.device)[t].view(-1, *[1] * (x0.ndim - 1))  # [N, 1, 1, 1]
    return alpha_bar.sqrt().to(x0.dtype) * x0 + (1 - alpha_bar).sqrt().to(x0.dtype) * noise


def timesteps(schedule: NoiseSchedule, nfe: int, spacing: str) -> list[int]:
    """The times at which a sampler of `nfe` steps calls the network, falling, each in [0, T).

    leading: multiples of floor(T / nfe), 0 among them and nothing added (a `steps_offset` of 0). The highest time is
        (nfe - 1) * floor(T / nfe), well below T - 1 when steps are few, although the state starts from pure noise.
    trailing: round(T - k * T / nfe) - 1 for k = 0 .. nfe - 1, halves to even. The highest time is always T - 1.

    Args:
        nfe: number of steps, 1 to T.
        spacing: "leading" or "trailing".

    Raises:
        UsageError: nfe or spacing is none of these.

    Source: Lin et al. 2023 (arXiv 2305.08891), Table 2, as diffusers' DDIM scheduler reads it. Differs: nothing.
    """
    check_nfe(schedule, nfe)
    if spacing == "leading":
        stride = schedule.num_steps // nfe
        return [k * stride for k in reversed(range(nfe))]
    if spacing == "trailing":
        width = schedule.num_steps / nfe
        return [round(schedule.num_steps - k * width) - 1 for k in range(nfe)]
    raise UsageError(f"spacing: expected {' or '.join(SPACINGS)}, got {spacing!r}")


def check_nfe(schedule: NoiseSchedule, nfe: int) -> None:
    """Refuse a number of steps that the schedule cannot give.

    Raises:
        UsageError: nfe is no integer from 1 to T.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int) or not 1 <= nfe <= schedule.num_steps:
        raise UsageError(f"nfe: expected an integer from 1 to {schedule.num_steps} (the diffusion steps), got {nfe!r}")


def half_log_snr(alpha_bar: float) -> float:
    """lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), the time scale on which DPM-Solver's steps are even."""
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))
