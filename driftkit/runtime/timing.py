"""Clocks: the parts of a training step, whose marks cost nothing on a GPU until they are read, and a stopwatch."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

MAX_MARKS = 4096  # events kept before they are added up, for which a GPU must be waited for


class Stopwatch:
    """Seconds of work, on top of `seconds`, without those in which it is paused."""

    def __init__(self, seconds: float = 0.0):
        self._before = seconds
        self._since: float | None = None  # reading of the clock; None while it stands

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run inside the block."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._before, self._since = self.seconds, None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pause inside the block; run on afterwards if it ran before."""
        was_running = self._since is not None
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.monotonic() if was_running else None


class StepClock:
    """Adds up the time between marks under the name of the later one.

    On CUDA the marks are events in the stream, read when `seconds` waits for them; elsewhere they are clock readings.
    """

    def __init__(self, device: torch.device | None = None):
        self._device = device if device is not None and device.type == "cuda" else None
        self._marks: list[tuple[str | None, Any]] = []  # clock readings, or events
        self._totals: dict[str, float] = {}

    def start(self) -> None:
        """A step begins; the time since the last mark is not counted."""
        self.mark(None)

    def mark(self, name: str | None) -> None:
        """The time since the last mark was spent on `name`; None: it is not counted."""
        if self._device is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))
        if len(self._marks) >= MAX_MARKS:
            self._add_up()

    def _add_up(self) -> None:
        """Turn marks into seconds; the last one stays, since the next begins there."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                seconds = after - before if isinstance(after, float) else before.elapsed_time(after) / 1000
                self._totals[name] = self._totals.get(name, 0.0) + float(seconds)
        del self._marks[:-1]

    def seconds(self) -> dict[str, float]:
        """Seconds by name since the last call, in order of first appearance; forgets them."""
        self._add_up()
        totals, self._totals = self._totals, {}
        return totals
