"""The drift of generated images next to that of as many real ones."""

import pytest
import torch
from torch import nn

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.pixel import PixelEncoder
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.grouping import GroupImages, Groups
from driftkit.methods.drifting.objective import RATIO_EVERY, Drifting
from driftkit.protocols import Batch, Execution
from driftkit.runtime.ranks import Ranks
from tests.methods.drifting.literal import literal_drift

GROUPS, GENERATED, POSITIVES = 4, 12, 40
TAUS = (0.1, 0.5)


class Given(nn.Module):
    """Gives these images, whatever it is called with."""

    def __init__(self, images):
        super().__init__()
        self.images, self.shift = images, nn.Parameter(torch.zeros(()))

    def forward(self, x, t, condition):
        return self.images + self.shift


def images(count, seed, offset=0.0):
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 0.2 * noise + offset


def loss_of(generated, real, *, step=RATIO_EVERY - 1):
    config = DriftingConfig(encoder="pixel", taus=TAUS, groups=GROUPS)
    groups = GroupImages(Groups(GROUPS, GENERATED, POSITIVES, 0), torch.arange(len(real)), None)
    objective = Drifting(config, EncoderUnion.of(PixelEncoder(input_size=4)), ranks=Ranks(), images=groups)
    batch = Batch(real, None, range(GROUPS * GENERATED), seed=0, step=step)
    return objective.accumulate(Given(generated), batch, Execution())


def test_it_is_near_one_where_generated_images_are_real_and_large_where_they_are_not():
    real = images(GROUPS * POSITIVES, 1)
    same = float(loss_of(images(GROUPS * GENERATED, 2), real).health["drift_ratio"])
    other = float(loss_of(images(GROUPS * GENERATED, 2, offset=0.3), real).health["drift_ratio"])
    assert same == pytest.approx(1, abs=0.1)
    assert other > 1.5


def test_it_is_what_plain_loops_find():
    generated, real = images(GROUPS * GENERATED, 2, offset=0.1), images(GROUPS * POSITIVES, 1)
    x, y = generated.flatten(1).unflatten(0, (GROUPS, -1)), real.flatten(1).unflatten(0, (GROUPS, -1))
    # One location, whose scales the groups share.
    ours, theirs = (
        literal_drift(points, y[:, GENERATED:], taus=TAUS, scale_over="map")[2].mean()
        for points in (x, y[:, :GENERATED])
    )
    found = loss_of(generated, real).health["drift_ratio"]
    assert float(found) == pytest.approx(float(ours / theirs), rel=1e-4)


def test_it_is_measured_now_and_then():
    real, generated = images(GROUPS * POSITIVES, 1), images(GROUPS * GENERATED, 2)
    assert "drift_ratio" not in loss_of(generated, real, step=RATIO_EVERY).health


def test_it_is_a_number_where_real_images_are_all_alike():
    loss = loss_of(images(GROUPS * GENERATED, 2), torch.zeros(GROUPS * POSITIVES, 3, 4, 4))
    assert torch.isfinite(loss.health["drift_ratio"])
