"""What a GPU makes of driftkit: training, the field and sampling, against the matrix products of the same device.

`just bench-gpu` measures for about eight minutes and writes outputs/benchmarks; cases that no longer fit
into the time are left out and named. Encoders are untrained, which changes no cost. `--device cpu --tiny` tries every
line of it on a machine without a GPU, for no figures that mean anything.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from driftkit.methods.ddpm.samplers import sample_ddim
from driftkit.methods.ddpm.schedule import linear_schedule
from driftkit.methods.drifting import aggregated_drift
from driftkit.methods.drifting.samplers import generate_one_step
from driftkit.models.unet import UNet, UNetConfig
from driftkit.protocols import SampleRequest
from driftkit.training.budget import budget, training_shapes
from driftkit.training.train_config import TrainConfig
from tests.benchmarks.__main__ import table
from tests.benchmarks.field import literal
from tests.benchmarks.harness import Row, write_results
from tests.benchmarks.step import driftkit, train

GOALS = {"ddpm": ">= 0.40", "field": "<= 0.10", "latency": "<= 1.5 ms"}


@dataclass(frozen=True)
class Bench:
    """What is measured where.

    Attributes:
        deadline: of time.monotonic, after which no further training is begun.
    """

    device: torch.device
    tiny: bool
    deadline: float

    def seconds(self, function: Callable[[], object], repeats: int = 20) -> float:
        """Median seconds of a call, the device waited for each time."""
        repeats = 2 if self.tiny else repeats
        for _ in range(3):
            function()
        times = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def matmul_flops(self) -> float:
        """Operations per second of a large product in bfloat16: the ceiling that shares are of."""
        side = 256 if self.tiny else 8192
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: a @ b)


def rows(bench: Bench) -> Iterator[Row]:
    ceiling = bench.matmul_flops()
    yield Row("gpu", "bfloat16 matrix product", ceiling / 1e12, ceiling / 1e12, "TFLOP/s", 1.0, baseline_name="itself")
    yield from _field(bench)
    yield from _sampling(bench)
    yield from _training(bench, ceiling)


def _field(bench: Bench) -> Iterator[Row]:
    shape = (4, 32, 24) if bench.tiny else (72, 1024, 768)
    x, real = (torch.randn(shape, device=bench.device) for _ in range(2))
    with torch.inference_mode():
        ours = bench.seconds(lambda: aggregated_drift(x, real, scale_over="location", wait=False), repeats=5)
        plain = bench.seconds(lambda: literal(x, real), repeats=5)
    yield Row("gpu", f"field {list(shape)}", ours, plain, "s", plain / ours, baseline_name="literal form")


def _network(bench: Bench) -> UNet:
    torch.manual_seed(0)
    config = UNetConfig(base_channels=8, channel_multipliers=(1, 2)) if bench.tiny else UNetConfig()
    network = UNet(config, image_size=32).to(bench.device, memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)


def _sampling(bench: Bench) -> Iterator[Row]:
    """Milliseconds per batch in bfloat16: eager, compiled, and as one CUDA graph."""
    network = _network(bench)
    forms: dict[str, Callable] = {"eager": network, "compiled": torch.compile(network)}
    if bench.device.type == "cuda":
        forms["graph"] = torch.compile(network, mode="reduce-overhead")
    schedule = linear_schedule(1000, 1e-4, 0.02)
    for batch in (1,) if bench.tiny else (1, 16, 128, 1024):
        noise = torch.randn(batch, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
        took = {}
        for form, call in forms.items():
            took[form] = bench.seconds(partial(_in_bfloat16, bench, partial(generate_one_step, call, noise)))
            goal = GOALS["latency"] if batch == 1 and form == "graph" else ""
            milliseconds, eager = took[form] * 1e3, took["eager"] * 1e3
            case = f"1 NFE, batch {batch}, {form}"
            yield Row("gpu", case, milliseconds, eager, "ms", eager / milliseconds, goal, "eager")
    request = SampleRequest(nfe=2 if bench.tiny else 50, step_noise=lambda _: torch.zeros_like(noise))
    noise = noise[:128]
    eager = 0.0
    for form, call in forms.items():
        sample = partial(sample_ddim, call, noise, request, schedule=schedule)
        milliseconds = bench.seconds(partial(_in_bfloat16, bench, sample), repeats=3) * 1e3
        eager = eager or milliseconds
        case = f"DDIM, {request.nfe} NFE, batch {len(noise)}, {form}"
        yield Row("gpu", case, milliseconds, eager, "ms", eager / milliseconds, baseline_name="eager")


def _in_bfloat16(bench: Bench, function: Callable[[], object]) -> object:
    with torch.inference_mode(), torch.autocast(bench.device.type, dtype=torch.bfloat16):
        return function()


def _training(bench: Bench, ceiling: float) -> Iterator[Row]:
    """Images per second, the share of the ceiling, of the field in a step, and memory; eager and compiled."""
    size, count = (8, 64) if bench.tiny else (32, 4096)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = ["--data", f"shapes?image_size={size}&count={count}", "--device", bench.device.type]
        small = ["--set", "model.base_channels=8", "--set", "model.attention_resolutions=[]"] if bench.tiny else []
        mae = folder / "mae"
        driftkit(folder, "train", "--objective", "mae", "--steps", 0, *small[:2], *common, "--output", mae)
        cases: dict[str, list[object]] = {"ddpm": ["--objective", "ddpm"], "drift, MAE": ["--encoder", mae]}
        if not bench.tiny:
            for encoder in ("dinov2-multires", "mocov2", "convnextv2"):
                cases[f"drift, {encoder}"] = ["--encoder", encoder, "--random-weights"]
        for case, words in cases.items():
            for compiled in ("--no-compile", "--compile"):
                if time.monotonic() > bench.deadline:
                    Console(stderr=True).print(f"no time left for {case}, {compiled}")
                    continue
                steps = 4 if bench.tiny else 60
                line = [*words, *small, "--batch-size", 8 if bench.tiny else 128, "--steps", steps, compiled]
                run = train(folder, f"{case} {compiled}", *line, *common)
                yield from _trained(bench, f"{case}, {compiled.removeprefix('--')}", run, ceiling, size)


def _trained(bench: Bench, case: str, run: dict, ceiling: float, size: int) -> Iterator[Row]:
    splits = [record["seconds_per_step"] for record in run["records"][len(run["records"]) // 2 :]]
    second = statistics.median(sum(split.values()) for split in splits)
    batch = run["config"]["trainer"]["batch_size"]
    config = {**run["config"], "data": {**run["config"]["data"], "image_size": size}}
    shapes, _ = training_shapes(TrainConfig.model_validate(config), device=bench.device.type)
    step = budget(shapes, images=batch, ranks=1)
    flops = step.encoder_flops + step.network_flops
    goal = GOALS["ddpm"] if case.startswith("ddpm") else ""
    share = flops / second / ceiling
    yield Row("gpu", case, flops / second / 1e12, ceiling / 1e12, "TFLOP/s", share, goal, "matrix product")
    shown = {"images/s": batch / second, "GiB": run["peak_memory_gib"]}
    yield from (Row("gpu", case, value, value, unit, 1.0, baseline_name="itself") for unit, value in shown.items())
    for part in splits[0]:
        took = statistics.median(split.get(part, 0.0) for split in splits)
        goal = GOALS["field"] if part == "field" else ""
        yield Row("gpu", f"{case}: {part}", took, second, "s", took / second, goal, "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, default=6.0, help="no training begins after them")
    given = parser.parse_args()
    bench = Bench(torch.device(given.device), given.tiny, time.monotonic() + 60 * given.minutes)
    found = list(rows(bench))
    if not given.tiny:
        write_results("gpu", found)
    Console(width=150).print(table(found))


if __name__ == "__main__":
    main()
