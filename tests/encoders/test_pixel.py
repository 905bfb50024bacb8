"""The pixels as encoders."""

import torch

from driftkit.encoders.pixel import PixelPyramid


def test_pyramid_has_the_patches_that_plain_loops_find():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = {each.name: each.values for each in PixelPyramid(input_size=16).maps(images)}
    assert list(maps) == ["side16", "side8", "side4"]
    level = images.double()
    for values in maps.values():
        side = level.shape[-1]
        rows = range(0, side - 3, 2)
        assert values.shape == (2, 48, len(rows), len(rows))
        for i, top in enumerate(rows):
            for j, left in enumerate(rows):
                patch = level[:, :, top : top + 4, left : left + 4].flatten(1)
                torch.testing.assert_close(values[:, :, i, j].double(), patch, atol=1e-6, rtol=0)
        halves = level.unflatten(3, (side // 2, 2)).unflatten(2, (side // 2, 2))
        level = halves.mean(dim=(3, 5))


def test_every_pixel_is_in_the_first_level_of_a_pyramid():
    images = torch.zeros(1, 3, 12, 12, requires_grad=True)
    PixelPyramid(input_size=12).maps(images)[0].values.sum().backward()
    assert images.grad is not None
    assert bool((images.grad > 0).all())
