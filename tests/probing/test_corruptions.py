"""Wrong images are wrong in the way they say, and in no other."""

import pytest
import torch

from driftkit.probing.probe_images import CORRUPTIONS, blur, checkerboard, collage, grey, noise, shift, shuffle


def images(count=6, side=16):
    return torch.rand(count, 3, side, side) * 1.6 - 0.8


def seeded():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("spec", CORRUPTIONS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("side", [8, 15, 32])
def test_every_corruption_keeps_shape_and_range_repeats_itself_and_leaves_its_input(spec, side):
    before = images(side=side)
    kept = before.clone()
    once, again = spec.apply(before, seeded()), spec.apply(before, seeded())
    assert once.shape == before.shape
    assert float(once.abs().max()) <= 1 + 1e-6
    assert torch.equal(once, again)
    assert torch.equal(before, kept)
    assert not torch.allclose(once, before)


def test_shuffle_moves_cells_whole():
    before = images(side=16)
    after = shuffle(before, seeded())
    cells = [t.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(6, 16, -1) for t in (before, after)]
    for one, other in zip(*cells, strict=True):
        rows = {tuple(r.tolist()) for r in one}
        assert rows == {tuple(r.tolist()) for r in other}


def test_collage_keeps_what_stands_at_each_place():
    before = images()
    after = collage(before, seeded())
    for rows, columns in ((slice(8), slice(8)), (slice(8), slice(8, None)), (slice(8, None), slice(8))):
        sums = [t[..., rows, columns].sum(dim=(1, 2, 3)).sort().values for t in (before, after)]
        torch.testing.assert_close(*sums)


def test_blur_keeps_constants_and_checkerboard_keeps_means():
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(blur(flat, seeded()), flat)
    before = images()
    torch.testing.assert_close(checkerboard(before, seeded()).mean((2, 3)), before.mean((2, 3)))


def test_grey_shift_and_noise():
    before = images(side=32)
    assert torch.equal(grey(before, seeded())[:, 0], grey(before, seeded())[:, 2])
    assert torch.equal(shift(before, seeded())[..., 1:], before[..., :-1])
    assert (noise(before, seeded()) - before).std().item() == pytest.approx(0.1, rel=0.05)
