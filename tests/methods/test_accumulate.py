"""Small-memory steps have the gradient of the whole batch."""

from dataclasses import replace

import pytest
import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import FeatureGroup, field_calls
from driftkit.encoders.trained_encoder import MAEEncoder
from driftkit.methods.ddpm.config import DDPMConfig
from driftkit.methods.ddpm.objective import DDPM
from driftkit.methods.drifting import aggregated_drift, drift_loss
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.methods.drifting.samplers import generate_one_step
from driftkit.methods.mae.method import MAEConfig
from driftkit.methods.mae.objective import MAE
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.models.unet import UNet, UNetConfig
from driftkit.protocols import Batch, Execution
from driftkit.runtime.random import image_noise, seed_global_generators
from driftkit.runtime.ranks import Ranks

COUNT, SIZE = 10, 16


def unet(dropout=0.0):
    torch.manual_seed(0)
    config = UNetConfig(
        base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(), dropout=dropout
    )
    network = UNet(config, image_size=SIZE)
    for parameter in network.parameters():  # zero-initialised outputs would hide the rest of the network
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def mae():
    torch.manual_seed(1)
    return MAEResNet(MAEResNetConfig(base_channels=8, num_blocks=(1, 1, 1, 1), num_classes=3))


def encoder():
    frozen = MAEEncoder("mae", mae(), input_size=SIZE)
    frozen.freeze()
    return frozen


def batch():
    images = torch.rand(COUNT, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return Batch(images, torch.arange(COUNT) % 3, range(COUNT), seed=0, step=4)


def gradient(objective, network, micro_batch):
    network.zero_grad()
    outcome = objective.accumulate(network, batch(), Execution(micro_batch=micro_batch))
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]), outcome


OBJECTIVES = {
    "drift": lambda: (Drifting(DriftingConfig(), EncoderUnion.of(encoder()), ranks=Ranks()), unet()),
    "drift with drawn vectors": lambda: (
        Drifting(DriftingConfig(vectors_per_group=2), EncoderUnion.of(encoder()), ranks=Ranks()),
        unet(),
    ),
    "drift of images as they are": lambda: (
        Drifting(DriftingConfig(clip=False), EncoderUnion.of(encoder()), ranks=Ranks()),
        unet(),
    ),
    "ddpm": lambda: (DDPM(DDPMConfig()), unet()),
    "mae": lambda: (MAE(MAEConfig(finetune_from=0, finetune_ramp=1), ranks=Ranks()), mae()),
}


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_chunks_give_the_gradient_and_the_loss_of_the_whole_batch(name, micro_batch):
    objective, network = OBJECTIVES[name]()
    want, whole = gradient(objective, network, None)
    got, parts = gradient(objective, network, micro_batch)
    assert want.norm() > 0
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert torch.allclose(parts.total, whole.total, rtol=1e-5)
    for name in whole.terms:
        assert torch.allclose(parts.terms[name], whole.terms[name], rtol=1e-4), name
    for name in whole.health:
        assert torch.allclose(parts.health[name], whole.health[name], rtol=1e-4), name


def test_drawn_vectors_are_others_in_every_step_and_the_same_of_real_and_generated_images():
    objective = Drifting(DriftingConfig(vectors_per_group=1), EncoderUnion.of(encoder(), "locations"), ranks=Ranks())
    whole, network = Drifting(DriftingConfig(), EncoderUnion.of(encoder(), "locations"), ranks=Ranks()), unet()
    want = {name: term.item() for name, term in gradient(whole, network, None)[1].terms.items()}
    groups = objective.encoders.groups(batch().images)
    seen = {group.name: set() for group in groups}
    rows = objective._drawn([FeatureGroup("m", "k", torch.arange(60.0)[:, None, None])], batch())[0].values
    again = objective._drawn([FeatureGroup("m", "k", 100 + torch.arange(60.0)[:, None, None])], batch())[0].values
    assert torch.equal(again, 100 + rows)
    for step in range(60):
        for group, drawn in zip(groups, objective._drawn(groups, replace(batch(), step=step)), strict=True):
            assert drawn.values.shape == (1, *group.values.shape[1:])
            seen[group.name] |= {
                at for at in range(len(group.values)) if torch.equal(group.values[at], drawn.values[0])
            }
    assert all(len(seen[group.name]) > min(len(group.values), 60) // 2 for group in groups)
    terms = gradient(objective, network, None)[1].terms
    assert terms.keys() == want.keys()
    for name, term in terms.items():  # of one vector instead of the mean of all
        assert 0.2 * want[name] < term.item() < 5 * want[name], name


@pytest.mark.parametrize("clip", [True, False])
def test_encoders_see_generated_images_clipped(monkeypatch, clip):
    """As they are saved. Pixels outside of the range get no gradient."""
    objective, network = Drifting(DriftingConfig(clip=clip), EncoderUnion.of(encoder()), ranks=Ranks()), unet()
    torch.nn.init.normal_(network.output.bias, std=2.0)
    groups, seen = objective._features, []
    monkeypatch.setattr(objective, "_features", lambda images: seen.append(images.detach()) or groups(images))
    gradient(objective, network, None)
    generated = generate_one_step(network, image_noise(0, "prior", range(COUNT), (3, SIZE, SIZE), step=4)).detach()
    assert generated.abs().max() > 1.5
    assert torch.allclose(seen[-1], generated.clamp(-1, 1) if clip else generated)


def test_averaging_the_losses_of_chunks_would_be_another_gradient():
    """What plain gradient accumulation does: every chunk has its own, smaller field."""
    objective, network = OBJECTIVES["drift"]()
    want, _ = gradient(objective, network, None)
    network.zero_grad()
    for which in Execution(micro_batch=5).chunks(COUNT):
        objective.accumulate(network, batch().part(which), Execution())
    accumulated = torch.cat([p.grad.flatten() for p in network.parameters()]) / 2
    assert (accumulated - want).norm() > 0.1 * want.norm()


def test_dropout_is_the_same_in_both_passes():
    """The literal form: all chunks with their graphs at once, each with its own seed, one field, one backward pass."""
    network = unet(dropout=0.5)
    objective = Drifting(DriftingConfig(clip=False), EncoderUnion.of(encoder(), "multires"), ranks=Ranks())
    got, _ = gradient(objective, network, 4)
    network.zero_grad()
    real, images = batch(), []
    noise = image_noise(0, "prior", real.slots, (3, SIZE, SIZE), step=4)
    for which in Execution(micro_batch=4).chunks(COUNT):
        seed_global_generators(0, 4, 0, which.start)
        images.append(generate_one_step(network, noise[which]))
    generated = torch.cat(images)
    calls = [field_calls(objective.encoders.groups(i)) for i in (generated, real.images)]
    losses = [
        (x, drift_loss(x.values(), aggregated_drift(x.values(), y.values(), scale_over="location")))
        for x, y in zip(*calls, strict=True)
    ]
    total = sum(
        per_field[torch.tensor(x.membership()) == n].mean() for x, per_field in losses for n in range(len(x.groups))
    )
    total.backward()
    want = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert (got - want).norm() <= 1e-5 * want.norm()
    again, _ = gradient(objective, network, 4)
    assert torch.equal(got, again)


def test_the_clock_names_what_a_drifting_step_spends_its_time_on():
    objective, network = OBJECTIVES["drift"]()
    how = Execution(micro_batch=5)
    how.clock.start()
    objective.accumulate(network, batch(), how)
    spent = how.clock.seconds()
    assert set(spent) == {"data", "encoder", "generator", "field"}
    assert all(seconds > 0 for seconds in spent.values())
    assert how.clock.seconds() == {}
