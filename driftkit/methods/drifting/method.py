"""Drifting, as the rest of driftkit knows it."""

from typing import TYPE_CHECKING

from driftkit.methods.base import BuiltObjective, Graph, Method, SamplerSpec, Setting, Workload, register, sampler_table
from driftkit.methods.drifting.config import DriftingConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from driftkit.protocols import Sampler


def _build(config: DriftingConfig, setting: Setting) -> BuiltObjective:
    from driftkit.methods.drifting.build import build_drifting

    return build_drifting(config, setting)


def _workload(config: DriftingConfig, network: "nn.Module", image_size: int) -> Workload:
    from driftkit.methods.drifting.cost import drifting_workload

    return drifting_workload(config, network, image_size)


def _sampler(config: DriftingConfig) -> "Sampler":
    from driftkit.methods.drifting.samplers import sample_one_step

    return sample_one_step


def _graph(config: DriftingConfig, network: "nn.Module", image_size: int) -> Graph:
    import torch

    from driftkit.methods.drifting.samplers import OneStepGenerator

    generator = torch.Generator().manual_seed(0)

    def example(count: int) -> "tuple[torch.Tensor, ...]":
        return (torch.randn(count, 3, image_size, image_size, generator=generator),)

    return Graph(
        "generator", OneStepGenerator(network), ("noise",), "images", example,
        title="Turns noise into images with one evaluation of the network: a drifting model "
        "([Generative Modeling via Drifting](https://arxiv.org/abs/2602.04770)).",
    )  # fmt: skip


METHOD = register(
    Method(
        name="drift",
        label="Drifting",
        config=DriftingConfig,
        network="unet",
        build=_build,
        workload=_workload,
        samplers=sampler_table(
            SamplerSpec(
                "one-step", _sampler, lambda config: 1, "image", curve_nfes=(1,), speed_nfes=(1,), fixed_nfe=True
            )
        ),
        graph=_graph,
        min_batch=2,  # generated images push one another
        reports_spread=True,
    )
)
