"""What the checks refuse and what they warn about."""

import pytest
import torch

from driftkit.errors import RefusedError
from driftkit.evaluation.checks import collapse_warning, count_warnings, image_warnings, require_scorable
from driftkit.evaluation.moments import Moments
from tests.evaluation.fakes import random_images


def test_ordinary_images_pass():
    require_scorable(random_images(8), "samples")
    assert image_warnings(random_images(200), "generated") == []


@pytest.mark.parametrize(
    "images",
    [
        random_images(1),
        random_images(1).expand(5, -1, -1, -1),
        torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 8),
    ],
    ids=["one image", "identical", "flat"],
)
def test_images_without_a_distribution_are_refused(images):
    with pytest.raises(RefusedError, match="samples"):
        require_scorable(images, "samples")


def test_duplicates_and_flat_images_are_counted():
    images = random_images(20)
    images[3:8] = images[2]
    images[10:12] = torch.tensor([5, 9], dtype=torch.uint8).view(2, 1, 1, 1)
    duplicated, flat = image_warnings(images, "generated")
    assert "5 of 20" in duplicated
    assert "2 of 20" in flat


def test_small_counts_are_warned_about():
    assert count_warnings(50_000, 50_000, dim=2048) == []
    assert any("rank-deficient" in w for w in count_warnings(1000, 50_000, dim=2048))
    assert any("few" in w for w in count_warnings(1000, 50_000, dim=64))


def test_collapsed_features_are_noticed():
    rows = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    assert collapse_warning(Moments.of(rows), Moments.of(rows)) is None
    assert "collapse" in collapse_warning(Moments.of(rows * 0.1), Moments.of(rows))
    with pytest.raises(RefusedError, match="collapsed"):
        collapse_warning(Moments.of(torch.ones(5, 6)), Moments.of(rows))


def test_identical_images_are_scored_only_where_that_is_asked_for():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(RefusedError, match="--allow-collapsed"):
        require_scorable(images, "these")
    (warning,) = require_scorable(images, "these", allow_collapsed=True)
    assert "all 4 images are identical" in warning
