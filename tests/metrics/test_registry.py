"""The loop over the metrics: what applies, what is skipped, and the real-vs-real floor."""

from dataclasses import replace

import pytest
import torch

from driftkit.errors import UsageError
from driftkit.metrics.base import FeatureStats, Metric, MetricInputs, MetricResult, Quantity
from driftkit.metrics.frechet import frechet_distance
from driftkit.metrics.moments import Moments
from driftkit.metrics.registry import METRICS, compute_metrics, quantities, real_floor, select_metrics
from tests.metrics.conftest import draw, stats

LITERAL = {"fid", "kid_mean", "kid_std", "precision", "recall", "density", "coverage"}


def score(generated, reference, **more):
    return compute_metrics(MetricInputs(generated, reference, **more), METRICS.values())


def test_every_number_has_one_key_and_says_what_it_means():
    keys = [quantity.key for metric in METRICS.values() for quantity in metric.quantities]
    assert len(keys) == len(set(keys)) == len(quantities())
    assert all(quantity.label and quantity.help.endswith(".") for quantity in quantities().values())


def test_equal_distributions_score_near_the_floor():
    scores = score(stats(400, 0), stats(400, 1))
    assert set(scores.values) >= LITERAL
    assert scores.values["fid"] < 0.7
    assert abs(scores.values["kid_mean"]) < 0.05
    for name in ("precision", "recall", "coverage"):
        assert scores.values[name] > 0.8
    assert scores.values["density"] == pytest.approx(1, abs=0.1)
    expected = {"kid_subsets": 100, "kid_subset_size": 200, "prc_neighbours": 3, "density_neighbours": 5,
                "prc_images": 400}  # fmt: skip
    assert scores.settings.items() >= expected.items()
    assert scores.warnings == []


# Of `saved_rows`, by literal formulas in numpy's float64: matrix roots by eigenvectors, kernels pair by pair.
SAVED = {"fid": 30.052601190466476, "kid_mean": 109.00911362589503, "kid_std": 54.9043112389442}
SAVED_FLOOR = 38.0133109975211


def saved_rows(seed, shift):
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(9))
    return torch.randn(300, 24, generator=torch.Generator().manual_seed(seed)) @ mixing + shift


def test_scores_and_their_floor_are_the_saved_numbers_of_literal_formulas():
    generated, real = (FeatureStats.of_rows(saved_rows(seed, shift)) for seed, shift in ((0, 0.0), (1, 0.5)))
    values = score(generated, real).values
    assert values["fid"] == pytest.approx(SAVED["fid"], rel=1e-10)
    assert values["kid_mean"] == pytest.approx(SAVED["kid_mean"], rel=1e-6)  # its products are float32
    assert values["kid_std"] == pytest.approx(SAVED["kid_std"], rel=1e-6)
    assert real_floor(real.rows, num_images=150).metrics["fid"] == pytest.approx(SAVED_FLOOR, rel=1e-10)


def test_shifted_distributions_score_worse():
    near, far = (score(stats(200, 0, shift), stats(200, 1)).values for shift in (0.0, 2.0))
    for quantity in quantities().values():
        if quantity.key not in near or quantity.key == "recall":
            continue
        better = {"lower": far[quantity.key] - near[quantity.key]}.get(
            quantity.direction, near[quantity.key] - far[quantity.key]
        )
        assert better > 0, quantity.key
    assert far["fid"] > 30 + near["fid"]
    assert far["kid_mean"] > near["kid_mean"] + 1


def test_the_inception_score_needs_logits_of_inception():
    generated = stats(400, 0, logits=8 * torch.eye(10).repeat(40, 1))
    assert 5 < score(generated, stats(400, 1), inception_logits=True).values["inception_score_mean"] <= 10
    assert "inception_score_mean" not in score(generated, stats(400, 1)).values
    few = score(stats(15, 0, logits=torch.eye(15)), stats(400, 1), inception_logits=True)
    assert any("Inception Score" in w for w in few.warnings)


def test_sets_too_small_for_a_metric_skip_it_with_a_warning():
    scores = score(stats(3, 0), stats(9, 1))
    assert "fid" in scores.values
    assert not {"kid_mean", "precision"} & set(scores.values)
    assert any("KID" in w for w in scores.warnings)
    assert any("precision" in w for w in scores.warnings)


def test_the_larger_set_is_drawn_from_to_equal_counts():
    scores = score(stats(40, 0), stats(60, 1))
    assert scores.settings["prc_images"] == 40


def test_metrics_are_selected_by_name_and_fid_is_always_among_them():
    assert [metric.name for metric in select_metrics(None)] == list(METRICS)
    assert [metric.name for metric in select_metrics(["kid"])] == ["fid", "kid"]
    with pytest.raises(UsageError, match="kidd"):
        select_metrics(["kidd"])


def test_what_a_metric_declares_is_held_to():
    words = {"name": "stray", "label": "x", "help": "X.", "needs": "rows", "min_images": 1}
    quantity = Quantity("x", "X", "lower", "distance", "X.")
    stray = Metric(quantities=(quantity,), compute=lambda _: MetricResult({"y": 1.0}), **words)
    with pytest.raises(ValueError, match="metric stray: gives y, which `quantities` does not list"):
        compute_metrics(MetricInputs(stats(8, 0), stats(8, 1)), [stray])
    with pytest.raises(ValueError, match="direction 'down': expected one of lower, higher, one, none"):
        Quantity("x", "X", "down", "distance", "X.")
    with pytest.raises(ValueError, match="needs 'labels': expected one of features"):
        replace(stray, needs="labels")


def test_floor_scores_real_images_against_the_others_like_samples():
    rows = torch.cat([draw(50, 0), draw(50, 1)])
    floor = real_floor(rows, num_images=1000)
    assert floor.num_images == 50
    assert floor.metrics["fid"] > 0
    assert set(floor.metrics) >= LITERAL
    assert floor == real_floor(rows, num_images=1000)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(floor.seed))
    few = real_floor(rows, num_images=20)
    assert few.metrics["fid"] == pytest.approx(
        frechet_distance(Moments.of(rows[order[:20]]), Moments.of(rows[order[20:]])), rel=1e-6
    )
    assert few.metrics["fid"] > floor.metrics["fid"]
    assert real_floor(rows[:3], num_images=10) is None
    copied = torch.cat([rows[:50], rows[:50]])  # halves that shared images would be nearer
    assert real_floor(copied, num_images=50).metrics["fid"] < floor.metrics["fid"]
