"""Does the probe rank encoders as training does? `python -m tests.benchmarks.encoder_study outputs/encoder-study`.

Reads what `pipelines/encoder-study.toml` left: the score of every probe, and the Fréchet distance of the generator that
was trained with the same encoder. Prints them side by side, and how well the orders agree.
"""

import argparse
import json
from pathlib import Path
from typing import Any


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
    document = json.loads(probe.read_text())
    (path,) = sorted((folder / probe.parent.name / "evaluations").glob("*.json"))
    evaluation = json.loads(path.read_text())
    return {
        "name": probe.parent.name,
        "score": document["score"],
        "verdict": document["verdict"],
        "fid": evaluation["metrics"]["fid"],
        "measure": evaluation["name"],
        "recall": evaluation["metrics"]["recall"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows = [row(folder, path) for path in sorted((folder / "probes").glob("*/probe.json"))]
    rows.sort(key=lambda r: -r["score"])
    print(
        f"| encoder and features | probe | verdict | {rows[0]['measure']} | recall |\n| --- | --- | --- | --- | --- |"
    )
    for r in rows:
        print(f"| {r['name']} | {r['score']:.3f} | {r['verdict']} | {r['fid']:.2f} | {r['recall']:.2f} |")
    agreement = correlation(ranks([r["score"] for r in rows]), ranks([-r["fid"] for r in rows]))
    print(f"\nSpearman's rank correlation of score and -{rows[0]['measure']}: {agreement:.2f} over {len(rows)}")


if __name__ == "__main__":
    main()
