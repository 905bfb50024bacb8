"""How many images per second a sampler makes, under settings that are equal for all that are compared."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from driftkit.protocols import Sampler, SampleRequest
from driftkit.runtime.device import autocast, describe_device, synchronize


@dataclass(frozen=True)
class SpeedSettings:
    """What is held equal.

    Attributes:
        device: where the network runs.
        dtype: of its arithmetic.
        batch_size: images at a time.
        compiled: whether networks go through torch.compile.
        warm_up: untimed runs first.
        repeats: timed runs, of which the fastest counts: whatever else a machine does only slows them down.
        budget_seconds: most time that the timed runs of one sampler may take; see `measure_speed`.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    compiled: bool = False
    warm_up: int = 1
    repeats: int = 3
    budget_seconds: float = 30.0

    def describe(self) -> dict[str, Any]:
        """What the report prints beside the numbers."""
        return {
            **asdict(self),
            "device": describe_device(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "torch": str(torch.__version__),
        }


@dataclass(frozen=True)
class Speed:
    """One measurement.

    Attributes:
        nfe: network evaluations per image of the sampler that is meant.
        measured_nfe: those of the timed run; fewer than `nfe` where the whole would not have fitted the budget, and
            the time is then scaled by their ratio.
        seconds_per_batch: the fastest of the repeats, scaled.
        unevenness: slowest over fastest repeat; well above 1 says that the machine was busy.
    """

    run: str
    sampler: str
    nfe: int
    measured_nfe: int
    images_per_second: float
    seconds_per_batch: float
    unevenness: float

    @property
    def scaled(self) -> bool:
        return self.measured_nfe != self.nfe


def measure_speed(
    network: nn.Module,
    sampler: Sampler,
    *,
    run: str,
    sampler_name: str,
    nfe: int,
    image_size: int,
    settings: SpeedSettings,
) -> Speed:
    """Time a deterministic sampler on noise [batch_size, 3, image_size, image_size].

    A sampler of many steps on a slow device is timed at fewer evaluations, at least 2, if the repeats of all of them
    would exceed the budget: its cost is that of its evaluations, and the result says which were made.

    Args:
        network: in evaluation mode, on the settings' device.
        sampler: makes the images; must draw no noise of its own.
        nfe: network evaluations per image.
    """
    model: Any = torch.compile(network) if settings.compiled else network
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(settings.batch_size, 3, image_size, image_size, generator=generator).to(settings.device)

    def seconds(evaluations: int) -> float:
        request = SampleRequest(nfe=evaluations, step_noise=lambda _: torch.zeros_like(noise))
        synchronize(settings.device)
        started = time.perf_counter()
        with torch.inference_mode(), autocast(settings.device, settings.dtype):
            sampler(model, noise, request)
        synchronize(settings.device)
        return time.perf_counter() - started

    short = min(nfe, 2)
    for _ in range(settings.warm_up):
        seconds(short)
    per_evaluation = seconds(short) / short
    fitting = int(settings.budget_seconds / max(per_evaluation * settings.repeats, 1e-9))
    measured = nfe if nfe <= fitting else max(short, fitting)
    timed = [seconds(measured) for _ in range(settings.repeats)]
    fastest = min(timed) * nfe / measured
    return Speed(run, sampler_name, nfe, measured, settings.batch_size / fastest, fastest, max(timed) / min(timed))
