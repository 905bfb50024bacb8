"""AdamW, its learning rate, clipping, the moving average of the weights, and the optimizer's state as named tensors."""

import math
from collections.abc import Mapping

import torch
from timm.utils import ModelEmaV3
from torch import nn

from driftkit.training.train_config import TrainerConfig


def adamw(
    network: nn.Module, *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over all parameters, in order of `named_parameters`, in one pass over them."""
    return torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)


def scheduled_rate(step: int, config: TrainerConfig) -> float:
    """The learning rate of an update.

    With rate r, warm-up W, last step T and D steps of decay, which begin at step B = T - D:

    - r (step + 1) / W before step W: the first update has r / W, that of step W - 1 has r;
    - times f + (1 - f) c(p) from step B on, with p = (step - B) / D and the share f = `final_rate`, where c(p) is
      (1 + cos(pi p)) / 2 for a cosine schedule and 1 - p for a linear one. The update of step B still has r, and the
      share f would be that of step T, which is not taken.

    Without `decay_steps`, B is W.

    Args:
        step: number of updates before this one, from 0 to T - 1.
    """
    rate = config.learning_rate
    if step < config.warmup_steps:
        rate *= (step + 1) / config.warmup_steps
    begin = config.warmup_steps if config.decay_steps is None else config.steps - config.decay_steps
    if config.schedule == "constant" or step <= begin:
        return rate
    progress = (step - begin) / (config.steps - begin)
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return rate * (config.final_rate + (1 - config.final_rate) * left)


def clip_gradients(network: nn.Module, limit: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`clip_grad_norm_` to `limit`, which also returns the norm of each parameter's gradient.

    Returns:
        The norm before clipping, and parameter name -> norm of its gradient before clipping; all are scalars.
    """
    held = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    if not held:
        return torch.tensor(0.0), {}
    norms = torch._foreach_norm(list(held.values()))
    norm = torch.linalg.vector_norm(torch.stack(norms))
    nn.utils.clip_grads_with_norm_(network.parameters(), limit, norm)
    return norm, dict(zip(held, norms, strict=True))


def averaged(network: nn.Module, *, decay: float, warmup: float = 9.0) -> ModelEmaV3:
    """An exponential moving average of `network`, which starts as its copy and is a copy again after the first step.

    With a warm-up W, in steps, the decay at step n is min(decay, (n - 1) / (n - 1 + W)): a short run averages over
    about its last 1 / (W + 1) instead of remembering its initial weights. It reaches a decay of 1 - e at step W / e.
    With W = 0 the decay is constant from the second step on.
    """
    ema = ModelEmaV3(network, decay=decay, use_warmup=warmup > 0, warmup_gamma=warmup or 1.0, warmup_power=1.0)
    ema.module.requires_grad_(False)
    return ema


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state as `exp_avg/conv.weight` -> tensor; empty before the first step."""
    names = [name for name, _ in network.named_parameters()]
    state = optimizer.state_dict()["state"]
    return {f"{key}/{names[index]}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned."""
    parameters = dict(network.named_parameters())
    index = {name: i for i, name in enumerate(parameters)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, parameter = name.partition("/")
        # Fused updates need moments with the strides of their parameter (channels_last), which files do not keep.
        value = tensor.clone() if tensor.ndim == 0 else torch.empty_like(parameters[parameter]).copy_(tensor)
        state.setdefault(index[parameter], {})[key] = value.detach()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
