"""Rectified flow: the network predicts the velocity of a straight path between image and noise."""

import torch
from torch import nn

from driftkit.methods.flow.samplers import TIME_SCALE, sample_heun, straight_path
from driftkit.methods.regression import NoiseRegression
from driftkit.protocols import UNCONDITIONAL, Condition, SampleRequest

PREVIEW_NFE = 20


class Flow(NoiseRegression):
    """Mean squared error of the predicted velocity at times drawn uniformly from [0, 1].

    Source: Liu et al. 2022 (arXiv 2209.03003), Eq. (1). Differs: the direction of time, see `straight_path`; one
    flow, without reflow.
    """

    term = "velocity_mse"

    def __init__(self, label_dropout: float | None = None):
        self.label_dropout = label_dropout

    def time(self, number: int) -> float:
        return number / 2**63

    def noised(
        self, images: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, velocity = straight_path(images, noise, time)
        return x, TIME_SCALE * time, velocity

    def preview(
        self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        request = SampleRequest(PREVIEW_NFE, step_noise=lambda _: torch.zeros_like(noise), condition=condition)
        return sample_heun(model, noise, request)[0]
