"""A training step against a plain loop, and what --micro-batch and --cache-features change in it.

`python -m tests.benchmarks step`. Every figure stands next to the plain step of its run; each training is a process
of its own, so that its peak memory is its own. The encoder is an untrained MAE, the images are generated: neither
changes the cost. DRIFTKIT_BENCH_DEVICE names another device than the one found.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from driftkit.methods.ddpm.schedule import linear_schedule
from driftkit.methods.drifting.samplers import generate_one_step
from driftkit.models.unet import UNet, UNetConfig
from tests.benchmarks.harness import Row, alternate

BATCH, MICRO_BATCH = 640, 32
PLAIN_BATCH, PLAIN_STEPS, SAMPLES = 16, 7, 64
DEVICE = os.environ.get("DRIFTKIT_BENCH_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")


def plain_images_per_second() -> float:
    """The loop one would write first: float32, eager, as torch lays tensors out, parameter by parameter."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(), image_size=32).to(DEVICE).train()
    average = UNet(UNetConfig(), image_size=32).to(DEVICE)
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, foreach=False)
    alpha_bar = linear_schedule(1000, 1e-4, 0.02).alpha_bar.float().to(DEVICE)
    images = torch.rand(PLAIN_BATCH, 3, 32, 32, device=DEVICE) * 2 - 1
    times = []
    for _ in range(PLAIN_STEPS):
        started = time.perf_counter()
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (PLAIN_BATCH,), device=DEVICE)
        share = alpha_bar[t][:, None, None, None]
        loss = F.mse_loss(network(share.sqrt() * images + (1 - share).sqrt() * noise, t), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0, foreach=False)
        optimizer.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.mul_(0.9999).add_(value, alpha=0.0001)
        loss.item()
        times.append(time.perf_counter() - started)
    return PLAIN_BATCH / statistics.median(times[1:])


def driftkit(folder: Path, *words: object) -> None:
    line = [sys.executable, "-m", "driftkit", *map(str, words)]
    environment = {**os.environ, "DRIFTKIT_CACHE": str(folder / "cache")}
    subprocess.run(line, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def train(folder: Path, name: str, *words: object) -> dict[str, Any]:
    """Train, and give the run's manifest with its records."""
    output = folder / name
    driftkit(folder, "train", *words, "--output", output, "--sample-every", 0, "--set", "trainer.log_every=1")
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {**json.loads((output / "manifest.json").read_text()), "records": records}


def seconds(run: dict[str, Any], part: str | None = None) -> float:
    """Median seconds per step after the first two, of one part or of all."""
    splits = [record["seconds_per_step"] for record in run["records"][2:]]
    return statistics.median(split.get(part, 0.0) if part else sum(split.values()) for split in splits)


def rows() -> Iterator[Row]:
    """The step of a 38 M DDPM, one-step generation, a large batch in parts, and features from the cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = ["--data", "shapes?image_size=32&count=2000", "--device", DEVICE]
        yield from _against_plain_loop(folder, data)
        yield _generation()
        mae = folder / "mae"
        driftkit(folder, "train", "--objective", "mae", "--preset", "cpu", "--steps", 0, *data, "--output", mae)
        common = ["--encoder", mae, "--preset", "cpu", *data]
        yield from _micro_batches(folder, common)
        yield from _cached_features(folder, common)


def _against_plain_loop(folder: Path, data: list[str]) -> Iterator[Row]:
    words = ["--objective", "ddpm", "--batch-size", PLAIN_BATCH, "--steps", PLAIN_STEPS, *data]
    run = train(folder, "ddpm", *words)
    ours = 1 / (seconds(run) / PLAIN_BATCH)
    plain = plain_images_per_second()
    yield Row("step", "DDPM, 38 M, batch 16", ours, plain, "images/s", ours / plain, ">= 1.9x", "plain loop")
    work = sum(seconds(run, part) for part in ("network", "optimizer"))
    whole = PLAIN_BATCH / statistics.median(record["images_per_second"] for record in run["records"][2:])
    yield Row(
        "step", "the same, all but network and optimizer", whole - work, whole, "s", 1 - work / whole, "<= 0.03", "step"
    )


def _generation() -> Row:
    torch.manual_seed(0)
    network = UNet(UNetConfig(), image_size=32).to(DEVICE).eval()
    ours = UNet(UNetConfig(), image_size=32).to(DEVICE, memory_format=torch.channels_last).eval()
    noise = torch.randn(SAMPLES, 3, 32, 32, device=DEVICE)
    layout = noise.contiguous(memory_format=torch.channels_last)

    def plain() -> None:
        with torch.no_grad():
            generate_one_step(network, noise).sum().item()

    def sampled() -> None:
        with torch.inference_mode():
            generate_one_step(ours, layout).sum().item()

    took = {name: SAMPLES / value for name, value in alternate({"ours": sampled, "plain": plain}, repeats=3).items()}
    ratio = took["ours"] / took["plain"]
    return Row(
        "step", "one-step generation, batch 64", took["ours"], took["plain"], "images/s", ratio, ">= 1.35x", "plain"
    )


def _micro_batches(folder: Path, common: list[object]) -> Iterator[Row]:
    large = [*common, "--batch-size", BATCH, "--steps", 2]
    whole = train(folder, "whole", *large)
    parts = train(folder, "parts", *large, "--micro-batch", MICRO_BATCH)
    for label, key, unit in (("peak memory", "peak_memory_gib", "GiB"), ("time", "train_seconds", "s")):
        case = f"batch {BATCH} in parts of {MICRO_BATCH}, {label}"
        yield Row("step", case, parts[key], whole[key], unit, parts[key] / whole[key], baseline_name="whole batch")
    losses = [run["records"][-1]["loss"] for run in (parts, whole)]
    yield Row("step", "the same, loss", *losses, "", losses[0] / losses[1], baseline_name="whole batch")


def _cached_features(folder: Path, common: list[object]) -> Iterator[Row]:
    small = [*common, "--batch-size", 64, "--steps", 12]
    plain = train(folder, "plain", *small)
    first = train(folder, "first", *small, "--cache-features")
    again = train(folder, "again", *small, "--cache-features")
    for part in ("encoder", None):
        one, other = seconds(again, part), seconds(plain, part)
        yield Row(
            "step", f"cached features, {part or 'whole step'}", one, other, "s", one / other, baseline_name="no cache"
        )
    # The loss is flat whatever the features are: what training follows is told by the size of the drift.
    norms = [[record["health"]["drift_norm"] for record in run["records"]] for run in (first, plain)]
    worst = max(abs(a / b - 1) for a, b in zip(*norms, strict=True))
    yield Row(
        "step", "cached features, largest change of the drift norm", worst, 0.0, "", worst, baseline_name="no cache"
    )
