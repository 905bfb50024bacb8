"""DDPM: the denoiser predicts the noise of a noised image."""

import torch
from torch import nn

from driftkit.methods.ddpm.config import DDPMConfig
from driftkit.methods.ddpm.samplers import sample_dpm_solver
from driftkit.methods.ddpm.schedule import q_sample
from driftkit.methods.regression import NoiseRegression
from driftkit.protocols import UNCONDITIONAL, Condition, SampleRequest

PREVIEW_NFE = 20


class DDPM(NoiseRegression):
    """Mean squared error of the predicted noise at times drawn uniformly from 0 to T - 1.

    Source: Ho et al. 2020 (arXiv 2006.11239), Eq. (14). Differs: nothing.
    """

    term = "noise_mse"

    def __init__(self, config: DDPMConfig, *, clip_x0: bool = True):
        self.schedule = config.schedule()
        self.label_dropout = config.label_dropout_in_training
        self.clip_x0 = clip_x0  # of previews: latents are not bounded

    def time(self, number: int) -> int:
        return number % self.schedule.num_steps

    def noised(
        self, images: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return q_sample(images, time, noise, self.schedule), time, noise

    def preview(
        self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        request = SampleRequest(
            nfe=min(PREVIEW_NFE, self.schedule.num_steps),
            step_noise=lambda _: torch.zeros_like(noise),
            options={"clip_x0": self.clip_x0},
            condition=condition,
        )
        return sample_dpm_solver(model, noise, request, schedule=self.schedule)[0]
