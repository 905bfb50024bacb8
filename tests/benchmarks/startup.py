"""How long `driftkit train --help` takes, against what it cannot do without: `python -m tests.benchmarks startup`."""

import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.harness import Row, alternate


def rows() -> Iterator[Row]:
    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], capture_output=True, check=True)

    took = alternate(
        {
            "help": lambda: run("-m", "driftkit", "train", "--help"),
            "typer": lambda: run("-c", "import typer, rich.console, rich.table"),
        }
    )
    ratio = took["help"] / took["typer"]
    yield Row("startup", "train --help", took["help"], took["typer"], "s", ratio, "", "import typer, rich")
