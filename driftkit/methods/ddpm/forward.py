"""The forward process: how an image is noised."""

import torch

from driftkit.methods.ddpm.schedule import NoiseSchedule


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
