"""Networks take a condition that compiles without graph breaks and does not become an input of exported graphs."""

import pytest
import torch

from driftkit.models.unet import UNet, UNetConfig
from driftkit.protocols import UNCONDITIONAL, Batch, Condition
from driftkit.runtime.random import style_codes

TINY = UNetConfig(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, num_heads=2, attention_resolutions=())


def random_network(**settings):
    """A U-Net whose output depends on everything it gets: zero-initialised layers would hide it."""
    torch.manual_seed(0)
    network = UNet(TINY.model_copy(update=settings), image_size=8).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


INPUT = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 900])
CONDITIONED = {"num_classes": 3, "guided": True, "style_tokens": 2, "style_codes": 4}


@pytest.mark.parametrize(
    "condition",
    [
        Condition(labels=torch.tensor([2, 0])),
        Condition(guidance=torch.tensor([2.0, 4.0])),
        Condition(style=torch.tensor([[1, 0], [3, 3]])),
    ],
)
def test_every_part_of_a_condition_changes_each_image(condition):
    network = random_network(**CONDITIONED)
    changed = network(*INPUT, condition) != network(*INPUT)
    assert changed.flatten(1).any(dim=1).all()


def test_no_condition_is_no_class_scale_one_and_the_first_codes():
    network = random_network(**CONDITIONED)
    same = Condition(torch.tensor([-1, -1]), torch.ones(2), torch.zeros(2, 2, dtype=torch.long))
    assert torch.equal(network(*INPUT), network(*INPUT, same))


def test_the_tokens_of_a_style_have_codebooks_of_their_own():
    network = random_network(**CONDITIONED)
    swapped = [network(*INPUT, Condition(style=torch.tensor([[1, 2], codes]))) for codes in ([1, 2], [2, 1])]
    assert not torch.equal(*swapped)


@pytest.mark.parametrize("part", ["labels", "guidance", "style"])
def test_a_part_that_the_network_does_not_take_is_an_error(part):
    values = {"labels": torch.tensor([0, 1]), "guidance": torch.ones(2), "style": torch.zeros(2, 1, dtype=torch.long)}
    with pytest.raises(ValueError, match=f"takes no {part}"):
        random_network()(*INPUT, Condition(**{part: values[part]}))


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


def test_style_codes_are_of_seed_and_image_alone():
    drawn = style_codes(3, "sample", range(50), tokens=8, codes=4)
    assert torch.equal(drawn[7:9], style_codes(3, "sample", [7, 8], tokens=8, codes=4))
    assert not torch.equal(drawn, style_codes(4, "sample", range(50), tokens=8, codes=4))
    assert sorted(drawn.unique().tolist()) == [0, 1, 2, 3]
