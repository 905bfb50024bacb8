"""Batch norms of frozen networks, folded into the convolutions before them: the same features in fewer passes."""

import copy
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

LARGEST_DIFFERENCE = 1e-3  # of features, over their largest: float32 rounds by far less, a wrong pair changes them by 1


def fold_norms(network: nn.Module, features: Callable[[], list[torch.Tensor]]) -> None:
    """Fold every BatchNorm2d that is registered right behind a convolution, in evaluation mode; keep its activation.

    Args:
        network: changed in place, unless that changes the features.
        features: maps that the network makes of some images; not called where it has no weights (meta tensors).
    """
    pairs = list(_pairs(network))
    if not pairs:
        return
    is_meta = any(tensor.is_meta for tensor in network.state_dict().values())
    with torch.no_grad():
        before = [] if is_meta else features()
        kept = [(parent, name, getattr(parent, name)) for parent, *names in pairs for name in names]
        for parent, conv, norm in pairs:
            folded = fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm))
            activation = getattr(getattr(parent, norm), "act", None)  # timm's norms have it inside
            setattr(parent, conv, folded)
            setattr(parent, norm, copy.copy(activation) if activation is not None else nn.Identity())
        after = [] if is_meta else features()
    same = all(
        (ours - theirs).abs().max() <= LARGEST_DIFFERENCE * theirs.abs().max()
        for ours, theirs in zip(after, before, strict=True)
    )
    if not same:  # registered in another order than they are called
        for parent, name, module in kept:
            setattr(parent, name, module)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    children = list(module.named_children())
    for (conv, first), (norm, second) in itertools.pairwise(children):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            yield module, conv, norm
    for _, child in children:
        yield from _pairs(child)
