"""The noise schedule and the times that samplers visit."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler

from driftkit.errors import UsageError
from driftkit.methods.ddpm.schedule import linear_schedule, q_sample, timesteps


def test_linear_schedule_is_that_of_the_paper():
    schedule = linear_schedule()
    assert schedule.num_steps == 1000
    assert schedule.betas[0] == pytest.approx(1e-4)
    assert schedule.betas[-1] == pytest.approx(0.02)
    product = 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + t * (0.02 - 1e-4) / 999)
    assert float(schedule.alpha_bar[-1]) == pytest.approx(product, rel=1e-12)
    assert schedule.signal_share(-1) == 1.0


@pytest.mark.parametrize("arguments", [(0,), (10, 0.0, 0.02), (10, 0.03, 0.02), (10, 0.1, 1.0)])
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(UsageError):
        linear_schedule(*arguments)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 7, 10, 30, 50, 333, 600, 999, 1000])
def test_timesteps_are_those_of_diffusers(nfe, spacing):
    other = DDIMScheduler(timestep_spacing=spacing)
    other.set_timesteps(nfe)
    # numpy's arange of a fractional stride may run one element too far (into time -1); we never do.
    assert timesteps(linear_schedule(), nfe, spacing) == other.timesteps.tolist()[:nfe]


@pytest.mark.parametrize("nfe", range(1, 41))
def test_timesteps_fall_and_stay_in_range(nfe):
    for spacing in ("leading", "trailing"):
        times = timesteps(linear_schedule(40), nfe, spacing)
        assert len(times) == nfe
        assert all(a > b for a, b in itertools.pairwise(times))
        assert 0 <= times[-1] <= times[0] <= 39


@pytest.mark.parametrize(("nfe", "spacing"), [(0, "leading"), (-1, "trailing"), (41, "leading"), (5, "linspace")])
def test_bad_nfe_and_spacing_are_usage_errors(nfe, spacing):
    with pytest.raises(UsageError):
        timesteps(linear_schedule(40), nfe, spacing)


def test_q_sample_mixes_signal_and_noise_by_alpha_bar():
    schedule = linear_schedule()
    x0, noise = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    t = torch.tensor([0, 500, 999])
    noisy = q_sample(x0, t, noise, schedule)
    for i, time in enumerate(t.tolist()):
        share = float(schedule.alpha_bar[time])
        expected = share**0.5 * x0[i].double() + (1 - share) ** 0.5 * noise[i].double()
        torch.testing.assert_close(noisy[i].double(), expected, atol=1e-6, rtol=0)
    assert noisy.dtype == torch.float32


def test_q_sample_refuses_what_does_not_fit():
    schedule = linear_schedule(10)
    x = torch.zeros(2, 3, 4, 4)
    for t, noise in (
        (torch.tensor([0]), x),
        (torch.tensor([0.0, 1.0]), x),
        (torch.tensor([0, 10]), x),
        (torch.tensor([-1, 0]), x),
        (torch.tensor([0, 1]), x[:1]),
    ):
        with pytest.raises(ValueError):
            q_sample(x, t, noise, schedule)
