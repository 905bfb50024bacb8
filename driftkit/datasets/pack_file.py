"""The safetensors file of a pack, written and hashed a piece at a time.

By plain reads and writes: the pages of a mapped file that were looked at count as memory of the process.
"""

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

BYTES_AT_A_TIME = 2**18


class PackFile:
    """A new file for at most `count` images, which come in any order; the header is written when all are there.

    What it holds in the end is byte for byte what safetensors writes of `labels` and `images`.

    Attributes:
        shape: [3, H, W] of an image; empty until the first one came.
    """

    def __init__(self, path: Path, count: int):
        self.shape: tuple[int, ...] = ()
        self._came = np.zeros(count, dtype=bool)
        self._file = path.open("w+b", buffering=BYTES_AT_A_TIME)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, place: int, images: npt.NDArray[np.uint8]) -> None:
        """Write images, [n, 3, H, W], to a place and those behind it.

        Raises:
            ValueError: they do not fit there, or are no such images.
        """
        count, end = len(self._came), place + len(images)
        self.shape = self.shape or images.shape[1:]
        if images.dtype != np.uint8 or images.shape[1:] != self.shape or not 0 <= place <= end <= count:
            expected = f"uint8 {list(self.shape)} in places 0 to {count}"
            raise ValueError(f"images are {images.dtype} {list(images.shape)} from place {place}, expected {expected}")
        at = self._first + place * self._image_bytes
        if self._file.tell() != at:  # a seek ends what is collected to be written at once
            self._file.seek(at)
        self._file.write(np.ascontiguousarray(images).data)
        self._came[place:end] = True

    def places(self) -> npt.NDArray[np.intp]:
        """Those to which images came, ascending."""
        return np.flatnonzero(self._came)

    def finish(self, places: npt.NDArray[np.intp], labels: npt.NDArray[np.int64]) -> str:
        """Keep the images at those ascending places, [N], with their labels; returns the sha256 of the content."""
        before, start, size = self._first, self._start(len(places)), self._image_bytes
        for i, place in enumerate(places.tolist()):
            at, to = before + place * size, start + i * size
            if at != to:  # `to` is the smaller one, and what lay there is kept elsewhere or not at all
                self._file.seek(at)
                image = self._file.read(size)
                self._file.seek(to)
                self._file.write(image)
        self._file.truncate(start + len(places) * size)
        self._file.seek(start - 8 * len(places))
        self._file.write(labels.astype("<i8").data)
        self._write_header(len(places), "0" * 64)
        sha256 = _content_sha256(self._file)
        self._write_header(len(places), sha256)
        return sha256

    @cached_property
    def _image_bytes(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def _first(self) -> int:
        """Where the image of the first place begins while images come."""
        return self._start(len(self._came))

    def _start(self, count: int) -> int:
        """Where the first of so many images begins."""
        return len(self._header(count, "0" * 64)) + 8 * count

    def _write_header(self, count: int, sha256: str) -> None:
        self._file.seek(0)
        self._file.write(self._header(count, sha256))
        self._file.flush()

    def _header(self, count: int, sha256: str) -> bytes:
        labels, images = 8 * count, count * self._image_bytes
        document: dict[str, Any] = {
            "__metadata__": {"driftkit": "pack", "sha256": sha256},
            "labels": {"dtype": "I64", "shape": [count], "data_offsets": [0, labels]},
            "images": {"dtype": "U8", "shape": [count, *self.shape], "data_offsets": [labels, labels + images]},
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the numbers behind it are aligned
        return len(text).to_bytes(8, "little") + text


def stored_sha256(path: Path) -> str:
    """Hex sha256 over the bytes of the images, then of the labels, in the file of a pack that can be opened."""
    with path.open("rb") as file:
        return _content_sha256(file)


def _content_sha256(file: IO[bytes]) -> str:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    digest = hashlib.sha256()
    for name in ("images", "labels"):
        first, last = header[name]["data_offsets"]
        file.seek(8 + length + first)
        left = last - first
        while left and (piece := file.read(min(left, BYTES_AT_A_TIME))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()
