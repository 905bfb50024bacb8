"""Shapes: every image is a function of its options and its index."""

import time

import pytest
import torch
from pydantic import ValidationError

from driftkit.datasets.shapes import SHAPES, ShapesOptions, ShapesSource, draw_shapes


def draw(**options):
    return draw_shapes(ShapesOptions(**options))


def test_same_options_draw_the_same_images():
    assert torch.equal(draw(count=40).images, draw(count=40).images)


def test_an_image_does_not_depend_on_the_count():
    assert torch.equal(draw(count=300, image_size=64).images[:23], draw(count=23, image_size=64).images)


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "test"}])
def test_seed_and_split_draw_other_images(other):
    images, others = draw(count=100).images, draw(count=100, **other).images
    assert not (images == others).flatten(1).all(1).any()


def test_no_two_images_are_equal():
    images = draw(count=2000, image_size=16).images
    assert len(images.flatten(1).unique(dim=0)) == 2000


def test_labels_name_the_shapes_and_are_balanced():
    raw = draw(count=50)
    assert raw.classes == tuple(SHAPES)
    assert raw.labels.bincount().tolist() == [5] * 10
    assert draw(count=7, classes=3).classes == ("circle", "square", "triangle")
    assert draw(count=7, classes=3).labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_default_counts():
    assert ShapesOptions().num_images == 10_000
    assert ShapesOptions(split="test").num_images == 2_000


def test_small_and_large_show_the_same_picture():
    small = draw(count=20, image_size=16).images.float()
    large = draw(count=20, image_size=64).images.float()
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 4


def test_shape_stands_off_the_ground():
    images = draw(count=200, image_size=32, classes=2).images.float().mean(1)
    assert ((images[:, 16, 16] - images[:, 0, 0]).abs() > 15).float().mean() > 0.9


def test_without_jitter_all_shapes_of_a_kind_have_one_place():
    images = draw(count=30, classes=1, jitter=0.0, background="black", image_size=16).images
    covered = images.amax(1) > 0
    assert (covered == covered[0]).all()


def test_palettes_and_grounds():
    mono = draw(count=20, palette="mono").images
    assert (mono == mono[:, :1]).all()
    assert (draw(count=20, background="black").images[:, :, 0, 0] == 0).all()
    plain = draw(count=20, background="plain").images
    assert (plain[:, :, 0, 0] == plain[:, :, -1, -1]).all()
    assert len(draw(count=200, classes=1, palette="primary", background="black", jitter=0.0).images.unique(dim=0)) == 6


def test_shape_stays_inside_the_image():
    images = draw(count=500, background="black", jitter=0.3, image_size=32).images
    assert images[:, :, 0, 0].max() == 0
    assert (images.flatten(1).amax(1) > 100).all()


@pytest.mark.parametrize(
    "bad", [{"image_size": 4}, {"classes": 11}, {"jitter": 0.9}, {"palette": "blue"}, {"split": "val"}, {"size": 3}]
)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ValidationError):
        ShapesOptions(**bad)


def test_digest_follows_the_options():
    digests = {
        ShapesSource(o).digest()
        for o in (ShapesOptions(), ShapesOptions(seed=1), ShapesOptions(split="test"), ShapesOptions(image_size=16))
    }
    assert len(digests) == 4
    assert ShapesSource(ShapesOptions(count=10_000)).digest() == ShapesSource(ShapesOptions()).digest()


def test_ten_thousand_images_take_seconds():
    begun = time.monotonic()
    draw()
    assert time.monotonic() - begun < 5
