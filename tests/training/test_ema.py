"""The average of the weights against its formula, with and without warm-up."""

import pytest
import torch
from torch import nn

from driftkit.training.ema import averaged
from driftkit.training.train_config import resolve_config


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


def test_the_full_size_preset_averages_with_a_constant_decay():
    trainer = resolve_config(objective="ddpm", preset="cifar10-multires")[0].trainer
    assert (trainer.ema_decay, trainer.ema_warmup) == (0.9999, 0)
    assert resolve_config(objective="ddpm")[0].trainer.ema_warmup == 9.0
