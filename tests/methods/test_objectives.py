"""The objectives: what they minimise, and that they learn."""

import contextlib
import dataclasses

import pytest
import torch

from driftkit.encoders import timm_encoder
from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.pixel import PixelEncoder
from driftkit.methods.ddpm.config import DDPMConfig
from driftkit.methods.ddpm.objective import DDPM
from driftkit.methods.ddpm.schedule import linear_schedule
from driftkit.methods.drifting import aggregated_drift
from driftkit.methods.drifting import build as drifting_build
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.methods.encoder_training import HeldOut, LabelledImages, random_resized_crop
from driftkit.methods.mae.method import MAEConfig
from driftkit.methods.mae.objective import MAE
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.protocols import Batch, Execution
from driftkit.runtime.random import image_noise
from driftkit.runtime.ranks import Ranks
from driftkit.training.train_config import resolve_config
from tests.conftest import setting


def batch(count=8, size=4, step=0):
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, torch.full((count,), -1), range(count), seed=0, step=step)


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, condition):
        return self.weight * x


def test_drifting_moves_the_generator_along_the_field():
    objective = Drifting(
        DriftingConfig(encoder="pixel", clip=False), EncoderUnion.of(PixelEncoder(input_size=4)), ranks=Ranks()
    )
    model, real = Linear(), batch()
    outcome = objective.accumulate(model, real, Execution())
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

        def forward(self, x, t, condition):
            return 0.1 * x + self.shift

    objective = Drifting(
        DriftingConfig(encoder="pixel", clip=False), EncoderUnion.of(PixelEncoder(input_size=4)), ranks=Ranks()
    )
    model = Shift()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    target = torch.tensor([0.5, -0.3, 0.1]).view(3, 1, 1)
    losses = []
    for step in range(60):
        images = target + 0.1 * image_noise(1, "data", range(32), (3, 4, 4), step=step)
        optimizer.zero_grad()
        outcome = objective.accumulate(model, Batch(images, torch.zeros(32), range(32), 0, step), Execution())
        optimizer.step()
        losses.append(float(outcome.total))
    assert (model.shift.detach() - target).abs().max() < 0.05
    assert 0.5 < losses[-1] / losses[0] < 2  # flat by construction, although everything was learned


def test_ddpm_loss_is_the_noise_error_at_times_that_follow_from_the_slots():
    objective = DDPM(DDPMConfig())
    seen = []

    def model(x, t, condition):
        seen.append((x.clone(), t.clone()))
        return torch.zeros_like(x, requires_grad=True)

    real = batch()
    outcome = objective.accumulate(model, real, Execution())
    noise = image_noise(0, "noise", range(8), (3, 4, 4), step=0)
    assert torch.allclose(outcome.total, noise.square().mean())
    x, t = seen[0]
    bar = linear_schedule().alpha_bar[t].view(-1, 1, 1, 1).float()
    assert torch.allclose(x, bar.sqrt() * real.images + (1 - bar).sqrt() * noise, atol=1e-5)
    half = Batch(real.images[4:], real.labels[4:], range(4, 8), 0, 0)
    objective.accumulate(model, half, Execution())
    assert torch.equal(seen[1][1], t[4:])
    assert torch.allclose(seen[1][0], x[4:])


def test_mae_sees_zeros_and_is_judged_on_masked_pixels_only():
    objective = MAE(MAEConfig(patch_size=2, min_crop=1), ranks=Ranks())
    real, seen = batch(count=64, size=8), []

    def model(x):
        seen.append(x)
        return torch.full_like(x, 0.25, requires_grad=True)

    outcome = objective.accumulate(model, real, Execution())
    masked = seen[0] == 0
    share = masked.float().mean().item()
    assert abs(share - 0.5) < 0.03
    assert torch.allclose(outcome.total, ((0.25 - real.images) ** 2)[masked].mean(), rtol=1e-4)
    patches = masked.float().unfold(2, 2, 2).unfold(3, 2, 2).mean((1, 4, 5))
    assert set(patches.unique().tolist()) <= {0.0, 1.0}  # whole patches, all channels


