"""Folded batch norms give the same features in fewer layers, and only where a fold is right."""

import pytest
import torch
from torch import nn

from driftkit.encoders.folding import fold_norms
from tests.encoders.loading import load


def with_statistics(network):
    """Norms that change something: of random means, variances and weights."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval()


def num_norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", ["efficientnet-lite0", "mocov2"])
def test_features_and_gradients_of_folded_encoders_are_the_same(name):
    encoder = load(name, random_weights=True, input_size=32).double()  # in float32 kinks of ReLU fall on either side
    with_statistics(encoder.network)
    assert num_norms(encoder.network) > 30

    def features_and_gradient():
        x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).double().sin().view(2, 3, 32, 32).requires_grad_()
        maps = [m.values for m in encoder.maps(x)]
        torch.stack([values.square().mean().sqrt() for values in maps]).sum().backward()
        return [*maps, x.grad]

    before = features_and_gradient()
    images = torch.randn(2, 3, 32, 32).double()
    fold_norms(encoder.network, lambda: [m.values for m in encoder.maps(images)])
    assert num_norms(encoder.network) == 0
    for old, new in zip(before, features_and_gradient(), strict=True):
        assert (old - new).abs().max() < 1e-9 * old.abs().max()


class Crossed(nn.Module):
    """Two convolutions whose norms are not those registered right behind them."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm2 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


def test_norms_that_stand_elsewhere_are_left_alone():
    network = with_statistics(Crossed())
    images = torch.randn(2, 3, 4, 4)
    before = network(images)
    fold_norms(network, lambda: [network(images)])
    assert num_norms(network) == 2
    assert torch.equal(network(images), before)
