"""How many images per second the samplers of the compared runs make, under settings that are equal for all."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pydantic
import torch
from torch import nn

from driftkit.comparison.compare_config import CompareConfig
from driftkit.comparison.run_summary import RunSummary
from driftkit.errors import DriftkitError
from driftkit.methods.base import GenerativeConfig
from driftkit.methods.registry import METHODS, build_sampler
from driftkit.models.registry import to_device
from driftkit.protocols import Condition, Sampler, SampleRequest
from driftkit.runtime.device import autocast, autocast_dtype, describe_device, synchronize
from driftkit.runtime.progress import Report, phase

if TYPE_CHECKING:
    from driftkit.comparison.score_table import ScoreTable

GUIDED = "guided"
GUIDANCE = 2.0  # scale at which guided samplers are timed
BUSY = 1.5  # slowest over fastest timing above which the report says that the machine was busy


@dataclass(frozen=True)
class SpeedSettings:
    """What is held equal.

    Attributes:
        dtype: of the network's arithmetic.
        compiled: whether networks go through torch.compile.
        warm_up: untimed runs first.
        repeats: timed runs, of which the fastest counts: whatever else a machine does only slows them down.
        budget_seconds: longest time for the timed runs of one network; see `measure_speeds`.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    compiled: bool = False
    warm_up: int = 1
    repeats: int = 3
    budget_seconds: float = 30.0

    @classmethod
    def of(cls, config: CompareConfig, device: torch.device) -> "SpeedSettings":
        batch_size = config.speed_batch or (256 if device.type == "cuda" else 16)
        dtype = autocast_dtype("auto", device)
        return cls(device, dtype, batch_size, config.speed_compile, budget_seconds=config.speed_seconds)

    def describe(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "device": describe_device(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "torch": str(torch.__version__),
        }


@pydantic.dataclasses.dataclass(frozen=True)
class Speed:
    """One measurement.

    Attributes:
        sampler: its name, and whether it is guided, which every scale is in the same time.
        nfe: network evaluations per image that the sampler is meant to make.
        measured_nfe: those of the timed run; fewer than `nfe` where all of them exceed the time budget. The time is
            then scaled by their ratio.
        seconds_per_batch: the fastest of the repeats, scaled.
        unevenness: slowest over fastest repeat; well above 1 where the machine was busy.
    """

    run: str
    sampler: str
    nfe: int
    measured_nfe: int
    images_per_second: float
    seconds_per_batch: float
    unevenness: float

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def scaled(self) -> bool:
        return self.measured_nfe != self.nfe


@dataclass(frozen=True)
class SpeedCase:
    """A network in evaluation mode, a sampler that draws no noise, and their share of the network's time budget."""

    run: str
    sampler_name: str
    network: nn.Module
    sampler: Sampler
    nfe: int
    shape: tuple[int, int, int]  # [C, H, W] of images or latents
    share: float = 1.0
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None  # latents to images; None: there is nothing to decode
    guided: bool = False  # whether the sampler is one of `guided_sampler`, which makes an even number of evaluations


def time_runs(
    runs: Sequence[RunSummary],
    tables: "Sequence[ScoreTable]",
    settings: SpeedSettings,
    notes: list[str],
    report: Report,
) -> list[Speed]:
    """Images per second of every run, in each sampler setup that was scored and at the usual NFE of its samplers.

    `notes` gets a sentence for every run that could not be timed, and one where the machine was busy.
    """
    cases: list[SpeedCase] = []
    for run in runs:
        try:
            with phase(f"loading {run.label}"):
                cases += _speed_cases(run, tables, settings)
        except DriftkitError as error:
            notes.append(f"the speed of {run.label} was not measured: {error}")
    timings = len(cases) * (1 + settings.repeats)
    speeds = measure_speeds(cases, settings, advance=lambda count: report("speed", count, timings, unit="timings"))
    busy = [speed for speed in speeds if speed.unevenness > BUSY]
    if busy:
        worst = max(busy, key=lambda s: s.unevenness)
        notes.append(
            f"the machine was busy: timings of {len(busy)} of {len(speeds)} speeds varied by more than {BUSY}-fold, "
            f"most those of {worst.run} at {worst.nfe} NFE, {worst.unevenness:.1f}-fold"
        )
    return speeds


def speed_of(speeds: Sequence[Speed], run: str, sampler: str | None, nfe: int | None) -> Speed | None:
    """The measured speed of a sampler setup; options of a sampler (eta) and the guidance scale do not change it.

    All are timed in the number format of `SpeedSettings`, also those of images that were drawn in another.
    """
    name, *words = (sampler or "").split(" ")
    names = [f"{name} {GUIDED}"] if any(word.startswith("guidance=") for word in words) else []
    timed = {s.sampler: s for s in speeds if (s.run, s.nfe) == (run, nfe)}
    return next((timed[each] for each in (*names, name) if each in timed), None)


def _speed_cases(run: RunSummary, tables: "Sequence[ScoreTable]", settings: SpeedSettings) -> list[SpeedCase]:
    """All (sampler, NFE) of a run that are timed."""
    from driftkit.training.latents import open_autoencoder
    from driftkit.training.sampling import guided_sampler, load_network

    network, config, _ = load_network(run.folder)
    network = to_device(network, config.model, settings.device)
    autoencoder = open_autoencoder(config, settings.device, run=run.folder)
    decode = None if autoencoder is None else autoencoder.to_images
    samplers = METHODS[config.objective.name].samplers
    by_sampler = isinstance(config.objective, GenerativeConfig) and not config.objective.trains_guidance
    setups = {(name, False, nfe): None for name, spec in samplers.items() for nfe in spec.speed_nfes}
    for row in (row for table in tables for row in table.all_rows if row.run == run.label):
        name = (row.sampler or "").split(" ")[0]
        if name in samplers and row.nfe:
            setups[name, by_sampler and row.guidance not in (None, 1), row.nfe] = None
    cases, shape = [], config.data.sample_shape
    for name, guided, nfe in setups:
        sampler, label = build_sampler(config.objective, name)[1], name
        if guided:
            sampler, label = guided_sampler(sampler, GUIDANCE), f"{name} {GUIDED}"
        cases.append(SpeedCase(run.label, label, network, sampler, nfe, shape, 1 / len(setups), decode, guided))
    return cases


def measure_speeds(
    cases: Sequence[SpeedCase], settings: SpeedSettings, *, advance: Callable[[int], None] = lambda count: None
) -> list[Speed]:
    """Time samplers on noise [batch_size, *shape], in rounds of all cases.

    Rounds spread whatever disturbs the machine over all cases, where timing one after the other would blame it on one.
    A sampler of many steps on a slow device is timed at fewer evaluations, at least 2, where the repeats of all of them
    would exceed the budget: its cost is that of its evaluations, and the result says how many were made.

    `advance` is called with 1 for every case at first and in each round.
    """
    networks = {id(case.network): case.network for case in cases}
    models = {key: torch.compile(network) if settings.compiled else network for key, network in networks.items()}
    counts = []
    if cases:
        advance(0)
    for case in cases:
        short = min(case.nfe, 2)
        for _ in range(settings.warm_up):
            _seconds(case, models[id(case.network)], short, settings)
        per_evaluation = _seconds(case, models[id(case.network)], short, settings) / short
        affordable = int(settings.budget_seconds * case.share / max(per_evaluation * settings.repeats, 1e-9))
        affordable -= affordable % 2 if case.guided else 0
        counts.append(case.nfe if case.nfe <= affordable else max(short, affordable))
        advance(1)
    timings: list[list[float]] = [[] for _ in cases]
    for _ in range(settings.repeats):
        for seconds, case, count in zip(timings, cases, counts, strict=True):
            seconds.append(_seconds(case, models[id(case.network)], count, settings))
            advance(1)
    speeds = []
    for seconds, case, count in zip(timings, cases, counts, strict=True):
        fastest = min(seconds) * case.nfe / count + _decode_seconds(case, settings)
        rate = settings.batch_size / fastest
        speeds.append(Speed(case.run, case.sampler_name, case.nfe, count, rate, fastest, max(seconds) / min(seconds)))
    return speeds


def _seconds(case: SpeedCase, model: Any, evaluations: int, settings: SpeedSettings) -> float:
    """Wall time of one batch at that many evaluations."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((settings.batch_size, *case.shape), generator=generator).to(settings.device)
    labels = torch.zeros(len(noise), dtype=torch.int64, device=settings.device) if case.guided else None
    request = SampleRequest(evaluations, lambda _: torch.zeros_like(noise), condition=Condition(labels=labels))
    synchronize(settings.device)
    started = time.perf_counter()
    with torch.inference_mode(), autocast(settings.device, settings.dtype):
        case.sampler(model, noise, request)
    synchronize(settings.device)
    return time.perf_counter() - started


def _decode_seconds(case: SpeedCase, settings: SpeedSettings) -> float:
    """Wall time of decoding one batch of latents, the faster of two; 0 where there is nothing to decode."""
    if case.decode is None:
        return 0.0
    latents, times = torch.zeros(settings.batch_size, *case.shape, device=settings.device), []
    for _ in range(2):
        synchronize(settings.device)
        started = time.perf_counter()
        case.decode(latents)
        synchronize(settings.device)
        times.append(time.perf_counter() - started)
    return min(times)