def test_crops_are_parts_of_the_image_and_follow_from_their_draws():
    ramp = torch.linspace(-1, 1, 32).expand(5, 3, 32, 32)  # rises from left to right
    draws = torch.tensor(
        [[0.0, 0.5, 0.0, 0.5], [0.0, 0.5, 1.0, 0.5], [1.0, 0.5, 0.3, 0.7], [0.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.5, 0.5]]
    )
    cropped = random_resized_crop(ramp, draws, min_crop=0.25)
    left, right, whole, narrow, wide = cropped[:, 0, 16]
    assert left.max() < 0.05  # a quarter of the area is half of each side
    assert right.min() > -0.05
    assert torch.allclose(whole, ramp[0, 0, 0], atol=1e-5)
    assert (wide[-1] - wide[0]) / (narrow[-1] - narrow[0]) == pytest.approx(4 / 3, rel=0.05)
    assert torch.equal(cropped, random_resized_crop(ramp, draws, min_crop=0.25))


def test_the_classifier_joins_late_and_by_degrees():
    config = MAEConfig(finetune_from=10, finetune_ramp=5, finetune_weight=0.1)
    weights = [config.classifier_weight(step) for step in (0, 9, 10, 12, 14, 100)]
    assert weights == pytest.approx([0, 0, 0.02, 0.06, 0.1, 0.1])
    assert MAEConfig().classifier_weight(10**6) == 0


def test_fine_tuning_adds_the_weighted_cross_entropy_of_whole_images():
    torch.manual_seed(0)
    network = MAEResNet(MAEResNetConfig(base_channels=8, num_blocks=(1, 1, 1, 1), num_classes=3))
    objective = MAE(MAEConfig(min_crop=1, finetune_from=0, finetune_ramp=1), ranks=Ranks())
    real = batch(count=8, size=16)
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])  # two of them unlabelled
    outcome = objective.accumulate(network, dataclasses.replace(real, labels=labels), Execution())
    known = labels >= 0
    want = 0.1 * torch.nn.functional.cross_entropy(network(real.images, classify=True)[known], labels[known])
    assert torch.allclose(outcome.terms["classifier"], want, rtol=1e-4)
    assert torch.allclose(outcome.total, outcome.terms["masked_mse"] + want, rtol=1e-4)
    assert network.head.weight.grad.abs().sum() > 0


def test_held_out_images_tell_how_well_classes_can_be_read_off():
    """Dark and bright images: even an untrained network's features tell them apart, and classes drawn by lot not."""
    torch.manual_seed(0)
    network = MAEResNet(MAEResNetConfig(base_channels=8, num_blocks=(1, 1, 1, 1)))
    labels = torch.arange(80) % 2
    images = (labels.view(-1, 1, 1, 1) * 120 + torch.randint(0, 100, (80, 3, 16, 16))).to(torch.uint8)
    known, asked = LabelledImages(images[:60], labels[:60]), LabelledImages(images[60:], labels[60:])
    measured = MAE(MAEConfig(), ranks=Ranks(), held_out=HeldOut(known, asked)).measure(network)
    assert measured["knn_accuracy"] == 1
    assert measured["linear_accuracy"] >= 0.9  # by a plane, without the middle greys it would need
    assert measured["held_out_mse"] > 0
    lots = LabelledImages(images[:60], torch.randint(0, 2, (60,)))
    assert MAE(MAEConfig(), ranks=Ranks(), held_out=HeldOut(lots, asked)).measure(network)["knn_accuracy"] < 0.9
    blank = LabelledImages(images[60:], torch.full((20,), -1))
    assert set(MAE(MAEConfig(), ranks=Ranks(), held_out=HeldOut(known, blank)).measure(network)) == {"held_out_mse"}
    assert MAE(MAEConfig(), ranks=Ranks()).measure(network) == {}


@dataclasses.dataclass(frozen=True)
class WatchedRanks(Ranks):
    """Rank 0 of two, which writes down when it goes first."""

    events: list = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def first_alone(self):
        self.events.append("first")
        yield
        self.events.append("the others")


@pytest.mark.parametrize(
    ("more", "fetched"),
    [
        (["objective.encoder=dinov2-multires"], ["first", "dinov2-multires", "the others"]),
        (["objective.encoder=dinov2-multires", "objective.random_weights=true"], []),
        (["objective.encoder=pixel"], ["first", "the others"]),
    ],
)
def test_rank_0_fetches_weights_before_the_others_look_for_them(more, fetched, monkeypatch):
    ranks = WatchedRanks(world_size=2)

    def fetch(spec):
        ranks.events.append(spec.name)

    monkeypatch.setattr(timm_encoder, "fetch", fetch)
    monkeypatch.setattr(drifting_build, "load_encoder", lambda *_, **__: PixelEncoder(input_size=8))
    config, _ = resolve_config(objective="drift", assignments=more)
    drifting_build.build_drifting(config.objective, setting(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), ranks))
    assert ranks.events == fetched
