"""The objectives: what they minimise, and that they learn."""

import torch

from driftkit.diffusion.schedule import linear_schedule
from driftkit.drift import aggregated_drift
from driftkit.encoders.networks import PixelEncoder
from driftkit.objectives.ddpm import DDPM, DDPMConfig
from driftkit.objectives.drifting import Drifting, DriftingConfig
from driftkit.objectives.mae import MAE, MAEConfig
from driftkit.protocols import Batch
from driftkit.runtime.distributed import Ranks
from driftkit.runtime.random import image_noise


def batch(count=8, size=4, step=0):
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, torch.full((count,), -1), range(count), seed=0, step=step)


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        return self.weight * x


def test_drifting_moves_the_generator_along_the_field():
    objective = Drifting(DriftingConfig(encoder="pixel"), PixelEncoder(input_size=4), ranks=Ranks())
    model, real = Linear(), batch()
    outcome = objective.loss(model, real)
    outcome.total.backward()
    noise = image_noise(0, "prior", range(8), (3, 4, 4), step=0)
    x = (0.5 * noise).flatten(1)[None]
    out = aggregated_drift(x, real.images.flatten(1)[None])
    assert torch.allclose(outcome.total, out.v.square().mean(), rtol=1e-4)
    wanted = (-2 * out.v[0] / (out.feature_scale * out.v[0].numel()) * noise.flatten(1)).sum()
    assert torch.allclose(model.weight.grad, wanted, rtol=1e-4)
    assert set(outcome.terms) == {"pixels/locations"}


def test_drifting_learns_a_shift():
    """A generator that can only move its output learns where the data lie."""

    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(3, 1, 1))

        def forward(self, x, t):
            return 0.1 * x + self.shift

    objective = Drifting(DriftingConfig(encoder="pixel"), PixelEncoder(input_size=4), ranks=Ranks())
    model = Shift()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    target = torch.tensor([0.5, -0.3, 0.1]).view(3, 1, 1)
    losses = []
    for step in range(60):
        images = target + 0.1 * image_noise(1, "data", range(32), (3, 4, 4), step=step)
        outcome = objective.loss(model, Batch(images, torch.zeros(32), range(32), 0, step))
        optimizer.zero_grad()
        outcome.total.backward()
        optimizer.step()
        losses.append(float(outcome.total.detach()))
    assert (model.shift.detach() - target).abs().max() < 0.05
    assert 0.5 < losses[-1] / losses[0] < 2  # flat by construction, although everything was learned


def test_ddpm_loss_is_the_noise_error_at_times_that_follow_from_the_slots():
    objective = DDPM(DDPMConfig())
    seen = []

    def model(x, t):
        seen.append((x.clone(), t.clone()))
        return torch.zeros_like(x)

    real = batch()
    outcome = objective.loss(model, real)
    noise = image_noise(0, "noise", range(8), (3, 4, 4), step=0)
    assert torch.allclose(outcome.total, noise.square().mean())
    x, t = seen[0]
    bar = linear_schedule().alpha_bar[t].view(-1, 1, 1, 1).float()
    assert torch.allclose(x, bar.sqrt() * real.images + (1 - bar).sqrt() * noise, atol=1e-5)
    half = Batch(real.images[4:], real.labels[4:], range(4, 8), 0, 0)
    objective.loss(model, half)
    assert torch.equal(seen[1][1], t[4:])
    assert torch.allclose(seen[1][0], x[4:])


def test_mae_sees_zeros_and_is_judged_on_masked_pixels_only():
    objective = MAE(MAEConfig(patch_size=2), ranks=Ranks())
    real, seen = batch(count=64, size=8), []

    def model(x):
        seen.append(x)
        return torch.full_like(x, 0.25)

    outcome = objective.loss(model, real)
    masked = seen[0] == 0
    share = masked.float().mean().item()
    assert abs(share - 0.5) < 0.03
    assert torch.allclose(outcome.total, ((0.25 - real.images) ** 2)[masked].mean(), rtol=1e-4)
    patches = masked.float().unfold(2, 2, 2).unfold(3, 2, 2).mean((1, 4, 5))
    assert set(patches.unique().tolist()) <= {0.0, 1.0}  # whole patches, all channels
