"""Signals to stop: by Ctrl-C, by a scheduler that takes the machine back, by a terminal that is closed.

A training finishes its step and saves (`StopRequest`); everything else ends where it is, without leaving half-written
files (`ending_cleanly`). Either way a second signal ends the process at once.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REPEAT_S = 1.0  # timeout, uv and torchrun pass on a signal that the process got already: copies within it are one


class StoppedError(BaseException):
    """A signal of this number ends this process; like KeyboardInterrupt it is no error that anything should handle."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(number: int) -> int:
    """What a process ends with after a signal, as shells count it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + number


class _Handlers:
    """Handles the first stop signal and ends the process at a second one."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere whoever runs us handles signals
            for number in STOP_SIGNALS:
                # nohup means it; a shell that starts a job in the background only keeps its own Ctrl-C from it
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._asked = number, time.monotonic()
            self.first(number)
        elif time.monotonic() - self._asked > REPEAT_S:
            os._exit(exit_code(number))  # files appear by renaming alone: nothing under a final name is half-written

    def first(self, number: int) -> None:
        """The first signal has come."""


class StopRequest(_Handlers):
    """Turns a signal into a wish to stop after the step: `signal` is its number, None as long as nobody asked."""


class _Ending(_Handlers):
    def first(self, number: int) -> None:
        raise StoppedError(number)


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Turn a signal into `StoppedError`, so that what is half-written is removed on the way out."""
    with _Ending():
        yield
