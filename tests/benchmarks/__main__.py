"""All benchmarks, or those named: `python -m tests.benchmarks [NAME...]`. Results go to outputs/benchmarks."""

import argparse
import importlib

from rich.console import Console
from rich.table import Table

from tests.benchmarks.harness import Row, machine, write_results

# Every module here has `rows()`, which measures and yields `Row`s.
BENCHMARKS = ("field", "fid", "folder", "startup", "step")


def table(rows: list[Row]) -> Table:
    shown = Table(title=" · ".join(str(value) for value in machine().values() if value))
    for head in ("benchmark", "case", "value", "against", "", "ratio", "goal"):
        shown.add_column(head, justify="right" if head in ("value", "", "ratio") else "left")
    for r in rows:
        value, baseline = f"{r.value:.3g} {r.unit}", f"{r.baseline:.3g} {r.unit}"
        shown.add_row(r.benchmark, r.case, value, r.baseline_name, baseline, f"{r.ratio:.2f}", r.goal)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}; all of them if none")
    names = parser.parse_args().names or BENCHMARKS
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    everything = []
    for name in names:
        rows = list(importlib.import_module(f"tests.benchmarks.{name}").rows())
        write_results(name, rows)
        everything += rows
    Console(width=150).print(table(everything))


if __name__ == "__main__":
    main()
