"""Networks take a condition that compiles without graph breaks and does not become an input of exported graphs."""

import pytest
import torch

from driftkit.models.unet import UNet, UNetConfig
from driftkit.protocols import UNCONDITIONAL, Batch, Condition

TINY = UNetConfig(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, num_heads=2, attention_resolutions=())


def test_an_unconditional_network_ignores_its_condition():
    network = UNet(TINY, image_size=8).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    conditions = (UNCONDITIONAL, Condition(labels=torch.tensor([0, 1]), guidance=torch.ones(2)))
    first, second = (network(x, t, condition) for condition in conditions)
    assert torch.equal(first, second)
    assert torch.equal(first, network(x, t))


def test_a_part_of_a_batch_has_the_conditions_of_its_images():
    condition = Condition(labels=torch.arange(4))
    batch = Batch(torch.zeros(4, 3, 2, 2), None, range(4), seed=0, step=0, condition=condition)
    part = batch.part(slice(1, 3))
    assert part.condition.labels.tolist() == [1, 2]
    assert part.condition.guidance is None
    assert batch.part(slice(1, 3)).condition.part(slice(1)).labels.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_conditions_of_every_step_are_one_graph(dtype):
    torch._dynamo.reset()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    network = torch.compile(UNet(TINY, image_size=8), dynamic=False, fullgraph=True, backend=backend)
    for step in range(3):
        network(torch.randn(2, 3, 8, 8), torch.full((2,), step, dtype=dtype), Condition())
        network(torch.randn(2, 3, 8, 8), torch.full((2,), step, dtype=dtype), UNCONDITIONAL.part(slice(2)))
    assert len(compiled) == 1
