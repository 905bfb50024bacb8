"""The optimizer, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import nn


def adamw(
    network: nn.Module, *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over all parameters, in order of `named_parameters`, in one pass over them."""
    return torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state as `exp_avg/conv.weight` -> tensor; empty before the first step."""
    names = [name for name, _ in network.named_parameters()]
    state = optimizer.state_dict()["state"]
    return {f"{key}/{names[index]}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    index = {name: i for i, (name, _) in enumerate(network.named_parameters())}
    parameters = dict(network.named_parameters())
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, parameter = name.partition("/")
        # Fused updates need moments with the strides of their parameter (channels_last), which files do not keep.
        value = tensor.clone() if tensor.ndim == 0 else torch.empty_like(parameters[parameter]).copy_(tensor)
        state.setdefault(index[parameter], {})[key] = value.detach()
    document = optimizer.state_dict()
    document["state"] = state
    optimizer.load_state_dict(document)
