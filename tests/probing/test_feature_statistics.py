"""Statistics of features against literal float64 loops and closed forms."""

import math

import pytest
import torch

from driftkit.probing.feature_statistics import (
    chance_purity,
    distance_concentration,
    effective_rank,
    kernel_statistics,
    neighbour_purity,
    participation_ratio,
    signal_share,
    spectrum,
)

EXACT = {"rtol": 1e-9, "atol": 1e-12}  # float64 against float64 in another order


def literal_kernel(x, y, tau):
    """Perplexity and logit spread of one field, point by point."""
    points = [*x, *y]
    distances = [[math.dist(a, b) for b in points] for a in x]
    mean = sum(map(sum, distances)) / (len(x) * len(points))
    perplexities, spreads = [], []
    for i, row in enumerate(distances):
        logits = [-d / (mean * tau) for k, d in enumerate(row) if k != i]
        highest = max(logits)
        weights = [math.exp(v - highest) for v in logits]
        p = [w / sum(weights) for w in weights]
        perplexities.append(math.exp(-sum(q * math.log(q) for q in p if q > 0)))
        centre = sum(logits) / len(logits)
        spreads.append(math.sqrt(sum((v - centre) ** 2 for v in logits) / len(logits)))
    return sum(perplexities) / len(x), sum(spreads) / len(x)


def test_kernel_statistics_are_those_of_the_literal_softmax():
    x, y = torch.randn(3, 6, 5, dtype=torch.float64), torch.randn(3, 7, 5, dtype=torch.float64)
    taus = (0.05, 0.3)
    got = kernel_statistics(x, y, taus=taus)
    for t, tau in enumerate(taus):
        for g in range(3):
            perplexity, spread = literal_kernel(x[g].tolist(), y[g].tolist(), tau)
            torch.testing.assert_close(float(got["perplexity"][t, g]), perplexity, **EXACT)
            torch.testing.assert_close(float(got["logit_spread"][t, g]), spread, **EXACT)
    assert float(got["candidates"]) == 12


def test_identical_points_all_weigh_in():
    same = torch.ones(1, 5, 3)
    assert kernel_statistics(same, same, taus=(0.02,))["perplexity"].item() == pytest.approx(9)


def test_a_close_neighbour_among_far_points_is_the_only_one_that_counts():
    x = 100.0 * torch.eye(6)[None]
    got = kernel_statistics(x, x + 1e-3, taus=(0.02,))
    assert got["perplexity"].item() == pytest.approx(1, abs=1e-3)


def test_perplexity_grows_with_the_temperature():
    x, y = torch.randn(2, 16, 8), torch.randn(2, 16, 8)
    perplexity = kernel_statistics(x, y, taus=(0.02, 0.1, 0.5, 50.0))["perplexity"]
    assert bool((perplexity.diff(dim=0) > 0).all())
    torch.testing.assert_close(perplexity[-1], torch.full((2,), 31.0), rtol=1e-3, atol=0)


def test_concentration_is_the_coefficient_of_variation_of_distances():
    values = torch.randn(2, 7, 3, dtype=torch.float64)
    for g in range(2):
        d = [
            math.dist(a, b)
            for i, a in enumerate(values[g].tolist())
            for k, b in enumerate(values[g].tolist())
            if i != k
        ]
        mean = sum(d) / len(d)
        sd = math.sqrt(sum((v - mean) ** 2 for v in d) / len(d))
        torch.testing.assert_close(float(distance_concentration(values)[g]), sd / mean, **EXACT)
    assert distance_concentration(torch.zeros(1, 4, 2)).item() == 0


def test_purity_counts_classes_of_the_nearest():
    values, labels = torch.randn(2, 20, 4, dtype=torch.float64), torch.arange(20) % 3
    for g in range(2):
        shares = []
        for i in range(20):
            order = sorted((k for k in range(20) if k != i), key=lambda k: math.dist(values[g][i], values[g][k]))
            shares.append(sum(int(labels[k] == labels[i]) for k in order[:5]) / 5)
        got = neighbour_purity(values, labels, neighbours=5)[g]
        torch.testing.assert_close(float(got), sum(shares) / 20, **EXACT)


def test_purity_is_one_for_apart_classes_and_chance_for_noise():
    labels = torch.arange(400) % 2
    apart = torch.randn(1, 400, 3) + 100.0 * labels[None, :, None]
    assert neighbour_purity(apart, labels).item() == 1
    noise = neighbour_purity(torch.randn(1, 400, 3), labels).item()
    assert noise == pytest.approx(chance_purity(labels), abs=0.03)
    assert chance_purity(torch.tensor([0, 0, 1, 1])) == pytest.approx(1 / 3)


def test_rank_counts_equal_directions():
    square = torch.cat([torch.eye(4), -torch.eye(4)])  # variance 1/4 along each of four axes
    padded = torch.cat([square, torch.zeros(8, 6)], dim=1)
    for values in (square, padded, 1e3 * padded + 5):
        assert effective_rank(spectrum(values)) == pytest.approx(4)
        assert participation_ratio(spectrum(values)) == pytest.approx(4)


def test_rank_of_unequal_directions_has_a_closed_form():
    shares = spectrum(torch.diag(torch.tensor([3.0, 1.0])).repeat(2, 1) * torch.tensor([1.0, 1, -1, -1])[:, None])
    assert sorted(shares.tolist()) == pytest.approx([0.1, 0.9])
    assert effective_rank(shares) == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)))
    assert participation_ratio(shares) == pytest.approx(1 / 0.82)


def test_rank_of_a_constant_is_zero():
    shares = spectrum(torch.ones(5, 3))
    assert effective_rank(shares) == 0
    assert participation_ratio(shares) == 0


def test_spectrum_is_the_same_with_more_channels_than_points():
    values = torch.randn(5, 9, dtype=torch.float64)
    literal = torch.linalg.eigvalsh(torch.cov(values.T)).clamp(min=0)
    literal = literal / literal.sum()
    torch.testing.assert_close(spectrum(values), literal[-5:], rtol=1e-9, atol=1e-12)


def test_signal_share_is_the_literal_mean_over_pairs_of_batches():
    drifts = torch.randn(3, 2, 4, 5, dtype=torch.float64) + torch.randn(2, 4, 5, dtype=torch.float64)
    for g in range(2):
        flat = [drifts[r, g].flatten().tolist() for r in range(3)]
        pairs = [
            sum(a * b for a, b in zip(flat[r], flat[s], strict=True)) for r in range(3) for s in range(3) if r != s
        ]
        power = [sum(a * a for a in f) for f in flat]
        torch.testing.assert_close(float(signal_share(drifts)[g]), (sum(pairs) / 6) / (sum(power) / 3), **EXACT)


def test_signal_share_is_one_for_the_same_drift_and_near_zero_for_noise():
    same = torch.randn(1, 3, 8, 16).expand(4, 3, 8, 16)
    torch.testing.assert_close(signal_share(same), torch.ones(3, dtype=torch.float64))
    assert signal_share(torch.randn(4, 1, 200, 50)).abs().item() < 0.03
    assert signal_share(torch.zeros(2, 1, 3, 3)).item() == 0
    with pytest.raises(ValueError, match="at least 2"):
        signal_share(torch.zeros(1, 1, 3, 3))
