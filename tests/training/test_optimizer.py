"""Learning rate and average of weights against their formulas, clipping against torch's, and updates held back."""

import math

import pytest
import torch
from torch import nn

from driftkit.training.optimizer import adamw, averaged, clip_gradients, scheduled_rate
from driftkit.training.train_config import TrainerConfig, load_config, resolve_config


def literal_rates(kind, *, steps, warmup, decay, floor):
    """The share of the learning rate at every update, in float64, phase by phase."""
    rates = []
    for n in range(steps):
        rising = min(1.0, (n + 1) / warmup) if warmup else 1.0
        begin = warmup if decay is None else steps - decay
        falling = 1.0
        if kind != "constant" and n > begin:
            p = (n - begin) / (steps - begin)
            curve = {"linear": 1 - p, "cosine": 0.5 * (1 + math.cos(p * math.pi))}[kind]
            falling = floor + (1 - floor) * curve
        rates.append(rising * falling)
    return rates


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 4, 30])
@pytest.mark.parametrize(("decay", "floor"), [(None, 0.0), (None, 0.1), (5, 0.0), (20, 0.25), (18, 0.0)])
def test_the_learning_rate_follows_the_formula(kind, warmup, decay, floor):
    if kind == "constant":
        decay, floor = None, 0.0
    config = TrainerConfig(
        steps=20, learning_rate=0.5, warmup_steps=warmup, schedule=kind, decay_steps=decay, final_rate=floor
    )
    expected = literal_rates(kind, steps=20, warmup=warmup, decay=decay, floor=floor)
    assert [scheduled_rate(n, config) for n in range(20)] == pytest.approx([0.5 * r for r in expected], rel=1e-12)


def test_linear_decay_falls_evenly_over_the_last_steps_alone():
    config = TrainerConfig(steps=8, learning_rate=1.0, warmup_steps=2, schedule="linear", decay_steps=4)
    assert [scheduled_rate(n, config) for n in range(8)] == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_a_cosine_falls_to_the_share_that_it_was_given():
    config = TrainerConfig(steps=1000, learning_rate=2.0, schedule="cosine", final_rate=0.1)
    assert scheduled_rate(500, config) == pytest.approx(2.0 * 0.55)
    assert scheduled_rate(999, config) == pytest.approx(0.2, abs=1e-4)


def literal(values, *, decay, warmup):
    """The average after each step, in float64."""
    average, seen = 0.0, []
    for step, value in enumerate(values, start=1):
        bound = (step - 1) / (step - 1 + warmup) if warmup else 1.0
        kept = 0.0 if step == 1 else min(decay, bound)
        average = kept * average + (1 - kept) * value
        seen.append(average)
    return seen


@pytest.mark.parametrize("warmup", [0, 1.0, 9.0, 250.0])
def test_average_follows_the_formula(warmup):
    values = torch.randn(60, generator=torch.Generator().manual_seed(0)).tolist()
    network = nn.Linear(1, 1, bias=False)
    ema = averaged(network, decay=0.9, warmup=warmup)
    for step, (value, expected) in enumerate(zip(values, literal(values, decay=0.9, warmup=warmup), strict=True), 1):
        nn.init.constant_(network.weight, value)
        ema.update(network, step)
        assert ema.module.weight.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("warmup", "step"), [(9.0, 89_992), (0, 2)])
def test_the_step_at_which_the_decay_is_reached(warmup, step):
    ema = averaged(nn.Linear(1, 1), decay=0.9999, warmup=warmup)
    assert ema.get_decay(step) == pytest.approx(0.9999, abs=1e-12)
    assert ema.get_decay(step - 1) < 0.9999 - 1e-10


@pytest.mark.parametrize(
    ("given", "decays", "written"),
    [
        ("0.999", (0.999,), 0.999),
        ("[0.999, 0.9995]", (0.999, 0.9995), [0.999, 0.9995]),
        ("0.999,0.9995", (0.999, 0.9995), [0.999, 0.9995]),
    ],
)
def test_averages_are_set_by_one_decay_or_several_and_named_after_them(given, decays, written):
    config = resolve_config(objective="ddpm", assignments=[f"trainer.ema_decay={given}"])[0]
    assert config.trainer.ema_decay == decays
    assert list(config.trainer.averages) == ["ema", "ema-0.9995"][: len(decays)]
    assert config.model_dump(mode="json")["trainer"]["ema_decay"] == written
    assert load_config(config.model_dump(mode="json")) == config


def test_the_full_size_preset_averages_with_a_constant_decay():
    trainer = resolve_config(objective="ddpm", preset="cifar10-multires")[0].trainer
    assert (trainer.ema_decay, trainer.ema_warmup) == ((0.9999,), 0)
    assert resolve_config(objective="ddpm")[0].trainer.ema_warmup == 9.0


def gradients_of(network):
    torch.manual_seed(1)
    network(torch.randn(8, 3)).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_is_that_of_torch_bit_for_bit(limit):
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(2, 2)]))
        networks[-1].forward = lambda x, layers=networks[-1]: layers[1](layers[0](x))  # no gradient reaches the third
    before, _ = map(gradients_of, networks)
    expected = nn.utils.clip_grad_norm_(networks[0].parameters(), limit)
    norm, norms = clip_gradients(networks[1], limit)
    assert torch.equal(norm, expected)
    assert list(norms) == list(before)
    assert all(torch.equal(norms[name], gradient.norm()) for name, gradient in before.items())
    for theirs, ours in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None)
        assert theirs.grad is None or torch.equal(theirs.grad, ours.grad)


def test_a_held_back_update_leaves_weights_and_moments_as_they_were():
    network = torch.nn.Linear(3, 2)
    optimizer = adamw(network, learning_rate=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in network.parameters()]
    state = [v.clone() for s in optimizer.state.values() for v in s.values()]
    for p in network.parameters():
        p.grad.fill_(torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(state, (v for s in optimizer.state.values() for v in s.values()), strict=True)
    )
    optimizer.found_inf = torch.tensor(0.0)
    network.zero_grad()
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before[0], network.weight)
