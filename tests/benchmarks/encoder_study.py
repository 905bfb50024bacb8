"""Does the probe rank encoders as training does? `python -m tests.benchmarks.encoder_study outputs/encoder-study`.

Reads what `pipelines/encoder-study.toml` left: what every probe measured, scored as the probe scores today, and the
Fréchet distances of the generator that was trained with the same encoder. Prints them side by side, and per evaluator
how well the orders agree, over the runs that the evaluator is independent of.
"""

import argparse
from pathlib import Path
from typing import Any

from driftkit.metrics.registry import REQUIRED
from driftkit.probing.probe_record import ProbeRecord
from driftkit.probing.verdict import score
from driftkit.scoring.evaluation_record import EvaluationRecord, read_evaluations
from driftkit.storage.run_folder import Run


def ranks(values: list[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their places."""
    order = sorted(values)
    return [sum(place for place, v in enumerate(order, start=1) if v == value) / order.count(value) for value in values]


def correlation(a: list[float], b: list[float]) -> float:
    """Pearson's, between two lists of numbers that are not all equal."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return product / (sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)) ** 0.5


def row(folder: Path, probe: Path) -> dict[str, Any]:
    record = ProbeRecord.read(probe)
    assert record.measurement is not None
    purity, chance = record.measurement.purity, record.chance_purity
    assert purity is not None
    assert chance is not None
    evaluations, _ = read_evaluations(Run(folder / probe.parent.name))
    return {
        "name": probe.parent.name,
        "score": score(record.measurement.pixel_alignment, (purity - chance) / (1 - chance)),
        "evaluations": {evaluation.extractor.name: evaluation for evaluation in evaluations},
    }


def cell(evaluation: EvaluationRecord | None) -> str:
    """Distance and recall; in brackets where the evaluator is not independent of the run."""
    if evaluation is None:
        return "–"
    text = f"{evaluation.metrics[REQUIRED]:.1f} · {evaluation.metrics['recall']:.2f}"
    degree = evaluation.kinship.degree if evaluation.kinship else "related"
    return text if degree == "independent" else f"({text}: {degree})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows = [row(folder, path) for path in sorted((folder / "probes").glob("*/probe.json"))]
    rows.sort(key=lambda r: -r["score"])
    names = sorted({name for r in rows for name in r["evaluations"]})
    print(f"| encoder and features | probe | {' | '.join(f'{n}: distance · recall' for n in names)} |")
    print("| --- " * (2 + len(names)) + "|")
    for r in rows:
        cells = " | ".join(cell(r["evaluations"].get(name)) for name in names)
        print(f"| {r['name']} | {r['score']:.3f} | {cells} |")
    print()
    for name in names:
        scored = [(r["score"], r["evaluations"][name]) for r in rows if name in r["evaluations"]]
        independent = [(value, e.metrics[REQUIRED]) for value, e in scored if e.kinship and e.kinship.counts]
        if len(independent) > 2:
            agreement = correlation(ranks([value for value, _ in independent]), ranks([-fid for _, fid in independent]))
            print(
                f"Spearman's rank correlation of probe and distance by {name}: {agreement:.2f} over {len(independent)}"
            )


if __name__ == "__main__":
    main()
