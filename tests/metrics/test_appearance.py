"""Plain properties of images, against literal loops and closed forms."""

import pytest
import torch

from driftkit.metrics.survey import LUMA, PROPERTIES, compare_appearance, measure_appearance, wasserstein
from tests.scoring.fakes import random_images


def literal(image):
    """The properties of one uint8 image [3, H, W] by loops over its pixels, in float64."""
    _, height, width = image.shape
    grey = [
        [sum(w * int(image[c, y, x]) for c, w in enumerate(LUMA)) / 255 for x in range(width)] for y in range(height)
    ]
    flat = [value for row in grey for value in row]
    mean = sum(flat) / len(flat)
    border = [grey[y][x] for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)]
    colour = [max(image[:, y, x].tolist()) - min(image[:, y, x].tolist()) for y in range(height) for x in range(width)]
    across = [abs(grey[y][x + 1] - grey[y][x]) for y in range(height) for x in range(width - 1)]
    down = [abs(grey[y + 1][x] - grey[y][x]) for y in range(height - 1) for x in range(width)]
    contrast = (sum((v - mean) ** 2 for v in flat) / len(flat)) ** 0.5
    return [
        mean,
        sum(colour) / len(colour) / 255,
        sum(border) / len(border),
        contrast,
        (sum(across) / len(across) + sum(down) / len(down)) / 2 / contrast,
    ]


def test_properties_equal_loops_over_pixels():
    images = random_images(3, 1)
    found = measure_appearance(images)
    assert found.shape == (3, len(PROPERTIES))
    for image, values in zip(images, found, strict=True):
        assert values.tolist() == pytest.approx(literal(image), abs=1e-5)


def test_properties_of_plain_images_are_what_one_expects():
    white, red = torch.full((1, 3, 8, 8), 255), torch.zeros(1, 3, 8, 8)
    red[:, 0] = 255
    brightness, colour, background, contrast, edges = measure_appearance(torch.cat([white, red]).to(torch.uint8)).T
    assert brightness.tolist() == pytest.approx([1, LUMA[0]])
    assert colour.tolist() == [0, 1]
    assert background.tolist() == pytest.approx([1, LUMA[0]])
    assert contrast.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert edges.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_wasserstein_of_shifted_and_of_unequally_many_numbers():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert wasserstein(values, values + 0.25) == pytest.approx(0.25, abs=1e-6)
    assert wasserstein(values, values) == 0
    assert wasserstein(values, values.repeat(3)) == pytest.approx(0, abs=1e-9)
    assert wasserstein(torch.tensor([0.0]), torch.tensor([1.0, 3.0])) == pytest.approx(2)


def test_a_grey_background_is_told_from_a_black_one():
    black = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    black[:, :, 2:6, 2:6] = 200
    grey = black.clamp(min=25)
    found = compare_appearance(measure_appearance(grey), measure_appearance(black))
    assert found["background"]["distance"] == pytest.approx(25 / 255, abs=1e-5)
    assert found["background"]["real"] == 0
    assert found["background"]["distance"] == max(entry["distance"] for entry in found.values())
