"""DDPM: the denoiser predicts the noise of a noised image."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from driftkit.methods.accumulate import accumulate_parts
from driftkit.methods.ddpm.forward import q_sample
from driftkit.methods.ddpm.samplers import sample_dpm_solver
from driftkit.methods.ddpm.schedule import NoiseSchedule, linear_schedule
from driftkit.protocols import Batch, Execution, SampleRequest, StepLoss
from driftkit.runtime.random import image_noise, stream_seed

PREVIEW_NFE = 20


class DDPMConfig(BaseModel):
    """The DDPM objective."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["ddpm"] = "ddpm"
    num_steps: int = Field(1000, ge=2, description="diffusion steps T")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta of the linear schedule")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta of the linear schedule")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} lies below beta_start {self.beta_start}")
        return self

    def schedule(self) -> NoiseSchedule:
        return linear_schedule(self.num_steps, self.beta_start, self.beta_end)


class DDPM:
    """Mean squared error of the predicted noise at uniformly drawn times.

    Source: Ho et al. 2020 (arXiv 2006.11239), Eq. (14). Differs: nothing.
    """

    needs_labels = False

    def __init__(self, config: DDPMConfig):
        self.schedule = config.schedule()

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """`noise`, standard normal, and `time`, uniform in [0, T)."""
        times = [stream_seed(seed, "time", step, slot) % self.schedule.num_steps for slot in slots]
        return {"noise": image_noise(seed, "noise", slots, image_shape, step=step), "time": torch.tensor(times)}

    def accumulate(self, model: nn.Module, batch: Batch, how: Execution) -> StepLoss:
        def loss(part: Batch, which: slice) -> StepLoss:
            assert part.draws is not None
            noise, t = part.draws["noise"].to(part.images), part.draws["time"]
            noisy = q_sample(part.images, t, noise, self.schedule)
            error = F.mse_loss(model(noisy, t).float(), noise, reduction="sum") / batch.images.numel()
            return StepLoss(error, {"noise_mse": error})

        return accumulate_parts(loss, batch.drawn(self), how)

    def measure(self, model: nn.Module) -> dict[str, float]:
        return {}

    def preview(self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        request = SampleRequest(
            nfe=min(PREVIEW_NFE, self.schedule.num_steps), step_noise=lambda _: torch.zeros_like(noise)
        )
        return sample_dpm_solver(model, noise, request, schedule=self.schedule)[0]
