"""Numbers that the device computes and the host reads: which are not finite, and scalars that are read a call late."""

from collections.abc import Mapping

import torch

from driftkit.errors import RefusedError, shortened


class LaggedReading:
    """Reads the scalar that was handed in one call earlier.

    On CUDA it travels into pinned memory while the host goes on, and an event marks its arrival: the host waits for the
    step before, not for the one just queued. The lag is the same on every device, so that ranks that hand in equal
    numbers read equal numbers at the same call.
    """

    def __init__(self) -> None:
        self._earlier: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, value: torch.Tensor) -> float:
        """Hand in a scalar, and read the one of the call before; 0.0 at the first call."""
        earlier, self._earlier = self._earlier, _sent(value)
        if earlier is None:
            return 0.0
        number, arrival = earlier
        if arrival is not None:
            arrival.synchronize()
        return float(number)


def _sent(value: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    value = value.detach()
    if value.device.type != "cuda":
        return value.clone(), None
    number = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    number.copy_(value, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return number, arrival


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
    """Refuse weights that are not finite, which would spoil everything made with them; `what` names them."""
    broken = not_finite(tensors)
    if broken:
        counted = [f"{name} ({count} of {tensors[name].numel()})" for name, count in broken.items()]
        raise RefusedError(f"{what} are not finite: {shortened(counted)}; {fix}")
