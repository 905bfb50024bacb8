"""Weights that come from a file into a network that a config describes, either of which may be of somebody else."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from driftkit.errors import ArtifactError

Network = TypeVar("Network", bound=nn.Module)


def build_with(
    build: Callable[[], Network],
    weights: Mapping[str, torch.Tensor],
    *,
    what: str,
    part: Callable[[str], bool] = lambda name: True,
) -> Network:
    """The network with these weights.

    Names and shapes are compared on the meta device first, so that a config that asks for more memory than there is
    costs none unless the weights are as large.

    Args:
        build: makes the network.
        weights: of all tensors that `part` selects; others are ignored.
        what: how the error names the file.
        part: whether a tensor of that name must be in `weights`; the others keep their initial values.

    Raises:
        ArtifactError: the weights are not those of the network, or no network can be built.
    """
    try:
        with torch.device("meta"):
            wanted = {name: tensor.shape for name, tensor in build().state_dict().items() if part(name)}
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ArtifactError(f"{what}: its config describes no network: {error!s:.200}") from None
    given = {name: tensor for name, tensor in weights.items() if part(name)}
    problems = [f"lacks {name}" for name in wanted if name not in given]
    problems += [f"has the unknown {name}" for name in given if name not in wanted]
    problems += [
        f"{name} is {list(given[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ArtifactError(f"{what} does not hold the network its config describes: {'; '.join(problems[:2])}{more}")
    network = build()
    network.load_state_dict(given, strict=False)
    return network
