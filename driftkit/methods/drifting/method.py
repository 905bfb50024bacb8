"""Drifting, as the rest of driftkit knows it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from driftkit.methods.base import (
    BuiltObjective,
    Curve,
    Graph,
    Method,
    SamplerSpec,
    Setting,
    Workload,
    register,
    sampler_table,
)
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


def _graph(config: DriftingConfig, network: "nn.Module", shape: Sequence[int]) -> Graph:
    import torch

    from driftkit.methods.drifting.samplers import OneStepGenerator
    from driftkit.models.conditioning import condition_inputs

    inputs = condition_inputs(network)
    generator = torch.Generator().manual_seed(0)

    def example(count: int) -> "tuple[torch.Tensor, ...]":
        return torch.randn(count, *shape, generator=generator), *inputs.example(count)

    return Graph(
        "generator", OneStepGenerator(network, inputs.names), ("noise", *inputs.names), "images", example,
        title="Turns noise into images with one evaluation of the network: a drifting model "
        "([Generative Modeling via Drifting](https://arxiv.org/abs/2602.04770)).",
    )  # fmt: skip


CURVES = (
    Curve("drift_norm", "drift norm", "Drift norm: how far real and generated features still pull apart."),
    Curve(
        "drift_ratio", "drift ratio",
        "Drift norm over that of as many real images: near 1 a step shows little but chance; larger groups show more.",
    ),
    Curve(
        "spread", "spread",
        "Spread of generated features over that of real ones: 1 is as varied as real images, near 0 is collapse.",
        from_zero=True,
    ),
    Curve(
        "loss", "normalised drifting loss",
        "Normalised drifting loss: flat by construction, shown so that nobody waits for it.", from_zero=True,
    ),
)  # fmt: skip


register(
    Method(
        name="drift",
        label="Drifting",
        config=DriftingConfig,
        network="unet",
        build=_build,
        workload=_workload,
        samplers=sampler_table(
            SamplerSpec("one-step", _sampler, lambda config: 1, curve_nfes=(1,), speed_nfes=(1,), fixed_nfe=True)
        ),
        graph=_graph,
        min_batch=2,  # generated images push one another
        sees_pixels=True,
        reports_spread=True,
        curves=CURVES,
        curves_note="The drifting loss divides the field by its own size, so it is flat by construction and says "
        "nothing about progress. The signal to watch is the drift norm: the length of the field before that division. "
        "It starts low while generated images are all alike, rises as they spread, and falls as generated and real "
        "features come to agree.",
    )
)
