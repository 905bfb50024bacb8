"""The samplers against diffusers' schedulers, and what every sampler keeps."""

import math
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from driftkit.errors import UsageError
from driftkit.methods.ddpm.config import ancestral_variance
from driftkit.methods.ddpm.samplers import sample_ddim, sample_ddpm, sample_dpm_solver
from driftkit.methods.ddpm.schedule import linear_schedule
from driftkit.protocols import SampleRequest

SCHEDULE = linear_schedule()
SHAPE = (3, 3, 8, 8)
TOLERANCE = 1e-4  # diffusers keeps its schedule in float32
SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim, "dpm-solver": sample_dpm_solver}


def draw(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def denoiser(x, t, condition=None):
    """Nonlinear in both arguments, and wild enough that clipping matters."""
    phase = (t.double() / 1000).to(x.dtype).view(-1, 1, 1, 1)
    return torch.tanh(x * (0.6 + phase)) + 0.3 * torch.sin(3 * x + 7 * phase)


def request(nfe, **options):
    return SampleRequest(nfe=nfe, step_noise=lambda i: draw(1000 + i), options=options)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("nfe", [1, 2, 5, 10, 50])
def test_ddim_agrees_with_diffusers(nfe, spacing, eta, clip):
    other = DDIMScheduler(timestep_spacing=spacing, clip_sample=clip, set_alpha_to_one=True)
    other.set_timesteps(nfe)
    x = draw(0)
    for i, t in enumerate(other.timesteps):
        x = other.step(denoiser(x, t[None]), t, x, eta=eta, variance_noise=draw(1000 + i)).prev_sample
    images, _ = sample_ddim(denoiser, draw(0), request(nfe, eta=eta, spacing=spacing, clip_x0=clip), schedule=SCHEDULE)
    assert (images - x).abs().max() < TOLERANCE * x.abs().max().clamp(min=1)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("nfe", "spacing"), [(1, "trailing"), (7, "leading"), (7, "trailing"), (40, "leading")])
def test_ddpm_agrees_with_diffusers(nfe, spacing, variance, monkeypatch):
    other = DDPMScheduler(timestep_spacing=spacing, variance_type=f"fixed_{variance}", clip_sample=True)
    other.set_timesteps(nfe)
    x = estimate = draw(0)
    for i, t in enumerate(other.timesteps):
        step_noise = draw(1000 + i)
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, noise=step_noise, **__: noise
        )
        out = other.step(denoiser(x, t[None]), int(t), x)
        x, estimate = out.prev_sample, out.pred_original_sample
    images, _ = sample_ddpm(denoiser, draw(0), request(nfe, spacing=spacing, variance=variance), schedule=SCHEDULE)
    assert (images - estimate).abs().max() < TOLERANCE


def test_ddpm_takes_all_steps_with_the_large_variance_by_default_and_agrees_with_diffusers(monkeypatch):
    schedule = linear_schedule(60)
    other = DDPMScheduler(num_train_timesteps=60, clip_sample=True, variance_type="fixed_large")
    x = estimate = draw(0)
    for i, t in enumerate(reversed(range(60))):
        step_noise = draw(1000 + i)
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, noise=step_noise, **__: noise
        )
        out = other.step(denoiser(x, torch.tensor([t])), t, x)
        x, estimate = out.prev_sample, out.pred_original_sample
    images, nfe = sample_ddpm(denoiser, draw(0), request(None), schedule=schedule)
    assert nfe == 60
    assert (images - estimate).abs().max() < TOLERANCE


@pytest.mark.parametrize("nfe", [5, 4])
def test_the_first_ancestral_step_has_the_variance_of_its_nfe_in_plain_float64(nfe):
    """Of T = 5 steps: beta at NFE 5, the posterior's at NFE 4, which goes from t = 4 to t = 3 (4 - 1.25, rounded)."""
    betas = [0.1, 0.15, 0.2, 0.25, 0.3]
    alpha_bar = [math.prod(1 - beta for beta in betas[: t + 1]) for t in range(5)]
    schedule = linear_schedule(5, 0.1, 0.3)
    seen, draws = [], []

    def recording(x, t, condition=None):
        seen.append((x.double(), int(t[0])))
        return denoiser(x, t)

    def step_noise(i):
        draws.append(draw(1000 + i))
        return draws[-1]

    sample_ddpm(recording, draw(0), SampleRequest(nfe, step_noise, {"clip_x0": False}), schedule=schedule)
    (x, t), (got, t_next) = seen[:2]
    assert (t, t_next) == (4, 3)
    noise = denoiser(x.float(), torch.tensor([t])).double()
    x0 = (x - math.sqrt(1 - alpha_bar[t]) * noise) / math.sqrt(alpha_bar[t])
    beta = betas[t]
    mean = math.sqrt(alpha_bar[t_next]) * beta / (1 - alpha_bar[t]) * x0
    mean = mean + math.sqrt(1 - beta) * (1 - alpha_bar[t_next]) / (1 - alpha_bar[t]) * x
    variance = beta if nfe == 5 else beta * (1 - alpha_bar[t_next]) / (1 - alpha_bar[t])
    want = mean + math.sqrt(variance) * draws[0].double()
    assert (got - want).abs().max() < 1e-5
    assert ancestral_variance(nfe, 5) == ("large" if nfe == 5 else "small")
    assert ancestral_variance(None, 5) == "large"


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10, 20, 50])
def test_dpm_solver_agrees_with_diffusers(nfe, spacing, clip):
    other = DPMSolverMultistepScheduler(
        timestep_spacing=spacing,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
        thresholding=clip,
        sample_max_value=1.0,  # with this maximum dynamic thresholding is clipping to [-1, 1]
    )
    other.set_timesteps(nfe)
    x = draw(0)
    for t in other.timesteps:
        x = other.step(denoiser(x, t[None]), t, x).prev_sample
    images, _ = sample_dpm_solver(denoiser, draw(0), request(nfe, spacing=spacing, clip_x0=clip), schedule=SCHEDULE)
    assert (images - x).abs().max() < TOLERANCE * x.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("nfe", [1, 4, 25])
