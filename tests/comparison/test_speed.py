"""Timing: what is counted, scaled and held equal."""

import time

import pytest
import torch
from torch import nn

from driftkit.comparison.speed import Speed, SpeedCase, SpeedSettings, measure_speeds, speed_of
from driftkit.training.sampling import guided_sampler


class Counting(nn.Module):
    def __init__(self, seconds=0.0):
        super().__init__()
        self.calls, self.seconds = [], seconds

    def forward(self, x, t):
        time.sleep(self.seconds)
        self.calls.append(x.shape)
        return x


def sampler(network, noise, request):
    for _ in range(request.nfe):
        noise = network(noise, None)
    return noise, request.nfe


def case(network, nfe, run="run"):
    return SpeedCase(run, "ddim", network, sampler, nfe, (3, 8, 8))


def settings(**changes):
    return SpeedSettings(torch.device("cpu"), torch.float32, **{"batch_size": 4, **changes})


def test_every_case_is_timed_as_often_with_the_same_batch():
    one, many = Counting(), Counting()
    rounds = []
    speeds = measure_speeds([case(one, 1, "a"), case(many, 10, "b")], settings(), advance=rounds.append)
    assert [(s.run, s.nfe, s.scaled) for s in speeds] == [("a", 1, False), ("b", 10, False)]
    assert rounds == [0] + [1] * 8  # a first look at each, and three rounds
    assert len(one.calls) == 1 + 1 + 3  # warm-up, a first look, three repeats
    assert len(many.calls) == 2 + 2 + 30
    assert set(one.calls + many.calls) == {(4, 3, 8, 8)}


def test_samplers_beyond_the_budget_are_scaled_and_say_so():
    network = Counting(seconds=0.01)
    (speed,) = measure_speeds([case(network, 1000)], settings(budget_seconds=0.15))
    assert speed.scaled
    assert 2 <= speed.measured_nfe <= 5
    assert speed.seconds_per_batch >= 10.0
    assert speed.images_per_second == pytest.approx(4 / speed.seconds_per_batch)
    assert speed.unevenness >= 1


def test_settings_are_described_as_json():
    described = settings().describe()
    assert described["dtype"] == "float32"
    assert described["batch_size"] == 4
    assert described["compiled"] is False
    assert described["device"].startswith("cpu")


def test_options_of_a_sampler_do_not_hide_its_speed():
    speeds = [Speed("a", "ddim", 50, 50, 8.5, 1.9, 1.0)]
    assert speed_of(speeds, "a", "ddim eta=1.0", 50) is speeds[0]
    assert speed_of(speeds, "a", "ddim", 10) is None
    assert speed_of(speeds, "b", "ddim", 50) is None


def test_a_guided_sampler_is_timed_with_both_halves_and_an_even_number_of_evaluations():
    rows = []

    def network(x, t, condition):
        time.sleep(0.003)
        rows.append((len(x), condition.labels.tolist()))
        return x

    def plain(network, noise, request):
        for _ in range(request.nfe):
            noise = network(noise, torch.zeros(len(noise)), request.condition)
        return noise, request.nfe

    cases = [SpeedCase("a", "ddim guided", network, guided_sampler(plain, 2.0), 1000, (3, 8, 8), guided=True)]
    (speed,) = measure_speeds(cases, settings(budget_seconds=0.1))
    assert speed.measured_nfe % 2 == 0
    assert set(map(str, rows)) == {str((8, [0] * 4 + [-1] * 4))}
    assert len(rows) == 1 + 1 + 3 * speed.measured_nfe // 2
    speeds = [speed, Speed("a", "ddim", 1000, 50, 8.5, 1.9, 1.0), Speed("b", "one-step", 1, 1, 8.5, 1.9, 1.0)]
    assert speed_of(speeds, "a", "ddim guidance=4", 1000) is speed
    assert speed_of(speeds, "a", "ddim", 1000) is speeds[1]
    assert speed_of(speeds, "b", "one-step guidance=2", 1) is speeds[2]  # trained with the scale: nothing is doubled
