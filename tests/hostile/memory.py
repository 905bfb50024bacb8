"""How much memory a few lines take beyond their imports, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

PRELUDE = """
import resource, sys
from driftkit.errors import DriftkitError
import driftkit.artifacts.run, driftkit.datasets.sources, driftkit.encoders.weights, driftkit.stages.sample
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
before = peak()
try:
    exec(compile(sys.argv[1], "lines", "exec"))
except DriftkitError as error:
    print(type(error).__name__, error)
print(peak() - before)
"""


def peak_of(lines: str) -> tuple[str, int]:
    """What they say (the DriftkitError they raise), and by how many bytes the peak of the process rose."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE, lines], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said, _, peak = done.stdout.strip().rpartition("\n")
    return said, int(peak)
