"""Measuring an encoder: blind groups are called blind, the same arguments give the same numbers."""

import dataclasses

import pytest
import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import FEATURE_SETS
from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.encoders.pixel import PixelEncoder
from driftkit.errors import DriftkitError
from driftkit.methods.drifting import aggregated_drift, drift_loss
from driftkit.probing.feature_statistics import pixel_alignment
from driftkit.probing.measurement import measure_encoder, relative_change
from driftkit.probing.probe_images import ONE_CLASS, ProbeImages, one_class_count
from driftkit.probing.verdict import best_signal, describe_group, give_verdict, recommended_taus, score
from driftkit.protocols import FeatureMap
from driftkit.storage.images import to_float

BATCH = 16
LOCATIONS = FEATURE_SETS["locations"]
TAUS = (0.05, 0.2, 0.5)


class FakeEncoder(FrozenEncoder):
    """Gives what `function` makes of the images."""

    def __init__(self, function, size=16):
        super().__init__("fake", input_size=size, feature_set="locations")
        self.function = function
        self.freeze()

    def maps(self, images):
        return [FeatureMap("fake", self.function(images))]


def global_mean(images):
    return images.mean(dim=(2, 3), keepdim=True)


def pictures(count, seed=0, *, side=16, bright=None):
    """uint8: a colour, a horizontal gradient as real images share one, and smooth texture."""
    g = torch.Generator().manual_seed(seed)
    colour = 0.5 * torch.rand(count, 3, 1, 1, generator=g) - 0.25
    slope = torch.linspace(-0.4, 0.4, side)[None, None, :, None] * (0.5 + torch.rand(count, 1, 1, 1, generator=g))
    texture = torch.nn.functional.interpolate(0.1 * torch.randn(count, 3, side // 2, side // 2, generator=g), side)
    out = colour + slope + texture + (0.0 if bright is None else 0.4 * bright[:, None, None, None])
    return ((out.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def probe_images(count=8 * BATCH):
    labels = torch.arange(count) % 2
    single = pictures(one_class_count(BATCH), 9, bright=torch.ones(one_class_count(BATCH)))
    return ProbeImages(pictures(count, bright=labels.float()), labels, [single])


def measure(function, images=None, **options):
    return measure_encoder(
        EncoderUnion.of(FakeEncoder(function), "locations"),
        images or probe_images(),
        batch_size=BATCH,
        taus=TAUS,
        **options,
    )


def test_a_global_mean_is_blind_to_arrangement_and_detail_but_not_to_content():
    measured = measure(global_mean)
    (group,) = measured.groups
    assert group.sensitivity["shuffle"] < 0.02
    assert best_signal(group, "shuffle") < 0.15 < best_signal(group, ONE_CLASS)
    words = describe_group(group)
    assert "blind to" in words
    for corruption in ("noise", "blur", "checker", "shuffle"):
        assert corruption in words
    verdict = give_verdict(measured, chance=0.5, input_size=16, random_weights=False)
    assert verdict.word == "poor"
    assert any("blind to shuffle" in reason for reason in verdict.reasons)


def test_pixels_see_arrangement_and_are_as_sensitive_as_pixels():
    measured = measure_encoder(
        EncoderUnion.of(PixelEncoder(input_size=16)), probe_images(), batch_size=BATCH, taus=TAUS
    )
    (group,) = measured.groups
    assert all(value == pytest.approx(1, rel=1e-4) for value in group.sensitivity.values())
    assert best_signal(group, "shuffle") > 0.3
    assert measured.purity is not None
    assert group.purity > 0.6
    assert group.kernel[0].perplexity < group.kernel[-1].perplexity <= 2 * BATCH - 1
    assert measured.repeats == 4


def test_real_against_real_carries_no_signal():
    (group,) = measure(global_mean).groups
    for kernel in group.kernel[:2]:
        assert abs(kernel.floor_signal) < 0.25  # sampling error of 2 anchors in 4 batches
        assert kernel.floor > 0
        assert kernel.floor_sd < kernel.floor


def test_the_same_seed_gives_the_same_numbers():
    first, again = (dataclasses.asdict(measure(global_mean, seed=5)) for _ in range(2))
    assert first == again
    assert first != dataclasses.asdict(measure(global_mean, seed=6))


def test_without_labels_the_class_based_parts_are_absent():
    images = ProbeImages(pictures(4 * BATCH), None)
    measured = measure(global_mean, images)
    assert measured.purity is None
    assert measured.repeats == 2
    assert all(g.purity is None and ONE_CLASS not in g.separation for g in measured.groups)
    verdict = give_verdict(measured, chance=None, input_size=16, random_weights=False)
    assert any("no labels" in reason for reason in verdict.reasons)


def test_one_constant_map_among_others_is_called_constant():
    class Two(FakeEncoder):
        def maps(self, images):
            return [*super().maps(images), FeatureMap("dead", torch.zeros(len(images), 4, 1, 1))]

    measured = measure_encoder(
        EncoderUnion.of(Two(global_mean), "locations"), probe_images(), batch_size=BATCH, taus=TAUS
    )
    dead = next(g for g in measured.groups if g.map == "dead")
    assert "constant" in describe_group(dead)
    assert dead.effective_rank == 0


def test_refusals():
    with pytest.raises(DriftkitError, match="same for all images"):
        measure(lambda images: torch.ones(len(images), 4, 2, 2))
    with pytest.raises(DriftkitError, match="not finite"):
        measure(lambda images: images * torch.nan)
    with pytest.raises(ValueError, match="at least 64"):
        measure(global_mean, ProbeImages(pictures(63), None))


def test_more_vectors_than_are_looked_at_count_as_they_are():
    (group,) = measure(lambda images: images).groups
    assert group.vectors == 256
    assert group.channels == 3


def test_relative_change_of_one_unit_between_points_two_apart():
    before = torch.tensor([[[0.0], [2.0]]])
    assert relative_change(before, before + 1) == pytest.approx(0.5)
    assert relative_change(torch.zeros(1, 3, 2), torch.ones(1, 3, 2)) == 0


def test_pixel_alignment_is_the_cosine_of_the_loss_gradient():
    encoder = FakeEncoder(lambda i: torch.nn.functional.avg_pool2d(i, 4).square())
    clean, real = to_float(pictures(6, 1)), to_float(pictures(6, 2))
    corrupted = clean + 0.1 * torch.randn(clean.shape)

    def groups(images):
        return LOCATIONS(encoder.maps(images), images)

    got = pixel_alignment(groups, corrupted, clean, real, taus=TAUS, chunk=4)
    leaf = corrupted.clone().requires_grad_(True)
    (x,), (y,) = groups(leaf), groups(real)
    drift = aggregated_drift(x.values, y.values, taus=TAUS, scale_over="location")
    loss = drift_loss(x.values, drift).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    expected = torch.nn.functional.cosine_similarity(
        -gradient.flatten(1), (clean - corrupted).flatten(1), eps=1e-30
    ).mean()
    assert got == pytest.approx(float(expected), rel=1e-4)  # float32, summed in another order


def test_score_rises_with_pixel_alignment_and_content():
    cosines = {"noise": 0.1, "blur": 0.1}
    base = score(cosines, 0.3)
    assert score({"noise": 0.0, "blur": 0.1}, 0.3) == pytest.approx(base / 2)
    assert score({"noise": -0.5, "blur": 0.1}, 0.3) == pytest.approx(base / 2), "a step in the wrong direction is none"
    assert score(cosines, 0.8) > base > score(cosines, 0.0) == score(cosines, -0.1)
    assert score({"a": 1.0}, 1.0) == 1
    assert 0 < score(cosines, None) < 1


def test_recommended_temperatures_are_among_those_tried_and_at_most_three():
    groups = measure(global_mean).groups
    taus = recommended_taus(groups)
    assert set(taus) <= set(TAUS)
    assert 1 <= len(taus) <= 3
