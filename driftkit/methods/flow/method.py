"""Rectified flow, as the rest of driftkit knows it."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from driftkit.methods.base import (
    CURVE_NFES,
    BuiltObjective,
    Curve,
    Graph,
    Method,
    RegressionConfig,
    SamplerSpec,
    Setting,
    register,
    sampler_table,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from driftkit.protocols import Sampler


EULER_NFE = HEUN_NFE = 50


class FlowConfig(RegressionConfig):
    """The rectified flow objective."""

    name: Literal["flow"] = "flow"


def _build(config: FlowConfig, setting: Setting) -> BuiltObjective:
    from driftkit.methods.flow.objective import Flow
    from driftkit.methods.regression import require_no_style

    require_no_style(setting)
    return BuiltObjective(Flow(label_dropout=config.label_dropout_in_training))


def _sampler(name: str, config: FlowConfig) -> "Sampler":
    from driftkit.methods.flow import samplers

    sampler: Sampler = getattr(samplers, name)
    return sampler


def _graph(config: FlowConfig, network: "nn.Module", shape: Sequence[int]) -> Graph:
    import torch

    from driftkit.methods.flow.samplers import TIME_SCALE
    from driftkit.methods.regression import TimedGraph
    from driftkit.models.conditioning import condition_inputs

    inputs = condition_inputs(network)
    generator = torch.Generator().manual_seed(0)

    def example(count: int) -> "tuple[torch.Tensor, ...]":
        x_t = torch.randn(count, *shape, generator=generator)
        return x_t, torch.rand(count, generator=generator), *inputs.example(count)

    return Graph(
        "velocity", TimedGraph(network, TIME_SCALE), ("x_t", "t", *inputs.names), "v", example,
        title="Predicts the velocity of a rectified flow ([arXiv 2209.03003](https://arxiv.org/abs/2209.03003)). It "
        "needs a sampler around it.",
        start_time=1.0,
        network_time=TIME_SCALE,
        notes="""\
## Path

x_t = (1 - t) image + t noise for t from 0 to 1, and v = dx_t / dt. From noise at t = 1, a step of Euler's method is
x_(t - h) = x_t - h v(x_t, t); at t = 0 the state is the image. The plain network takes 1000 t as its time.
""",
    )  # fmt: skip


register(
    Method(
        name="flow",
        label="Rectified flow",
        config=FlowConfig,
        network="unet",
        build=_build,
        samplers=sampler_table(
            SamplerSpec(
                "euler",
                partial(_sampler, "sample_euler"),
                lambda config: EULER_NFE,
                curve_nfes=CURVE_NFES,
                speed_nfes=(10, 50, 100),
            ),
            SamplerSpec("heun", partial(_sampler, "sample_heun"), lambda config: HEUN_NFE, curve_nfes=CURVE_NFES),
        ),
        graph=_graph,
        curves=(Curve("loss", "velocity prediction loss", "Loss of flow matching: squared error of the velocity."),),
    )
)
