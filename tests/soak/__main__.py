"""`python -m tests.soak --steps 20000`: prints slopes, writes outputs/soak/OBJECTIVE.json and .png; 1 if not flat."""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.soak.program import Soak, clean, soak, write_results

RESULTS = Path("outputs/soak")


def table(result: Soak) -> Table:
    title = f"{result.objective}: {result.steps:,} steps in {result.seconds:.0f} s, {result.looks} looks"
    shown = Table("", "mean", "per 1,000 steps", "growth", "allowed", "verdict", title=title, title_justify="left")
    for t in result.trends:
        shown.add_row(
            t.name, f"{t.mean:.4g} {t.unit}", f"{t.slope:+.3g} ± {t.error:.2g}", f"{t.growth:+.3g}", f"{t.allowed:.3g}",
            "flat" if t.flat else "GROWS",
        )  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="of the training")
    parser.add_argument("--objective", choices=("drift", "ddpm", "mae"), default="drift")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between looks")
    parser.add_argument("--output", type=Path, help="folder to train in, kept; else a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON and the figure")
    asked = parser.parse_args()
    folder = asked.output or Path(tempfile.mkdtemp(prefix="driftkit-soak-")) / "soak"
    result, samples = soak(folder, objective=asked.objective, steps=asked.steps, every_s=asked.every)
    console = Console(width=120, highlight=False)
    console.print(table(result))
    console.print(", ".join(f"{name} {value:.4g}" for name, value in result.totals.items()))
    console.print(f"results: {write_results(result, samples, asked.results)}")
    for complaint in result.complaints:
        console.print(f"not well: {complaint}")
    if asked.output is None and not result.complaints:
        clean(folder.parent)
    sys.exit(1 if result.complaints else 0)


if __name__ == "__main__":
    main()
