"""The exponential moving average of the weights, which is what one samples and scores."""

from timm.utils import ModelEmaV3
from torch import nn


def averaged(network: nn.Module, *, decay: float, warmup: float = 9.0) -> ModelEmaV3:
    """An average of `network` that starts as its copy, and is a copy once more after the first step.

    With a warm-up W the decay at step n is min(decay, (n - 1) / (n - 1 + W)): a short run averages over about its last
    1 / (W + 1) instead of remembering its initial weights. It reaches a decay of 1 - e at step W / e.

    Args:
        decay: per step, in [0, 1).
        warmup: W, in steps; 0: the decay is constant from the second step on.
    """
    ema = ModelEmaV3(network, decay=decay, use_warmup=warmup > 0, warmup_gamma=warmup or 1.0, warmup_power=1.0)
    ema.module.requires_grad_(False)
    return ema
