"""Facts about images: copies, flat ones, and the marks of JPEG."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from driftkit.metrics.survey import survey_images
from tests.scoring.fakes import random_images


def natural(count=60, side=48, seed=0):
    """Smooth random images with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 7, generator=generator) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return (fine + 6 * torch.randn(fine.shape, generator=generator)).clamp(0, 255).round().to(torch.uint8)


def as_jpeg(images, quality=60):
    made = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
        made.append(torch.from_numpy(np.array(Image.open(buffer)).transpose(2, 0, 1).copy()))
    return torch.stack(made)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 11))
def test_copies_are_counted_however_the_set_is_cut(picks, cut):
    images = random_images(6)[picks]
    survey = survey_images(images)
    assert survey.distinct() == len(set(picks))
    parts = [survey_images(images[:cut]), survey_images(images[cut:])]
    assert torch.equal(torch.cat([p.digests for p in parts]), survey.digests)
    assert torch.equal(torch.cat([p.steps for p in parts]), survey.steps)


def test_images_of_another_set_are_found_pixel_by_pixel():
    images = random_images(8)
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    assert survey_images(changed).shared_with(survey_images(images)) == 7


def test_jpeg_leaves_steps_at_block_edges_and_pixels_do_not():
    images = natural()
    plain, stored = survey_images(images).blockiness(), survey_images(as_jpeg(images)).blockiness()
    assert plain[0] == pytest.approx(1, abs=0.03)
    assert stored[0] > 1.1
    assert 0 < plain[1] < 0.02


def test_blockiness_equals_a_literal_count():
    images = natural(3, 16)
    luma = torch.einsum("nchw,c->nhw", images.double(), torch.tensor([0.299, 0.587, 0.114]).double())
    edge, inside = [], []
    for image in luma:
        for i in range(15):
            for j in range(16):
                (edge if i == 7 else inside).append(abs(float(image[j, i + 1] - image[j, i])))
                (edge if i == 7 else inside).append(abs(float(image[i + 1, j] - image[i, j])))
    expected = (sum(edge) / len(edge)) / (sum(inside) / len(inside))
    assert survey_images(images).blockiness()[0] == pytest.approx(expected, rel=1e-5)


def test_small_and_flat_images_have_no_blockiness():
    assert survey_images(random_images(5)).blockiness() is None
    flat = survey_images(torch.full((4, 3, 32, 32), 9, dtype=torch.uint8))
    assert flat.blockiness() is None
    assert bool(flat.flat.all())
