"""The networks by kind, and how one is built. A new network is a file that registers itself, and one import line."""

# ruff: noqa: F401
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

import driftkit.models.dit
import driftkit.models.mae_resnet
import driftkit.models.unet
from driftkit.errors import ArtifactError, UsageError, shortened
from driftkit.models.contract import MODELS, Model, NetworkConfig, register

Network = TypeVar("Network", bound=nn.Module)


def network_config(section: Mapping[str, Any]) -> NetworkConfig:
    """The config of a network from its section of a config, as model cards read it from the header of weights.

    Raises:
        UsageError: there is no network of that kind.
        pydantic.ValidationError: values that do not fit it.
    """
    kind = section.get("kind")
    if kind not in MODELS:
        raise UsageError(f"model.kind {kind!r}: expected {', '.join(MODELS)}")
    return MODELS[kind].config.model_validate(dict(section))


def build_network(config: NetworkConfig, *, image_size: int) -> nn.Module:
    """The network of a config, freshly initialised from torch's global generator.

    Raises UsageError where it cannot take images of that size.
    """
    try:
        config.check_image_size(image_size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return MODELS[config.kind].build(config, image_size)


def to_device(network: nn.Module, config: NetworkConfig, device: torch.device) -> nn.Module:
    """The network on a device, in its memory format."""
    memory_format = getattr(torch, MODELS[config.kind].memory_format)
    placed: nn.Module = network.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    return placed


def tensor_problems(expected: Mapping[str, torch.Size], given: Mapping[str, torch.Tensor]) -> str:
    """In what tensors are not those expected: the first differences; empty where there are none."""
    return shortened(tensor_differences(expected, given), 2, "; ")


def tensor_differences(expected: Mapping[str, torch.Size], given: Mapping[str, torch.Tensor]) -> list[str]:
    """Shapes that differ, then names that are lacking, then names that are unknown, in words."""
    differences = [
        f"{key} is {list(given[key].shape)}, not {list(shape)}"
        for key, shape in expected.items()
        if key in given and given[key].shape != shape
    ]
    differences += [f"lacks {key}" for key in expected if key not in given]
    return differences + [f"has the unknown {key}" for key in given if key not in expected]


def build_with(
    build: Callable[[], Network],
    weights: Mapping[str, torch.Tensor],
    *,
    name: str,
    part: Callable[[str], bool] = lambda tensor: True,
) -> Network:
    """A network with weights from a file, either of which may come from a stranger.

    Names and shapes are compared on the meta device first, so that a config that asks for too much memory costs none
    unless the weights are as large.

    Args:
        name: of the file, for errors.
        part: whether a tensor of that name must be in `weights`; the others keep their initial values.

    Raises ArtifactError where the weights are not those of the network, or no network can be built.
    """
    try:
        with torch.device("meta"):
            expected = {key: tensor.shape for key, tensor in build().state_dict().items() if part(key)}
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ArtifactError(f"{name}: its config describes no network: {error!s:.200}") from None
    given = {key: tensor for key, tensor in weights.items() if part(key)}
    if problems := tensor_problems(expected, given):
        raise ArtifactError(f"{name} does not hold the network its config describes: {problems}")
    network = build()
    network.load_state_dict(given, strict=False)
    return network
