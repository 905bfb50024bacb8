"""Which of many tensors hold numbers that are not finite."""

from collections.abc import Mapping, Sequence

import torch

from driftkit.errors import RefusedError

MOST_NAMED = 4


def not_finite(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many numbers of each tensor are NaN or infinite; tensors without any are left out. Waits for the device."""
    kept = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not kept:
        return {}
    # A sum is finite only if all it adds is: one pass without memory, which is all that most checks need.
    finite = torch.isfinite(torch.stack([tensor.detach().sum().float() for tensor in kept.values()])).tolist()
    kept = {name: tensor for (name, tensor), known in zip(kept.items(), finite, strict=True) if not known}
    if not kept:
        return {}
    counts = torch.stack([(~torch.isfinite(tensor)).sum() for tensor in kept.values()]).tolist()
    return {name: count for name, count in zip(kept, counts, strict=True) if count}


def require_finite(tensors: Mapping[str, torch.Tensor], what: str, *, fix: str) -> None:
    """Refuse weights that would spoil everything made with them.

    Args:
        what: how the message names them; fix: what to do.

    Raises:
        RefusedError: some are not finite; the message names which.
    """
    broken = not_finite(tensors)
    if broken:
        counted = [f"{name} ({count} of {tensors[name].numel()})" for name, count in broken.items()]
        raise RefusedError(f"{what} are not finite: {named(counted)}; {fix}")


def named(names: Sequence[object]) -> str:
    """The first few of the names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"
