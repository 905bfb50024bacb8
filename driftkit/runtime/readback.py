"""Numbers that the device computes and the host reads, without waiting for the work that was queued last."""

import torch


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
