"""The exponential moving average of the weights, which is what one samples and scores."""

from timm.utils import ModelEmaV3
from torch import nn


def averaged(network: nn.Module, *, decay: float) -> ModelEmaV3:
    """An average of `network` that starts as its copy.

    The decay at step n is min(decay, (n - 1) / (n + 8)): a short run averages over about its last tenth instead of
    remembering its initial weights.
    """
    ema = ModelEmaV3(network, decay=decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
    ema.module.requires_grad_(False)
    return ema
