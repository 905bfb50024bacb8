"""Scores on features: agreement with torch-fidelity, limits, and the floor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity import metric_isc, metric_kid, metric_prc

from driftkit.metrics import manifold
from driftkit.metrics.feature_stats import FeatureStats
from driftkit.metrics.kid import kernel_distance
from driftkit.metrics.manifold import manifold_scores, nearest_images
from driftkit.metrics.moments import Moments
from driftkit.metrics.scores import inception_score_of, real_floor, score_features


def draw(count, seed, shift=0.0, dim=10):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def features_of(rows, **more):
    return FeatureStats(Moments.of(rows), rows, torch.arange(len(rows)), None, **more)


def score(generated, reference, **more):
    return score_features(features_of(generated), features_of(reference), **more)


def test_equal_distributions_score_near_the_floor():
    scores = score(draw(400, 0), draw(400, 1))
    assert scores.metrics["fid"] < 0.7
    assert abs(scores.metrics["kid_mean"]) < 0.05
    for name in ("precision", "recall", "coverage"):
        assert scores.metrics[name] > 0.8
    assert scores.metrics["density"] == pytest.approx(1, abs=0.1)
    assert scores.settings == {
        "kid_subsets": 100, "kid_subset_size": 200, "prc_neighbours": 3, "density_neighbours": 5, "prc_images": 400,
    }  # fmt: skip
    assert scores.omitted == []


# Of `saved_rows`, by literal formulas in numpy's float64: matrix roots by eigenvectors, kernels pair by pair.
SAVED = {"fid": 30.052601190466476, "kid_mean": 109.00911362589503, "kid_std": 54.9043112389442}
SAVED_FLOOR = 38.0133109975211


def saved_rows(seed, shift):
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(9))
    return torch.randn(300, 24, generator=torch.Generator().manual_seed(seed)) @ mixing + shift


def test_scores_and_their_floor_are_the_saved_numbers_of_literal_formulas():
    generated, real = saved_rows(0, 0.0), saved_rows(1, 0.5)
    metrics = score(generated, real).metrics
    assert metrics["fid"] == pytest.approx(SAVED["fid"], rel=1e-10)
    assert metrics["kid_mean"] == pytest.approx(SAVED["kid_mean"], rel=1e-6)  # its products are float32
    assert metrics["kid_std"] == pytest.approx(SAVED["kid_std"], rel=1e-6)
    assert real_floor(real, num_images=150)["fid"] == pytest.approx(SAVED_FLOOR, rel=1e-10)


def test_shifted_distributions_score_worse():
    near, far = score(draw(200, 0), draw(200, 1)), score(draw(200, 0, 2.0), draw(200, 1))
    assert far.metrics["fid"] > 30 + near.metrics["fid"]
    assert far.metrics["kid_mean"] > near.metrics["kid_mean"] + 1
    for name in ("precision", "density", "coverage"):
        assert far.metrics[name] < near.metrics[name] - 0.5


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.02, 0.4), (3.0, 5.0)])
def test_kid_is_torch_fidelitys(scale, offset):
    one, other = scale * draw(300, 0, dim=64) + offset, scale * draw(350, 1, 0.2, dim=64) + offset
    ours = kernel_distance(one, other, subset_size=120, subsets=20)
    theirs = metric_kid.kid_features_to_metric(
        one.double(), other.double(), kid_subsets=20, kid_subset_size=120, rng_seed=2020, verbose=False
    )
    assert ours["kid_mean"] == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-4)
    assert ours["kid_std"] == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_STD], rel=1e-4)


def literal_manifold(fake, real, k, dense):
    """Everything of whole matrices of distances in float64."""
    fake, real = fake.double(), real.double()
    own_fake, own_real, cross = torch.cdist(fake, fake), torch.cdist(real, real), torch.cdist(fake, real)
    radius_fake = own_fake.kthvalue(k + 1).values
    radius_real, dense_real = own_real.kthvalue(k + 1).values, own_real.kthvalue(dense + 1).values
    return {
        "precision": float((cross <= radius_real).any(1).double().mean()),
        "recall": float((cross <= radius_fake[:, None]).any(0).double().mean()),
        "density": float((cross <= dense_real).double().sum() / dense / len(fake)),
        "coverage": float((cross <= dense_real).any(0).double().mean()),
    }


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(7, 60), others=st.integers(7, 60), dim=st.integers(1, 12), seed=st.integers(0, 99),
    chunk=st.integers(100, 6000), shift=st.floats(0, 2),
)  # fmt: skip
def test_manifold_scores_are_the_literal_ones_whatever_the_chunks(count, others, dim, seed, chunk, shift):
    fake, real = draw(count, seed, shift, dim), draw(others, seed + 1000, dim=dim)
    before, manifold.CHUNK_BYTES = manifold.CHUNK_BYTES, chunk
    try:
        got = manifold_scores(fake, real)
    finally:
        manifold.CHUNK_BYTES = before
    assert got == pytest.approx(literal_manifold(fake, real, 3, 5), abs=1e-9)


def test_precision_and_recall_are_torch_fidelitys():
    fake, real = draw(500, 0, 0.4, dim=32), draw(500, 1, dim=32)
    got = manifold_scores(fake, real)
    theirs = metric_prc.prc_features_to_metric(
        fake, real, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=True, verbose=False
    )
    for name in ("precision", "recall"):
        assert got[name] == pytest.approx(theirs[name], abs=1e-6)


def test_distances_are_never_whole(monkeypatch):
    """The largest tensor that scoring 1,000 x 1,000 makes, with a chunk of 64 KiB, is far below 4 MB."""
    from torch.profiler import ProfilerActivity, profile

    monkeypatch.setattr(manifold, "CHUNK_BYTES", 2**16)
    fake, real = draw(1000, 0), draw(1000, 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        manifold_scores(fake, real)
    largest = max(e.nbytes() for e in watched.profiler.kineto_results.events() if e.name() == "[memory]")
    assert largest < 2**18


def test_nearest_images_are_found_and_copies_are_at_zero():
    bank = draw(50, 0) * 100
    queries = torch.cat([bank[7:8], bank[3:4] + 1e-3])
    distance, index = nearest_images(queries, bank)
    assert index.tolist() == [7, 3]
    assert float(distance[0]) == 0
    assert float(distance[1]) == pytest.approx(1e-3 * 10**0.5, rel=0.05)
    _, others = nearest_images(bank, bank, themselves=torch.arange(50))
    assert bool((others != torch.arange(50)).all())


def test_inception_score_is_torch_fidelitys_and_comes_from_logits_alone():
    logits = 3 * draw(400, 5, dim=30)
    theirs = metric_isc.isc_features_to_metric(logits, 10, True, 2020)
    assert inception_score_of(logits) == {
        "inception_score_mean": theirs[metric_isc.KEY_METRIC_ISC_MEAN],
        "inception_score_std": theirs[metric_isc.KEY_METRIC_ISC_STD],
    }
    rows = features_of(draw(400, 0), logits=8 * torch.eye(10).repeat(40, 1))
    scores = score_features(rows, features_of(draw(400, 1)), inception_score=True)
    assert 5 < scores.metrics["inception_score_mean"] <= 10
    assert "inception_score_mean" not in score_features(rows, features_of(draw(400, 1))).metrics


def test_tiny_sets_leave_scores_out_and_say_so():
    scores = score(draw(3, 0), draw(9, 1))
    assert set(scores.metrics) == {"fid"}
    assert len(scores.omitted) == 2


def test_floor_takes_disjoint_halves_and_scores_them_like_samples():
    rows = torch.cat([draw(50, 0), draw(50, 1)])
    floor = real_floor(rows, num_images=1000)
    assert floor is not None
    assert floor["num_images"] == 50
    assert floor["fid"] > 0
    assert {"kid_mean", "precision", "recall", "density", "coverage"} <= set(floor)
    assert floor == real_floor(rows, num_images=1000)
    assert real_floor(rows, num_images=20)["fid"] > floor["fid"]
    assert real_floor(rows[:3], num_images=10) is None
    copied = torch.cat([rows[:50], rows[:50]])  # halves that shared images would be nearer
    assert real_floor(copied, num_images=50)["fid"] < floor["fid"]
