"""Decoding many images: few of them are in memory at a time, whatever they are read from."""

import importlib.util
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from driftkit.datasets import decoding
from driftkit.datasets.sources import open_dataset
from tests.hostile.memory import peaks
from tests.image_files import as_tar, as_zip, encoded

MIB = 2**20


@pytest.mark.parametrize("small_file", [0, 2**20])  # in threads, or not
def test_decoded_images_are_written_before_many_are_in_memory(small_file, tmp_path, monkeypatch):
    noise = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = as_zip(tmp_path / "x.zip", {f"{i}.png": noise for i in range(300)})  # 3.5 MiB of images
    open_dataset(str(path), image_size=8)  # what is loaded once
    monkeypatch.setattr(decoding, "SMALL_FILE", small_file)
    monkeypatch.setattr(decoding, "BYTES_AT_A_TIME", 2**16)
    monkeypatch.setattr(decoding, "MAX_WAITING_BYTES", 2**18)
    tracemalloc.start()
    pack = open_dataset(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pack) == 300
    assert peak < MIB


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc to read the peak of memory from")
def test_memory_of_an_import_does_not_grow_with_the_number_of_images(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (256, 256), (90, 0, 0)).save(stream, "PNG")
    files = []
    for count in (2, 200):  # the first ones load what is loaded once; the second ones hold 37.5 MiB of pixels each
        pixels = torch.zeros(count, 3, 256, 256, dtype=torch.uint8)
        as_tar(tmp_path / f"{count}.tar", {f"{i}.png": stream.getvalue() for i in range(count)})
        np.savez(tmp_path / f"{count}.npz", pixels.numpy())
        torch.save(pixels, tmp_path / f"{count}.pt")
        save_file({"images": pixels}, tmp_path / f"{count}.safetensors")
        if importlib.util.find_spec("pyarrow"):
            import pyarrow.parquet

            table = pyarrow.table({"image": [stream.getvalue()] * count})
            pyarrow.parquet.write_table(table, tmp_path / f"{count}.parquet")
        files.append(sorted(tmp_path.glob(f"{count}.*")))
    measured = peaks([("images", file) for file in files[0] + files[1]])[len(files[0]) :]
    for file, (said, grown) in zip(files[1], measured, strict=True):
        assert (said, grown < 15 * MIB) == ("read", True), file.name
