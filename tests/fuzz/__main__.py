"""Fuzzing guided by coverage: `just fuzz [--seconds N] [TARGET...]`. What is found is written down and told.

Every target gets a process of its own and an equal share of the time. An input is either bytes for a reader, or, which
gets further, edits of a valid file. Needs atheris (`uv sync --group fuzz`).
"""

import argparse
import multiprocessing
import sys
from pathlib import Path

from tests.fuzz.engine import fuzz_target
from tests.fuzz.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all by default")
    parser.add_argument("--seconds", type=int, default=3600, help="in all; 3600 by default")
    parser.add_argument("--output", default="outputs/fuzz", help="folder of findings and corpus")
    chosen = parser.parse_args()
    names = chosen.targets or list(TARGETS)
    output = Path(chosen.output).resolve()
    (output / "findings").mkdir(parents=True, exist_ok=True)
    share = max(1, chosen.seconds // len(names))
    context = multiprocessing.get_context("spawn")  # a new process for each, since libFuzzer ends the one it ran in
    for name in names:
        words = (name, share, str(output / "findings"), str(output / "corpus"))
        process = context.Process(target=fuzz_target, args=words)
        process.start()
        process.join(share + 120)
        if process.is_alive():
            process.kill()
            sys.stderr.write(f"{name}: had to be killed\n")
        record = output / "findings" / f"{name}.json"
        sys.stderr.write(f"{record.read_text() if record.exists() else name + ': less than 500 inputs'}\n")
    found = sorted(p for p in (output / "findings").glob("*/*.txt"))
    for path in found:
        sys.stdout.write(f"{path.parent.name}: {path.read_text().splitlines()[0]}\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
