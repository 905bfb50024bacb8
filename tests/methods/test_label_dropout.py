"""Class-conditional DDPM and flow: which images hide their class, and that chunks and slots do not matter."""

import dataclasses

import pytest
import torch

from driftkit.errors import UsageError
from driftkit.methods.ddpm.config import DDPMConfig
from driftkit.methods.ddpm.objective import DDPM
from driftkit.methods.flow.method import FlowConfig
from driftkit.methods.flow.objective import Flow
from driftkit.methods.registry import METHODS
from driftkit.models.registry import build_network
from driftkit.models.unet import UNetConfig
from driftkit.protocols import Batch, Execution
from tests.conftest import setting

CONDITIONAL = {
    "ddpm": lambda **more: DDPM(DDPMConfig(class_conditional=True, **more)),
    "flow": lambda **more: Flow(FlowConfig(class_conditional=True, **more).label_dropout_in_training),
}


def batch(count=12):
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, torch.arange(count) % 3, range(count), seed=0, step=4)


@pytest.mark.parametrize("make", CONDITIONAL.values(), ids=CONDITIONAL)
def test_the_share_without_class_is_the_dropout_and_follows_from_the_slot(make):
    objective = make(label_dropout=0.25)
    assert objective.needs_labels
    hidden = objective.draws(3, 1, range(4000), (1, 1, 1))["without_class"]
    assert float(hidden.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(objective.draws(3, 1, range(100, 140), (1, 1, 1))["without_class"], hidden[100:140])
    assert not torch.equal(objective.draws(3, 2, range(4000), (1, 1, 1))["without_class"], hidden)
    assert not make(label_dropout=0).draws(0, 0, range(100), (1, 1, 1))["without_class"].any()
    assert float(make().draws(3, 1, range(4000), (1, 1, 1))["without_class"].double().mean()) == pytest.approx(
        0.1, abs=0.02
    )


@pytest.mark.parametrize("make", CONDITIONAL.values(), ids=CONDITIONAL)
def test_the_network_sees_the_class_or_none(make):
    objective, seen = make(label_dropout=0.5), []

    def model(x, t, condition):
        seen.append(condition.labels)
        return torch.zeros_like(x, requires_grad=True)

    given = batch()
    objective.accumulate(model, given, Execution())
    hidden = objective.draws(0, 4, range(12), (3, 8, 8))["without_class"]
    assert 0 < hidden.sum() < 12
    assert torch.equal(seen[0], torch.where(hidden, -1, given.labels))


def test_unconditional_objectives_draw_and_pass_what_they_did():
    for objective in (DDPM(DDPMConfig()), Flow()):
        assert not objective.needs_labels
        assert set(objective.draws(0, 0, range(2), (3, 8, 8))) == {"noise", "time"}
        seen = []

        def model(x, t, condition, seen=seen):
            seen.append(condition)
            return torch.zeros_like(x, requires_grad=True)

        objective.accumulate(model, dataclasses.replace(batch(), labels=None), Execution())
        assert seen[0].labels is None


@pytest.mark.parametrize("make", CONDITIONAL.values(), ids=CONDITIONAL)
def test_micro_batches_give_the_gradient_of_the_whole_batch(make):
    gradients = []
    for micro_batch in (None, 5):
        torch.manual_seed(0)
        shape = UNetConfig(base_channels=8, channel_multipliers=(1,), num_heads=2, num_res_blocks=1, dropout=0.0,
                           num_classes=3, guided=False, attention_resolutions=())  # fmt: skip
        network = build_network(shape, image_size=8)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        make(label_dropout=0.5).accumulate(network, batch(), Execution(micro_batch=micro_batch))
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert float(gradients[0]["condition_embedding.labels.weight"].abs().max()) > 0
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("name", ["ddpm", "flow"])
def test_style_codes_are_refused(name):
    method = METHODS[name]
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"`model\.style_tokens` 2: .* takes no style codes"):
        method.build(method.config(), setting(images, network=UNetConfig(style_tokens=2)))