def test_perfect_denoiser_returns_its_image(name, spacing, nfe):
    image = draw(5).clamp(-1, 1)

    def perfect(x, t, condition=None):
        share = SCHEDULE.alpha_bar[t].view(-1, 1, 1, 1)
        return ((x.double() - share.sqrt() * image.double()) / (1 - share).sqrt()).float()

    images, _ = SAMPLERS[name](perfect, draw(0), request(nfe, spacing=spacing), schedule=SCHEDULE)
    # At t = 999 the signal's share is 0.006, which magnifies float32 rounding of the noise by 160.
    torch.testing.assert_close(images, image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("nfe", [1, 3, 20])
def test_nfe_is_the_number_of_calls(name, nfe):
    calls = []

    def counted(x, t, condition=None):
        calls.append(t)
        assert t.dtype == torch.int64
        assert t.shape == (len(x),)
        return denoiser(x, t)

    images, reported = SAMPLERS[name](counted, draw(0), request(nfe), schedule=SCHEDULE)
    assert reported == nfe == len(calls)
    assert images.shape == SHAPE
    assert images.dtype == torch.float32


@pytest.mark.parametrize(("name", "default"), [("ddpm", 30), ("ddim", 50), ("dpm-solver", 20)])
def test_default_nfe(name, default):
    schedule = linear_schedule(30 if name == "ddpm" else 1000)
    assert SAMPLERS[name](denoiser, draw(0), request(None), schedule=schedule)[1] == default


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0}), ("dpm-solver", {})])
def test_batch_splits_agree(name, options):
    sampler = partial(SAMPLERS[name], schedule=SCHEDULE)
    whole, _ = sampler(denoiser, draw(0), request(6, **options))
    parts = []
    for rows in (slice(0, 1), slice(1, 3)):
        part = SampleRequest(nfe=6, step_noise=lambda i, rows=rows: draw(1000 + i)[rows], options=options)
        parts.append(sampler(denoiser, draw(0)[rows], part)[0])
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_clipped_estimates_leave_images_in_range(name):
    images, _ = SAMPLERS[name](denoiser, draw(0), request(5), schedule=SCHEDULE)
    assert images.abs().max() <= 1


def test_noisy_state_is_never_clamped():
    seen = []

    def watching(x, t, condition=None):
        seen.append(x)
        return denoiser(x, t)

    sample_ddpm(watching, 3 * draw(0), request(10), schedule=SCHEDULE)
    assert all(x.abs().max() > 1 for x in seen[:5])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("nfe", [0, -3, 1001])
def test_bad_nfe_is_a_usage_error(name, nfe):
    with pytest.raises(UsageError, match="nfe"):
        SAMPLERS[name](denoiser, draw(0), request(nfe), schedule=SCHEDULE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"spacing": "linspace"}),
        ("ddim", {"spacing": 3}),
        ("ddim", {"eta": -0.1}),
        ("ddim", {"eta": float("nan")}),
        ("ddim", {"eta": True}),
        ("ddim", {"clip_x0": 1}),
        ("ddim", {"temperature": 1.0}),
        ("ddpm", {"eta": 1.0}),
        ("ddpm", {"variance": "learned"}),
        ("dpm-solver", {"eta": 0.0}),
        ("dpm-solver", {"spacing": "karras"}),
    ],
)
def test_bad_options_are_usage_errors(name, options):
    with pytest.raises(UsageError):
        SAMPLERS[name](denoiser, draw(0), request(5, **options), schedule=SCHEDULE)


def test_dpm_solver_with_leading_spacing_refuses_all_steps():
    with pytest.raises(UsageError, match="trailing"):
        sample_dpm_solver(denoiser, draw(0), request(20, spacing="leading"), schedule=linear_schedule(20))
