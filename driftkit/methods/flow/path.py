"""The straight path from images to noise."""

import torch

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
