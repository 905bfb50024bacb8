"""What --micro-batch and --cache-features change in a training step: `python -m tests.benchmarks.step [--device cuda]`.

Every figure stands beside the plain step of the same run; each training is a process of its own, so that its peak
memory is its own. The encoder is an untrained MAE, the images are generated: neither changes the cost.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BATCH, MICRO_BATCH = 640, 32


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
    """Seconds per step after the first two, of one part or of all."""
    splits = [record["seconds_per_step"] for record in run["records"][2:]]
    return sum(split.get(part, 0.0) if part else sum(split.values()) for split in splits) / len(splits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    device = parser.parse_args().device
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = ["--data", "shapes?image_size=32&count=2000", "--device", device]
        driftkit(
            folder, "train", "--objective", "mae", "--preset", "cpu", "--steps", 0, *data, "--output", folder / "mae"
        )
        common = ["--encoder", folder / "mae", "--preset", "cpu", *data]

        large = [*common, "--batch-size", BATCH, "--steps", 2]
        whole = train(folder, "whole", *large)
        parts = train(folder, "parts", *large, "--micro-batch", MICRO_BATCH)
        print(f"batch {BATCH}, micro-batch {MICRO_BATCH}, against the plain step:")
        for label, key in (("peak memory", "peak_memory_gib"), ("time", "train_seconds")):
            print(f"  {label:<12} {parts[key]:8.2f}  {whole[key]:8.2f}  ratio {parts[key] / whole[key]:.3f}")
        losses = [run["records"][-1]["loss"] for run in (parts, whole)]
        print(f"  loss         {losses[0]:8.4f}  {losses[1]:8.4f}  ratio {losses[0] / losses[1]:.6f}")

        small = [*common, "--batch-size", 64, "--steps", 12]
        plain = train(folder, "plain", *small)
        first = train(folder, "first", *small, "--cache-features")
        again = train(folder, "again", *small, "--cache-features")
        print("batch 64 with cached features, against the plain step:")
        for part in ("data", "encoder", "generator", "field", None):
            one, other = seconds(again, part), seconds(plain, part)
            print(f"  {part or 'whole step':<12} {one:8.4f}  {other:8.4f}  ratio {one / max(other, 1e-9):.3f}")
        # The loss is flat whatever the features are: what training follows is told by the sizes of drift and gradient.
        for name, values in {
            "loss": [record["loss"] for run in (first, plain) for record in run["records"]],
            "drift norm": [record["health"]["drift_norm"] for run in (first, plain) for record in run["records"]],
            "gradient norm": [record["health"]["gradient_norm"] for run in (first, plain) for record in run["records"]],
        }.items():
            half = len(values) // 2
            worst = max(abs(a / b - 1) for a, b in zip(values[:half], values[half:], strict=True))
            print(f"  largest relative difference of the {name} over {half} steps: {worst:.5f}")


if __name__ == "__main__":
    main()
