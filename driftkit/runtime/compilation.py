"""Whether networks are compiled, and why; and the choice of convolution algorithms by trial."""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

COMPILE_STEPS = 2_000  # that must be left for "auto": compiling takes about a minute, what many short runs take
OLDEST_CAPABILITY = (7, 0)  # of a GPU that Triton writes programs for


CompileSetting = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Compilation:
    """Whether networks are compiled, and why, in a few words."""

    setting: str  # what was asked for
    compiled: bool
    reason: str


def decide_compilation(setting: CompileSetting, *, device: torch.device, steps_left: int) -> Compilation:
    """ "auto" compiles on a GPU that can, when steps enough are left to win the time back; never on a CPU.

    A run that is resumed decides again. Compiled and eager networks agree within rounding.
    """
    if setting != "auto":
        return Compilation(setting, setting == "on", "as the config says")
    if device.type != "cuda":
        return Compilation(setting, False, f"on {device.type} it takes longer than it saves")
    problem = _hindrance(device)
    if problem:
        return Compilation(setting, False, problem)
    enough = steps_left >= COMPILE_STEPS
    return Compilation(
        setting, enough, f"{steps_left:,} steps left, {COMPILE_STEPS:,} or more make up for the compiling"
    )


def _hindrance(device: torch.device) -> str | None:
    """Why programs cannot be compiled for a GPU; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"Triton knows no GPU of compute capability {capability[0]}.{capability[1]}"
    return None


def compiled_network(network: nn.Module, *, same_dropout: bool) -> nn.Module:
    """The network, to be compiled at its first call; it shares the weights.

    Args:
        same_dropout: draw dropout masks as eager networks do, so that two compiled programs agree on them.
    """
    if same_dropout:
        from torch._inductor import config as inductor

        inductor.fallback_random = True
    compiled: nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    return compiled


@contextlib.contextmanager
def tried_convolutions(*, wanted: bool) -> Iterator[None]:
    """Let cuDNN try its algorithms at the first convolution of every shape and keep the fastest.

    Worth it where shapes are few and fixed. Which one wins may differ from process to process, and with it rounding.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
