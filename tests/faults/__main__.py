"""Kill driftkit's processes and look at what they leave: `python -m tests.faults --kills 70`."""

import os

# A pool of threads would not survive the fork; torch reads this when it loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.campaign import Campaign, Tally, write_tallies
from tests.faults.processes import preload
from tests.faults.targets import TARGETS


def table(tallies: list[Tally]) -> Table:
    shown = Table("target", "kills", "compared ends", "most steps lost", "moments", "problems")
    for tally in tallies:
        moments = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.kills.items()))
        shown.add_row(
            tally.target, str(tally.count), str(tally.ends), str(tally.most_lost), moments, "\n".join(tally.problems)
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=70, help="of all targets together (default 70)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--output", type=Path, default=Path("outputs/faults.json"), help="default outputs/faults.json")
    parser.add_argument("--only", metavar="NAME", help="targets whose names contain this")
    arguments = parser.parse_args()
    chosen = [t for t in TARGETS if arguments.only is None or arguments.only in t.name]
    if not chosen:
        parser.error(f"--only {arguments.only}: there are {', '.join(t.name for t in TARGETS)}")
    preload()
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(
            Path(folder) / "faults", seed=arguments.seed, tell=lambda line: print(line, file=sys.stderr, flush=True)
        )
        for target in chosen:
            tallies.append(campaign.kill(target, max(1, -(-arguments.kills // len(chosen)))))
            Console(stderr=True).print(*(f"{target.name}: {p}" for p in tallies[-1].problems), sep="\n", markup=False)
    Console(width=150).print(table(tallies))
    if arguments.only is None:
        write_tallies(arguments.output, tallies, arguments.seed)
    return int(any(tally.problems for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
