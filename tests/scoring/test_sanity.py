"""What the checks refuse and what they warn about."""

import pytest
import torch

from driftkit.errors import RefusedError
from driftkit.metrics.moments import Moments
from driftkit.metrics.registry import Floor
from driftkit.metrics.survey import survey_images
from driftkit.scoring.sanity import (
    collapse_warning,
    compression,
    count_warnings,
    floor_warnings,
    require_scorable,
    require_uint8,
    survey_warnings,
)
from tests.metrics.test_survey import as_jpeg, natural
from tests.scoring.fakes import random_images


def test_ordinary_images_pass():
    assert require_scorable(survey_images(random_images(10)), "samples") == []
    assert survey_warnings(survey_images(random_images(200))) == []


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (random_images(9), "at least 10"),
        (random_images(1).expand(12, -1, -1, -1), "identical"),
        (torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 3, 8, 8), "flat"),
        (random_images(5).repeat(4, 1, 1, 1), "15 of 20 images are exact duplicates"),
    ],
    ids=["few", "identical", "flat", "duplicates"],
)
def test_images_without_a_distribution_are_refused(images, says):
    with pytest.raises(RefusedError, match=says):
        require_scorable(survey_images(images), "samples")


def test_identical_images_are_scored_only_where_that_is_asked_for():
    survey = survey_images(torch.zeros(14, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(RefusedError, match="`allow_collapsed`"):
        require_scorable(survey, "these")
    (warning,) = require_scorable(survey, "these", allow_collapsed=True)
    assert "all 14 images are identical" in warning


def test_duplicates_and_flat_images_are_counted():
    images = random_images(20)
    images[3:8] = images[2]
    images[10:12] = torch.tensor([5, 9], dtype=torch.uint8).view(2, 1, 1, 1)
    duplicated, flat = survey_warnings(survey_images(images))
    assert "5 of 20" in duplicated
    assert "2 of 20" in flat


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.index_fill(0, torch.tensor([2]), torch.nan), "1 of 12 images hold values that are not finite"),
        (lambda x: x.index_fill(0, torch.tensor([2, 3]), torch.inf), "2 of 12"),
        (lambda x: x * 127.5 + 127.5, "expected \\[-1, 1\\]"),
        (lambda x: x * 0.5 + 0.5, "as if they lay in \\[0, 1\\]"),
        (lambda x: (x * 100).long(), "torch.int64"),
    ],
    ids=["nan", "inf", "0 to 255", "0 to 1", "integers"],
)
def test_float_images_of_another_range_are_refused(change, says):
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(RefusedError, match=says):
        require_uint8(change(images), "samples")


def test_float_images_in_range_are_rounded_with_a_warning():
    images, (warning,) = require_uint8(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2), "samples")
    assert images[:, 0, 0, 0].tolist() == [0, 128, 255]
    assert "8 bits" in warning
    assert require_uint8(images, "samples") == (images, [])


def test_jpeg_against_png_is_refused_where_files_say_so_and_warned_about_where_pixels_do():
    plain, stored = survey_images(natural()), survey_images(as_jpeg(natural(seed=1)))
    files = {"generated_formats": {"jpeg": 60}, "reference_formats": {"png": 60}}
    with pytest.raises(RefusedError, match="`allow_jpeg`"):
        compression(stored, plain, **files)
    record, (warning,) = compression(stored, plain, **files, allow_jpeg=True)
    assert "JPEG" in warning
    assert record.generated > record.reference + 0.1
    unknown = {"generated_formats": {}, "reference_formats": {}}
    _, (warning,) = compression(stored, plain, **unknown)
    assert "in the generated images than in the reference" in warning
    _, (warning,) = compression(plain, stored, **unknown)
    assert "in the reference than in the generated images" in warning


def test_equally_stored_images_are_not_suspected():
    for make in (natural, lambda seed: as_jpeg(natural(seed=seed))):
        one, other = survey_images(make(seed=2)), survey_images(make(seed=3))
        both = {"generated_formats": {"jpeg": 60}, "reference_formats": {"jpeg": 60}}
        assert compression(one, other, **both)[1] == []
    assert compression(survey_images(random_images(20)), None, generated_formats={}, reference_formats={})[1] == []


def test_small_counts_are_warned_about():
    assert count_warnings(50_000, 50_000, dim=2048) == []
    assert any("rank-deficient" in w for w in count_warnings(1000, 50_000, dim=2048))
    assert any("few" in w for w in count_warnings(1000, 50_000, dim=64))
    assert count_warnings(50_000, None, dim=2048) == []


def test_floors_that_are_missing_of_fewer_images_or_close_are_reported():
    floor = Floor(100, 0, {"fid": 2.0})
    assert "too small" in floor_warnings(None, 5.0, 100)[0]
    assert "half of the reference" in floor_warnings(floor, 5.0, 200)[0]
    assert "noise" in floor_warnings(floor, 3.0, 100)[0]
    assert floor_warnings(floor, 5.0, 100) == []


def test_collapsed_features_are_noticed():
    rows = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    assert collapse_warning(Moments.of(rows), Moments.of(rows), "tiny") == []
    assert "collapse" in collapse_warning(Moments.of(rows * 0.2), Moments.of(rows), "tiny")[0]
    for collapsed in (torch.ones(15, 6), rows * 0.05):
        with pytest.raises(RefusedError, match="collapsed"):
            collapse_warning(Moments.of(collapsed), Moments.of(rows), "tiny")
        assert "collapse" in collapse_warning(Moments.of(collapsed), Moments.of(rows), "tiny", allow_collapsed=True)[0]
