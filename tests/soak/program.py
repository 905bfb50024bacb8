"""The soak: train a tiny model for many steps in a process of its own, watch it, and judge what was seen."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.soak.slopes import Trend, trend
from tests.soak.watch import Sample, watch
from tests.tiny import TINY_MAE

DATA = ["--data", "shapes?image_size=8&count=256"]
UNET = ["--set", "model.base_channels=8", "--set", "model.channel_multipliers=[1,2]", "--set", "model.num_heads=2",
        "--set", "model.attention_resolutions=[]", "--set", "model.num_res_blocks=1"]  # fmt: skip
LOG_EVERY = 10
WARM_UP = 0.2  # share of the steps left out: allocators and caches fill
RSS_ALLOWED_MIB = 4.0
WHOLE = 0.5  # of a handle or a thread
PLAIN_LINES_S = 15.0  # a training writes a line at most this often where there is no terminal
LINE_BYTES = 400


@dataclass(frozen=True)
class Soak:
    """What was run and what came of it.

    Attributes:
        trends: of everything that is to stay flat.
        complaints: sentences; none where all is well.
    """

    objective: str
    steps: int
    exit_code: int
    seconds: float
    looks: int
    trends: tuple[Trend, ...]
    totals: dict[str, float]
    complaints: tuple[str, ...]


def soak(folder: Path, *, objective: str, steps: int, every_s: float, writes: int = 40) -> tuple[Soak, list[Sample]]:
    """Train for `steps` steps in `folder`, which must not exist, with `writes` checkpoints, grids and scores.

    Raises:
        RuntimeError: the judge of the scores could not be trained.
    """
    folder.mkdir(parents=True)
    often = steps // writes
    judge = folder / "judge"
    made = subprocess.run(
        driftkit("mae", judge, *TINY_MAE, "--steps", "20", "--sample-every", "0"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"the judge was not trained: {made.stderr.strip()}")
    more = TINY_MAE if objective == "mae" else UNET
    more = [*more, "--encoder", "pixel"] if objective == "drift" else more
    if objective != "mae":
        more = [*more, "--eval-every", str(often), "--set", "evaluation.num_images=64",
                "--set", f"evaluation.extractor=encoder:{judge}"]  # fmt: skip
    run, log = folder / "run", folder / "stderr.txt"
    command = driftkit(
        objective, run, *more, "--steps", str(steps), "--sample-every", str(often), "--checkpoint-every", str(often),
        "--set", f"trainer.log_every={LOG_EVERY}",
    )  # fmt: skip
    samples, code = watch(command, run, log, every_s=every_s)
    return judge_soak(objective, steps, run, log, samples, code, grids=steps // often), samples


def driftkit(objective: str, output: Path, *words: str) -> list[str]:
    """A training's command line."""
    return [sys.executable, "-m", "driftkit", "train", "--objective", objective, *DATA, *words, "--batch-size", "4",
            "--device", "cpu", "--output", str(output)]  # fmt: skip


def judge_soak(
    objective: str, steps: int, run: Path, log: Path, samples: Sequence[Sample], code: int, *, grids: int
) -> Soak:
    """The slopes, and what is wrong with what is left."""
    if code:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"])[-1]
        return Soak(objective, steps, code, 0.0, len(samples), (), {}, (f"the training ended with {code}: {last}",))
    trends = trends_of(samples)
    last, records = samples[-1], (run / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    left = sorted(str(p.relative_to(run)) for p in run.rglob(".*"))
    totals = {
        "checkpoints at once": max(s.checkpoints for s in samples),
        "grids": len(list((run / "samples").glob("*.png"))),
        "metric records": records,
        "metrics KiB": (run / "metrics.jsonl").stat().st_size / 1024,
        "bytes per record": (run / "metrics.jsonl").stat().st_size / records,
        "log KiB": log.stat().st_size / 1024,
    }
    complaints = [f"{t.name} grows by {t.growth:.3g} {t.unit} over the stretch" for t in trends if not t.flat]
    complaints += [f"left behind: {', '.join(left)}"] if left else []
    # The new checkpoint is there before the old one goes.
    complaints += ["more than 2 checkpoints at once"] if totals["checkpoints at once"] > 2 else []
    complaints += [f"{totals['grids']} grids, expected {grids}"] if totals["grids"] != grids else []
    most = (last.seconds / PLAIN_LINES_S + 10) * LINE_BYTES
    complaints += [f"{log.stat().st_size} bytes of log, expected at most {most:.0f}"] * (log.stat().st_size > most)
    return Soak(objective, steps, code, last.seconds, len(samples), trends, totals, tuple(complaints))


def warm(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The looks after warm-up."""
    return [s for s in samples if s.step >= WARM_UP * samples[-1].step]


def trends_of(samples: Sequence[Sample]) -> tuple[Trend, ...]:
    """What is to stay flat, after warm-up."""
    seen = warm(samples)
    steps = [s.step for s in seen]
    kept = [s.kept_mib for s in seen]
    per_record = [s.records_bytes * LOG_EVERY / s.step for s in seen]
    rows: list[tuple[str, str, list[float], float]] = [
        ("resident memory", "MiB", [s.rss_mib for s in seen], RSS_ALLOWED_MIB),
        ("anonymous memory", "MiB", [s.anonymous_mib for s in seen], RSS_ALLOWED_MIB),
        ("file handles", "", [s.handles for s in seen], WHOLE),
        ("threads", "", [s.threads for s in seen], WHOLE),
        ("disk but metrics and grids", "MiB", kept, 0.02 * sum(kept) / len(kept)),
        ("bytes per metric record", "B", per_record, 0.02 * sum(per_record) / len(per_record)),
    ]
    return tuple(trend(name, unit, steps, values, allowed=allowed) for name, unit, values, allowed in rows)


def write_results(result: Soak, samples: Sequence[Sample], folder: Path) -> Path:
    """The verdict and the series as FOLDER/OBJECTIVE.json, and a figure of them next to it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.objective}.json"
    path.write_text(json.dumps({**asdict(result), "samples": [asdict(s) for s in samples]}) + "\n", encoding="utf-8")
    if samples:
        draw(result, samples, folder / f"{result.objective}.png")
    return path


def draw(result: Soak, samples: Sequence[Sample], path: Path) -> None:
    """Six series over the steps, each with its line after warm-up."""
    from matplotlib.figure import Figure

    panels = {
        "resident memory": ("rss_mib", "MiB"), "anonymous memory": ("anonymous_mib", "MiB"),
        "file handles": ("handles", ""), "threads": ("threads", ""),
        "disk but metrics and grids": ("kept_mib", "MiB"), "metrics.jsonl": ("records_bytes", "B"),
    }  # fmt: skip
    lines = {t.name: t for t in result.trends}
    figure = Figure(figsize=(11, 6), layout="constrained")
    seen = warm(samples)
    middle = sum(s.step for s in seen) / len(seen)
    for axis, (name, (key, unit)) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        axis.plot([s.step for s in samples], [getattr(s, key) for s in samples], lw=0.8)
        if name in lines:
            ends = (seen[0].step, seen[-1].step)
            axis.plot(ends, [lines[name].mean + lines[name].slope / 1000 * (x - middle) for x in ends], lw=1.5)
            axis.set_title(f"{name}: {lines[name].slope:+.2g} {unit} per 1,000 steps", fontsize=9)
        else:
            axis.set_title(name, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("step")
    figure.suptitle(f"{result.objective}, {result.steps:,} steps", fontsize=10)
    figure.savefig(path, dpi=100)


def clean(folder: Path) -> None:
    """Remove what a soak trained."""
    shutil.rmtree(folder)
