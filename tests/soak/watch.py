"""What a training process and its run folder take, read from outside while it trains."""

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
TAIL_BYTES = 65536  # of metrics.jsonl, in which the last whole record stands


@dataclass(frozen=True)
class Sample:
    """One look at a training.

    Attributes:
        seconds: since the process was started.
        step: of the last metric record.
        rss_mib: resident memory; anonymous_mib: without mapped files.
        handles, threads: open file descriptors and threads of the process.
        kept_mib: the run folder without metrics and grids: checkpoints, manifest, what is being written.
        grids, records_bytes, log_bytes: PNG files in samples/, sizes of metrics.jsonl and of what went to stderr.
        checkpoints: folders in checkpoints/ under a final name.
    """

    seconds: float
    step: int
    rss_mib: float
    anonymous_mib: float
    handles: int
    threads: int
    kept_mib: float
    grids: int
    records_bytes: int
    log_bytes: int
    checkpoints: int


def watch(command: Sequence[str], run: Path, log: Path, *, every_s: float) -> tuple[list[Sample], int]:
    """Start a training and look at it until it ends.

    Args:
        command: the command line; what it says on stderr goes into `log`.
        run: the folder it writes.
        every_s: seconds between looks.

    Returns:
        The looks from the first metric record on, and the exit status.
    """
    samples: list[Sample] = []
    started = time.monotonic()
    with open(log, "wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                found = look(process.pid, run, log, seconds=time.monotonic() - started)
                if found:
                    samples.append(found)
                time.sleep(every_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return samples, process.returncode


def look(pid: int, run: Path, log: Path, *, seconds: float) -> Sample | None:
    """One sample; None while there is no metric record yet, or where the process has just ended."""
    metrics = run / "metrics.jsonl"
    step = last_step(metrics)
    if step is None:
        return None
    try:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        )
        handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        memory = {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")}
    except (OSError, KeyError):  # a process that has ended has no memory
        return None
    grids = list((run / "samples").glob("*.png"))
    apart = {metrics, *grids}
    return Sample(
        seconds=round(seconds, 2),
        step=step,
        rss_mib=memory["VmRSS"],
        anonymous_mib=memory["RssAnon"],
        handles=handles,
        threads=int(fields["Threads"]),
        kept_mib=sum(_size(path) for path in run.rglob("*") if path not in apart) / MIB,
        grids=len(grids),
        records_bytes=_size(metrics),
        log_bytes=_size(log),
        checkpoints=sum(not path.name.startswith(".") for path in (run / "checkpoints").glob("*")),
    )


def last_step(metrics: Path) -> int | None:
    """The step of the last whole record; None where there is none."""
    if not metrics.is_file():
        return None
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else None


def _size(path: Path) -> int:
    """Bytes of a file; 0 for folders, and for files that are renamed or removed meanwhile."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
