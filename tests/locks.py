"""Another process that holds a lock, without importing torch."""

import contextlib
import subprocess
import sys

HOLD = """
import sys, time
from pathlib import Path
from driftkit.storage.lock import locked_file, locked_folder
with (locked_folder if sys.argv[1] == "folder" else locked_file)(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def another_process(kind, path):
    """A process that holds a "folder" or a "file" until it is told to end."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.communicate("\n")
