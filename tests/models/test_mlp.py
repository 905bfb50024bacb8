"""The perceptron of toys: shapes, and where an untrained one begins."""

import torch

from driftkit.models.mlp import PointGenerator


def test_it_starts_where_it_is_told_to():
    generator = PointGenerator(noise_channels=3, width=16, depth=2)
    noise = torch.randn(500, 3)
    generator.start_at((4.0, -1.0), spread=0.25, noise=noise)
    points = generator(noise)
    assert points.shape == (500, 2)
    torch.testing.assert_close(points.mean(dim=0), torch.tensor([4.0, -1.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(points.std(dim=0), torch.tensor([0.25, 0.25]), rtol=1e-4, atol=0)
