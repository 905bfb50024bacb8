"""Scores on features: agreement with torch-fidelity, limits, and the floor."""

import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from driftkit.evaluation.scores import _precision_recall, real_floor, score_features


def draw(count, seed, shift=0.0):
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(seed)) + shift


def test_equal_distributions_score_near_the_floor():
    scores = score_features(draw(400, 0), draw(400, 1))
    assert scores.metrics["fid"] < 0.7
    assert abs(scores.metrics["kid_mean"]) < 0.05
    assert scores.metrics["precision"] > 0.8
    assert scores.metrics["recall"] > 0.8
    assert scores.metrics["density"] > 0.8
    assert scores.metrics["coverage"] > 0.8
    assert scores.settings == {
        "kid_subsets": 100, "kid_subset_size": 200, "prc_neighbours": 3, "prc_images": 400,
        "density_neighbours": 5, "density_images": 400,
    }  # fmt: skip
    assert scores.omitted == []


def test_shifted_distributions_score_worse():
    near, far = score_features(draw(200, 0), draw(200, 1)), score_features(draw(200, 0, 2.0), draw(200, 1))
    assert far.metrics["fid"] > 30 + near.metrics["fid"]
    assert far.metrics["kid_mean"] > near.metrics["kid_mean"] + 1
    assert far.metrics["precision"] < near.metrics["precision"] - 0.5


def test_chunked_precision_and_recall_are_the_unchunked_ones(monkeypatch):
    monkeypatch.setattr("driftkit.evaluation.scores.PRC_CHUNK", 13)
    got = _precision_recall(draw(60, 0, 0.5), draw(60, 1))
    precision, recall = calculate_precision_recall_full(draw(60, 0, 0.5), draw(60, 1), 3)
    assert got == {"precision": pytest.approx(precision), "recall": pytest.approx(recall)}


def test_tiny_sets_leave_scores_out_and_say_so():
    scores = score_features(draw(3, 0), draw(9, 1))
    assert set(scores.metrics) == {"fid"}
    assert len(scores.omitted) == 3  # KID; precision and recall; density and coverage


def test_inception_score_comes_from_logits_alone():
    logits = 8 * torch.eye(10).repeat(40, 1)
    scores = score_features(draw(400, 0), draw(400, 1), logits=logits)
    assert 5 < scores.metrics["inception_score_mean"] <= 10
    assert "inception_score_mean" not in score_features(draw(40, 0), draw(40, 1)).metrics


def test_floor_takes_disjoint_halves():
    rows = torch.cat([draw(50, 0), draw(50, 1)])
    floor = real_floor(rows, num_images=1000)
    assert floor is not None
    assert floor["num_images"] == 50
    assert floor["fid"] > 0
    assert floor == real_floor(rows, num_images=1000)
    assert real_floor(rows, num_images=20)["fid"] > floor["fid"]
    assert real_floor(rows[:3], num_images=10) is None
