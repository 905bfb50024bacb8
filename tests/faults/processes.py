"""Starting driftkit's processes by the dozen: forked from one that has imported torch already, each really killed."""

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.points import Event, Kill, read_log, watch

PRELOADED = (
    "torch",
    "matplotlib.backends.backend_agg",
    "driftkit.cli.app",
    "driftkit.stages.train",
    "driftkit.training.sampling",
    "driftkit.scoring.evaluator",
    "driftkit.stages.compare",
    "driftkit.stages.run",
    "driftkit.stages.data",
    "driftkit.stages.verify",
    "driftkit.stages.export",
    "timm",
)
SLOWEST_S = 120.0


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; -9 where it was killed.
        events: the changes to files that it made; a killed one's last was not made, or by half.
        printed: its stdout and stderr.
    """

    code: int
    seconds: float
    events: list[Event]
    stdout: str
    stderr: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def preload() -> None:
    """Import what the commands need. Nothing may run in torch before a fork: a fork has none of its threads."""
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)


def run_driftkit(words: Sequence[str], sandbox: Path, kill: Kill | None = None) -> Ended:
    """Run one command line in a process of its own, in the sandbox as its folder, and await its end."""

    def work() -> int:
        from driftkit.cli.app import main

        sys.argv = ["driftkit", *words]
        watch(sandbox.resolve(), log, kill)
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    log = sandbox.with_name(f"{sandbox.name}.log")
    log.write_text("")
    code, seconds = _forked(work, sandbox, kill.seconds if kill else None)
    return Ended(code, seconds, read_log(log), *_printed(sandbox))


def run_fresh(words: Sequence[str], sandbox: Path, seconds: float | None) -> Ended:
    """The same with an interpreter of its own, killed after some seconds, most of which are imports."""
    started = time.monotonic()
    with _output(sandbox, "stdout").open("wb") as stdout, _output(sandbox, "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "driftkit", *words], cwd=sandbox, stdout=stdout, stderr=stderr,
            env={**os.environ, **_environment(), "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds or SLOWEST_S)
        process.kill()
        code = process.wait()
    return Ended(code, time.monotonic() - started, [], *_printed(sandbox))


def ask(question: Callable[[], Any], sandbox: Path) -> Any:
    """What a function gives, as JSON data, in a process of its own; this one stays without threads and mappings."""

    def work() -> int:
        sys.stdout.write(json.dumps(question()))
        return 0

    code, _ = _forked(work, sandbox, None)
    stdout, stderr = _printed(sandbox)
    if code:
        raise RuntimeError(f"asking in {sandbox} ended with code {code}: {stderr}")
    return json.loads(stdout)


def _forked(work: Callable[[], int], sandbox: Path, kill_after: float | None) -> tuple[int, float]:
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads before a fork: something worked in this process"
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_child(work, sandbox)
    try:
        code = _await(pid, started, kill_after)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return code, time.monotonic() - started


def _await(pid: int, started: float, kill_after: float | None) -> int:
    limit = started + (SLOWEST_S if kill_after is None else kill_after)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= limit:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if kill_after is None:
                raise TimeoutError(f"a process was not done after {SLOWEST_S:.0f} s")
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)


def _be_child(work: Callable[[], int], sandbox: Path) -> None:
    code = 1
    try:
        os.chdir(sandbox)
        os.environ.update(_environment())
        for number, name in ((1, "stdout"), (2, "stderr")):
            descriptor = os.open(_output(sandbox, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        random.seed()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _environment() -> dict[str, str]:
    return {"DRIFTKIT_CACHE": "cache", "DRIFTKIT_DATA_DIR": "data", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _output(sandbox: Path, name: str) -> Path:
    return sandbox.with_name(f"{sandbox.name}.{name}").absolute()


def _printed(sandbox: Path) -> tuple[str, str]:
    stdout, stderr = (_output(sandbox, n).read_text(errors="replace") for n in ("stdout", "stderr"))
    return stdout, stderr
