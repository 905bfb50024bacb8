"""The pixels as encoders."""

import torch

from driftkit.encoders.pixel import PixelDetails, PixelPyramid


def assert_patches(values, level):
    """The map holds every patch of 4x4 pixels of a level [N, 3, H, H], two pixels apart."""
    rows = range(0, level.shape[-1] - 3, 2)
    assert values.shape == (len(level), 48, len(rows), len(rows))
    for i, top in enumerate(rows):
        for j, left in enumerate(rows):
            patch = level[:, :, top : top + 4, left : left + 4].flatten(1)
            torch.testing.assert_close(values[:, :, i, j].double(), patch, atol=1e-6, rtol=0)


def test_pyramid_has_the_patches_that_plain_loops_find():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = {each.name: each.values for each in PixelPyramid(input_size=16).maps(images)}
    assert list(maps) == ["side16", "side8", "side4"]
    level = images.double()
    for values in maps.values():
        side = level.shape[-1]
        assert_patches(values, level)
        halves = level.unflatten(3, (side // 2, 2)).unflatten(2, (side // 2, 2))
        level = halves.mean(dim=(3, 5))


def test_every_pixel_is_in_the_first_level_of_a_pyramid():
    images = torch.zeros(1, 3, 12, 12, requires_grad=True)
    PixelPyramid(input_size=12).maps(images)[0].values.sum().backward()
    assert images.grad is not None
    assert bool((images.grad > 0).all())


def test_details_are_what_plain_loops_find():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = {each.name: each.values for each in PixelDetails(input_size=16).maps(images)}
    assert list(maps) == ["details16", "details8"]
    level = images.double()
    for values in maps.values():
        side = level.shape[-1]
        half = torch.zeros(2, 3, side // 2, side // 2, dtype=torch.double)
        details = torch.zeros_like(level)
        for i in range(side):
            for j in range(side):
                half[:, :, i // 2, j // 2] += level[:, :, i, j] / 4
        for i in range(side):
            for j in range(side):
                details[:, :, i, j] = level[:, :, i, j] - half[:, :, i // 2, j // 2]
        assert_patches(values, details)
        level = half


def test_details_see_a_pattern_of_single_pixels_and_no_flat_colour():
    rows = torch.arange(16) % 2
    pattern = (0.1 * (rows[:, None] - rows)).abs().expand(1, 3, -1, -1)
    flat = torch.full((1, 3, 16, 16), 0.7)
    details = PixelDetails(input_size=16)
    assert float(details.maps(flat)[0].values.abs().max()) < 1e-6
    assert float(details.maps(flat + pattern)[0].values.abs().min()) > 0.04


def test_details_of_odd_sides_have_their_shapes():
    maps = PixelDetails(input_size=13).maps(torch.rand(1, 3, 13, 13))
    assert [tuple(each.values.shape) for each in maps] == [(1, 48, 5, 5), (1, 48, 2, 2)]
