"""DDPM, as the rest of driftkit knows it."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from driftkit.methods.base import (
    CURVE_NFES,
    BuiltObjective,
    Curve,
    Graph,
    Method,
    SamplerSpec,
    Setting,
    register,
    sampler_table,
)
from driftkit.methods.ddpm.config import (
    DDIM_NFE,
    DPM_SOLVER_NFE,
    AncestralOptions,
    DDIMOptions,
    DDPMConfig,
    SolverOptions,
    ancestral_variance,
)

if TYPE_CHECKING:
    from torch import nn

    from driftkit.protocols import Sampler


def _build(config: DDPMConfig, setting: Setting) -> BuiltObjective:
    from driftkit.methods.ddpm.objective import DDPM
    from driftkit.methods.regression import require_no_style

    require_no_style(setting)
    return BuiltObjective(DDPM(config, clip_x0=not setting.latents))


def _sampler(name: str, config: DDPMConfig) -> "Sampler":
    from driftkit.methods.ddpm import samplers

    return partial(getattr(samplers, name), schedule=config.schedule())


def _graph(config: DDPMConfig, network: "nn.Module", shape: Sequence[int]) -> Graph:
    import torch

    from driftkit.methods.regression import TimedGraph
    from driftkit.models.conditioning import condition_inputs

    inputs = condition_inputs(network)
    generator = torch.Generator().manual_seed(0)

    def example(count: int) -> tuple[torch.Tensor, ...]:
        x_t = torch.randn(count, *shape, generator=generator)
        return x_t, torch.randint(0, config.num_steps, (count,), generator=generator), *inputs.example(count)

    last = config.num_steps - 1
    return Graph(
        "denoiser", TimedGraph(network), ("x_t", "t", *inputs.names), "noise", example,
        title="Predicts the noise in a noised image: the denoiser of a DDPM "
        "([arXiv 2006.11239](https://arxiv.org/abs/2006.11239)). It needs a sampler around it.",
        start_time=last,
        network_time=last,
        notes=f"""\
## Schedule

Times t = 0 (cleanest) to {last}. beta rises linearly from {config.beta_start} to
{config.beta_end} over {config.num_steps} steps, alpha_bar is the running product of 1 - beta,
x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise. The network predicts the noise, so
x_0 = (x_t - sqrt(1 - alpha_bar) noise) / sqrt(alpha_bar), which driftkit's samplers clip to [-1, 1].
""",
    )  # fmt: skip


UNCLIPPED = {"clip_x0": False}


def _implied_variance(config: DDPMConfig, nfe: int | None) -> dict[str, Any]:
    return {"variance": ancestral_variance(nfe, config.num_steps)}


register(
    Method(
        name="ddpm",
        label="DDPM",
        config=DDPMConfig,
        network="unet",
        build=_build,
        samplers=sampler_table(
            SamplerSpec(
                "ddim", partial(_sampler, "sample_ddim"), lambda config: DDIM_NFE,
                curve_nfes=CURVE_NFES, speed_nfes=(10, 50, 100), options=DDIMOptions,
                latent_options=UNCLIPPED,
            ),
            SamplerSpec(
                "ddpm", partial(_sampler, "sample_ddpm"), lambda config: config.num_steps,
                options=AncestralOptions, implied_options=_implied_variance,
                latent_options=UNCLIPPED,
            ),
            SamplerSpec(
                "dpm-solver", partial(_sampler, "sample_dpm_solver"),
                lambda config: DPM_SOLVER_NFE,
                curve_nfes=CURVE_NFES, options=SolverOptions, latent_options=UNCLIPPED,
            ),
        ),
        graph=_graph,
        curves=(Curve("loss", "noise prediction loss", "Loss of DDPM: squared error of the predicted noise."),),
    )
)  # fmt: skip
