"""What the benchmarks share: a row of the table, timing in turns, and the file that a run leaves."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

RESULTS = Path("outputs/benchmarks")


@dataclass(frozen=True)
class Row:
    """One figure next to its baseline of the same run."""

    benchmark: str
    case: str
    value: float
    baseline: float
    unit: str
    ratio: float
    """What the goal speaks of, for example how many times faster, or the share of the baseline's memory."""
    goal: str = ""
    """In words, for example ">= 4.5x"; empty where the figure is only shown."""
    baseline_name: str = "baseline"


def alternate(functions: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that a slower or faster minute of the machine hits all."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(function: Callable[[], object]) -> int:
    """Most memory that torch holds at a time of what the function allocates on a CPU, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        result = function()
    live = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    del result
    return peak


def machine() -> dict[str, object]:
    """What the figures depend on: processor or GPU model, threads, torch."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def write_results(name: str, rows: Sequence[Row]) -> Path:
    """outputs/benchmarks/NAME.json: the machine and the rows."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
