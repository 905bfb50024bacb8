"""Moments and the Fréchet distance: closed forms, merging, and torch-fidelity's own result."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from driftkit.metrics.frechet import _root, frechet_distance
from driftkit.metrics.moments import Moments


def features(count, dim, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5
    return scale * torch.randn(count, dim, generator=generator) @ mixing + shift


def gaussian(mean, covariance, count=1000):
    moments = Moments(len(mean))
    moments.count, moments.mean, moments.scatter = count, mean.double(), covariance.double() * (count - 1)
    return moments


def test_moments_are_of_rows_alone():
    with pytest.raises(ValueError, match=r"expected \[N, D\], got \[2, 3, 4\]"):
        Moments.of(torch.zeros(2, 3, 4))


def test_moments_are_numpys():
    rows = features(50, 6, shift=100.0)
    moments = Moments.of(rows, chunk=7)
    torch.testing.assert_close(moments.mean, rows.double().mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance(), torch.cov(rows.double().T), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("split", [0, 1, 17, 49, 50])
def test_merged_moments_are_those_of_the_whole(split):
    rows = features(50, 6, shift=3.0)
    merged = Moments.of(rows[:split])
    merged.merge(Moments.of(rows[split:]))
    whole = Moments.of(rows)
    assert merged.count == 50
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-10)


def test_moments_stay_on_a_device_that_has_float64_and_leave_others():
    with FakeTensorMode():
        rows = torch.zeros(9, 4, device="cuda")
        moments = Moments.of(rows, chunk=4)
        assert (moments.mean.device.type, moments.scatter.dtype) == ("cuda", torch.float64)
        assert moments.to("cpu").scatter.device.type == "cpu"
        assert moments.to("mps").scatter.device.type == "cpu"
        assert Moments.of(rows, device="mps").scatter.device.type == "cpu"


def test_moments_refuse_other_widths_and_single_vectors():
    moments = Moments(4)
    with pytest.raises(ValueError, match=r"\[n, 4\]"):
        moments.update(torch.zeros(2, 5))
    moments.update(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="at least 2"):
        moments.covariance()


def test_distance_of_one_dimensional_gaussians():
    a, b = gaussian(torch.tensor([1.0]), torch.tensor([[4.0]])), gaussian(torch.tensor([3.0]), torch.tensor([[9.0]]))
    assert frechet_distance(a, b) == pytest.approx((3 - 1) ** 2 + (3 - 2) ** 2, rel=1e-12)


def test_distance_of_commuting_covariances():
    basis = torch.linalg.qr(features(5, 5).double())[0]
    left, right = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0]).double(), torch.tensor([9.0, 0.0, 1.0, 5.0, 2.0]).double()
    a = gaussian(torch.zeros(5), basis * left @ basis.T)
    b = gaussian(torch.ones(5), basis * right @ basis.T)
    expected = 5 + float((left.sqrt() - right.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_distance_of_a_general_two_dimensional_pair():
    first, second = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, -0.5], [-0.5, 2.0]])
    product = (first @ second).double()
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for a 2 x 2 matrix with positive eigenvalues
    shared = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(product.det())))
    expected = float(first.trace() + second.trace()) - 2 * shared
    assert frechet_distance(gaussian(torch.zeros(2), first), gaussian(torch.zeros(2), second)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("count", [500, 20])
def test_distance_agrees_with_torch_fidelity(count):
    a, b = features(count, 24, 0, shift=0.3), features(count + 5, 24, 1, scale=1.4)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(a.double()), fid_features_to_statistics(b.double()), False
    )[KEY_METRIC_FID]
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("count", [200, 9])
def test_distance_to_itself_is_zero(count):
    moments = Moments.of(features(count, 16, scale=30.0))
    assert frechet_distance(moments, moments) < 1e-9


def test_distance_is_symmetric_and_does_not_depend_on_order():
    a, b = features(60, 8, 0), features(70, 8, 1)
    forward = frechet_distance(Moments.of(a), Moments.of(b))
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(forward, rel=1e-10)
    assert frechet_distance(Moments.of(a.flip(0)), Moments.of(b)) == pytest.approx(forward, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(dim=st.integers(1, 12), seed=st.integers(0, 999), power=st.floats(-3, 3), near=st.floats(0, 12))
def test_distance_of_a_scaled_and_shifted_gaussian_is_the_closed_form(dim, seed, power, near):
    """C and s^2 C commute, so the distance is |shift|^2 + (s - 1)^2 tr C, however near C is to singular."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    values = 10 ** (-near * torch.rand(dim, generator=generator, dtype=torch.float64))
    covariance, shift = basis * values @ basis.T, torch.randn(dim, generator=generator, dtype=torch.float64)
    scale = 10**power
    expected = float(shift.square().sum()) + (scale - 1) ** 2 * float(covariance.trace())
    got = frechet_distance(gaussian(torch.zeros(dim), covariance), gaussian(shift, covariance * scale**2))
    # The square root of rounding in the smallest directions: 1e-8 of the largest, times their number.
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-6 * scale * float(covariance.trace()))


def test_factors_of_near_singular_covariances_are_not_taken_from_cholesky():
    rows = features(12, 24).double()
    covariance = Moments.of(rows).covariance()
    root = _root(covariance)
    assert root.shape == (24, 11)
    torch.testing.assert_close(root @ root.T, covariance, rtol=1e-9, atol=1e-12)
    whole = Moments.of(features(200, 24)).covariance()
    torch.testing.assert_close(_root(whole) @ _root(whole).T, whole, rtol=1e-12, atol=1e-12)


def test_distance_refuses_what_does_not_fit():
    a = Moments.of(features(9, 4))
    with pytest.raises(ValueError, match="dimensions"):
        frechet_distance(a, Moments.of(features(9, 5)))
    broken = Moments.of(torch.full((3, 4), float("nan")))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(a, broken)


def test_eigenvalues_that_fail_to_converge_do_not_end_the_score(monkeypatch):
    """40 images of 768 features: LAPACK's eigensolver gave up on such a covariance once."""
    rows = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = (Moments.of(part) for part in rows)
    expected = frechet_distance(a, b)

    def fails(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
