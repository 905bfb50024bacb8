"""How much memory opening a source of images, or reading a file, takes: each in turn in one process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PRELUDE = """
import json, sys
from driftkit.storage.files import read_tensors
from driftkit.datasets.sources import open_dataset
from driftkit.errors import DriftkitError

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

for reader, path in json.loads(sys.argv[1]):
    open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
    before, said = peak(), "read"
    try:
        {"images": open_dataset, "tensors": read_tensors}[reader](path)
    except DriftkitError as error:
        said = str(error)
    print(json.dumps([said, peak() - before]))
"""


def peaks(files: Sequence[tuple[str, Path]]) -> list[tuple[str, int]]:
    """What reading says (the DriftkitError), and by how many bytes it raised the peak of the process.

    Args:
        files: ("images" or "tensors", file).
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    words = json.dumps([(reader, str(path)) for reader, path in files])
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE, words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
