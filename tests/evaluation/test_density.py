"""Density and coverage against their definition and in cases known by hand."""

import pytest
import torch

from driftkit.evaluation.density import density_coverage


def draw(count, seed):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_points_on_a_line_by_hand():
    reference = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # radii for k = 1: 1, 1, 2, 4
    generated = torch.tensor([[0.5], [3.5]])  # 0.5 lies in the balls of 0 and 1; 3.5 in those of 3 and 7
    assert density_coverage(generated, reference, neighbours=1) == {"density": 2.0, "coverage": 1.0}
    assert density_coverage(torch.tensor([[-0.5]]), reference, neighbours=1) == {"density": 1.0, "coverage": 0.25}


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_give_the_definition(chunk):
    generated, reference = draw(40, 0), draw(50, 1)
    radius = torch.cdist(reference.double(), reference.double()).sort(dim=1).values[:, 5:6]
    within = torch.cdist(reference.double(), generated.double()) < radius
    got = density_coverage(generated, reference, chunk=chunk)
    assert got["density"] == pytest.approx(within.sum().item() / (5 * 40))
    assert got["coverage"] == pytest.approx(within.any(dim=1).double().mean().item())


def test_equal_distributions_are_dense_and_far_ones_cover_nothing():
    assert density_coverage(draw(500, 0), draw(500, 1))["density"] == pytest.approx(1, abs=0.1)
    assert density_coverage(draw(500, 0) + 50, draw(500, 1)) == {"density": 0.0, "coverage": 0.0}


def test_too_few_reference_points_are_an_error():
    with pytest.raises(ValueError, match="more than 5"):
        density_coverage(draw(9, 0), draw(5, 1))
