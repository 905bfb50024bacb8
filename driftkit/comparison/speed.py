"""How many images per second a sampler makes, under settings that are equal for all that are compared."""

import time
from collections.abc import Callable, Sequence
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
        budget_seconds: most time that the timed runs of one network may take; see `measure_speeds`.
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


@dataclass(frozen=True)
class SpeedCase:
    """What is timed: a network in evaluation mode on the settings' device, and a sampler that draws no noise.

    Attributes:
        share: of the budget, which the cases of one network divide among them.
    """

    run: str
    sampler_name: str
    network: nn.Module
    sampler: Sampler
    nfe: int
    image_size: int
    share: float = 1.0


def measure_speeds(
    cases: Sequence[SpeedCase], settings: SpeedSettings, *, advance: Callable[[], None] = lambda: None
) -> list[Speed]:
    """Time samplers on noise [batch_size, 3, image_size, image_size], in rounds of all cases.

    Rounds spread whatever disturbs the machine over all cases, where timing one after the other would blame it on one.
    A sampler of many steps on a slow device is timed at fewer evaluations, at least 2, if the repeats of all of them
    would exceed the budget: its cost is that of its evaluations, and the result says how many were made.

    Args:
        cases: what is timed.
        settings: what is held equal.
        advance: called after each round.
    """
    models: dict[int, Any] = {}
    for case in cases:
        if id(case.network) not in models:
            models[id(case.network)] = torch.compile(case.network) if settings.compiled else case.network
    counts = []
    for case in cases:
        short = min(case.nfe, 2)
        for _ in range(settings.warm_up):
            _seconds(case, models[id(case.network)], short, settings)
        per_evaluation = _seconds(case, models[id(case.network)], short, settings) / short
        fitting = int(settings.budget_seconds * case.share / max(per_evaluation * settings.repeats, 1e-9))
        counts.append(case.nfe if case.nfe <= fitting else max(short, fitting))
    timed: list[list[float]] = [[] for _ in cases]
    for _ in range(settings.repeats):
        for times, case, count in zip(timed, cases, counts, strict=True):
            times.append(_seconds(case, models[id(case.network)], count, settings))
        advance()
    speeds = []
    for times, case, count in zip(timed, cases, counts, strict=True):
        fastest = min(times) * case.nfe / count
        rate = settings.batch_size / fastest
        speeds.append(Speed(case.run, case.sampler_name, case.nfe, count, rate, fastest, max(times) / min(times)))
    return speeds


def _seconds(case: SpeedCase, model: Any, evaluations: int, settings: SpeedSettings) -> float:
    """Wall time of one batch at that many evaluations."""
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch_size, 3, case.image_size, case.image_size)
    noise = torch.randn(shape, generator=generator).to(settings.device)
    request = SampleRequest(nfe=evaluations, step_noise=lambda _: torch.zeros_like(noise))
    synchronize(settings.device)
    started = time.perf_counter()
    with torch.inference_mode(), autocast(settings.device, settings.dtype):
        case.sampler(model, noise, request)
    synchronize(settings.device)
    return time.perf_counter() - started
