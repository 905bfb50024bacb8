"""Points in the plane: shapes, ranges, seeds, and which mode a point belongs to."""

import pytest
import torch

from driftkit.datasets.toys import SIDE, TOYS
from driftkit.runtime.random import generator_for

each_toy = pytest.mark.parametrize("toy", TOYS.values(), ids=lambda toy: toy.name)


def draw(toy, count=4000, seed=0):
    return toy.draw(count, generator_for(seed, "points"))


@each_toy
def test_points_lie_in_their_square_and_follow_from_the_seed(toy):
    points = draw(toy)
    assert (points.shape, points.dtype) == ((4000, 2), torch.float32)
    assert float(points.abs().max()) <= 1.4 * SIDE
    assert float((points.abs() <= SIDE).all(dim=1).double().mean()) > 0.97
    assert torch.equal(points, draw(toy))
    assert not torch.equal(points, draw(toy, seed=1))


@each_toy
def test_modes_have_equal_shares_and_hold_all_the_points(toy):
    modes = toy.mode_of(draw(toy))
    shares = torch.bincount(modes[modes >= 0], minlength=toy.num_modes) / 4000
    assert float(shares.sum()) > 0.99
    assert float((shares * toy.num_modes - 1).abs().max()) < 0.15


@each_toy
def test_points_elsewhere_belong_to_no_mode(toy):
    assert toy.mode_of(torch.tensor([[9.0, 9.0], [-9.0, 0.1], [0.1, 9.0]])).tolist() == [-1, -1, -1]
    assert int(toy.mode_of(torch.tensor([toy.a_point]))[0]) >= 0


def test_a_checkerboard_has_light_squares():
    toy = TOYS["checkerboard"]
    points = torch.rand(4000, 2, generator=generator_for(0, "uniform")) * 2 * SIDE - SIDE
    assert float((toy.mode_of(points) >= 0).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert toy.mode_of(torch.tensor([[-1.5, -1.5], [-0.5, -1.5], [1.9, 1.9], [1.9, 0.9]])).tolist() == [0, -1, 7, -1]
