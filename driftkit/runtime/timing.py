"""Where the time of a step goes: a clock whose marks cost nothing on a GPU until they are read."""

import time

import torch

MOST_MARKS = 4096  # events kept before they are added up, for which a GPU must be waited for


class StepClock:
    """Adds up the time between marks under the name of the later one.

    On CUDA the marks are events in the stream, read when `seconds` waits for them; elsewhere they are clock readings.

    Args:
        device: where the work happens.
    """

    def __init__(self, device: torch.device | None = None):
        self._device = device if device is not None and device.type == "cuda" else None
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []
        self._totals: dict[str, float] = {}

    def start(self) -> None:
        """A step begins; what passed since the last mark belongs to nobody."""
        self._mark(None)

    def mark(self, name: str) -> None:
        """Everything since the mark before was `name`."""
        self._mark(name)

    def _mark(self, name: str | None) -> None:
        if self._device is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))
        if len(self._marks) >= MOST_MARKS:
            self._add_up()

    def _add_up(self) -> None:
        """Turn marks into seconds; the last one stays, since the next begins there."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                self._totals[name] = self._totals.get(name, 0.0) + _between(before, after)
        del self._marks[:-1]

    def seconds(self) -> dict[str, float]:
        """Seconds by name since the last call, in order of first appearance; forgets them."""
        self._add_up()
        totals, self._totals = self._totals, {}
        return totals


def _between(before: "float | torch.cuda.Event", after: "float | torch.cuda.Event") -> float:
    if isinstance(before, float) or isinstance(after, float):
        assert isinstance(before, float)
        assert isinstance(after, float)
        return after - before
    return float(before.elapsed_time(after)) / 1000
