"""Settings of DDPM and of its samplers."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from driftkit.methods.base import RegressionConfig, SamplerOptions

if TYPE_CHECKING:
    from driftkit.methods.ddpm.schedule import NoiseSchedule

DDIM_NFE = 50
DPM_SOLVER_NFE = 20
Spacing = Literal["leading", "trailing"]


class DDPMConfig(RegressionConfig):
    """The DDPM objective."""

    name: Literal["ddpm"] = "ddpm"
    num_steps: int = Field(1000, ge=2, description="diffusion steps T")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta of the linear schedule")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta of the linear schedule")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} lies below beta_start {self.beta_start}")
        return self

    def schedule(self) -> "NoiseSchedule":
        from driftkit.methods.ddpm.schedule import linear_schedule

        return linear_schedule(self.num_steps, self.beta_start, self.beta_end)


class SolverOptions(SamplerOptions):
    """Options that all DDPM samplers have."""

    spacing: Spacing = Field("trailing", description="which of the T times are visited")
    clip_x0: bool = Field(True, description="clip the image estimate to [-1, 1]")


class DDIMOptions(SolverOptions):
    """Options of DDIM."""

    eta: float = Field(0.0, ge=0, description="share of fresh noise; 1: as noisy as ancestral sampling")


class AncestralOptions(SolverOptions):
    """Options of ancestral sampling."""

    variance: Literal["large", "small"] | None = Field(
        None, description="variance of the added noise: beta or that of the posterior; None: `ancestral_variance`"
    )


def ancestral_variance(nfe: int | None, num_steps: int) -> Literal["large", "small"]:
    """The variance that ancestral sampling adds by default: "large" at nfe = T (or None), "small" below.

    Source: the authors' code of Ho et al. 2020 for CIFAR-10 (beta at all T steps); Nichol and Dhariwal 2021
    (arXiv 2102.09672), whose few-step samples are much worse with beta. Differs: nothing.
    """
    return "large" if nfe in (None, num_steps) else "small"
