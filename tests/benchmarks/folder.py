"""Importing a folder of small PNGs against Pillow alone on the same files: `python -m tests.benchmarks folder`."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from driftkit.datasets.sources import open_dataset
from tests.benchmarks.harness import Row, alternate

COUNT, CLASSES, SIDE = 50_000, 10, 32


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        photos, packs = Path(place, "photos"), Path(place, "packs")
        paths = [photos / f"class{i % CLASSES}" / f"{i}.png" for i in range(COUNT)]
        draw = np.random.default_rng(0)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)

        def imported() -> None:
            shutil.rmtree(packs, ignore_errors=True)
            assert len(open_dataset(str(photos), data_dir=packs)) == COUNT

        def decoded() -> None:
            images = np.empty((COUNT, SIDE, SIDE, 3), np.uint8)
            for i, path in enumerate(paths):
                with Image.open(path) as image:
                    images[i] = np.asarray(image.convert("RGB"))

        took = alternate({"import": imported, "decode": decoded}, repeats=1)
    case = f"{COUNT:,} PNGs of {SIDE}x{SIDE} px"
    ratio = took["import"] / took["decode"]
    yield Row("folder", case, took["import"], took["decode"], "s", ratio, "<= 1.3x", "Pillow alone")
