"""Thousands of image files decoded in threads, a few at a time, and what becomes of those that are broken."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from driftkit.datasets.decode import BrokenImageError, decode_image
from driftkit.datasets.packs import Blocks, ImageStream
from driftkit.datasets.spec import Spec
from driftkit.errors import ArtifactError, UsageError, shortened
from driftkit.runtime.progress import progress

FILES_AT_A_TIME = 128
BYTES_AT_A_TIME = 4 * 2**20  # of files and of the images in them
MAX_WAITING_BYTES = 512 * 2**20  # the same, of all that is being decoded
SMALL_FILE = 8 * 2**10  # bytes, below which threads take longer than one alone: most of the work is Python's
SKIP_HINT = "replace them, or leave them out with `skip_broken` (?skip_broken=1 behind the name)"

Encoded = tuple[int, str, bytes]  # place in the pack, name, content of the file
Image = tuple[int, str, npt.NDArray[np.uint8]]  # place in the pack, name, uint8 [3, H, W]


@dataclass
class _Decoder:
    """Decodes files, and keeps in mind which are broken."""

    path: Path
    count: int
    image_size: int | None
    skip_broken: bool
    broken: dict[int, str] = field(default_factory=dict)  # name and reason by place

    def __call__(self, files: Iterable[Encoded]) -> list[Image]:
        """Those of the files that are whole images."""
        prefix = f"{self.path}/" if self.path.is_dir() else f"{self.path}: "
        images: list[Image] = []
        for place, name, data in files:
            try:
                images.append((place, name, decode_image(data, prefix + name, self.image_size)))
            except BrokenImageError as error:
                self.broken[place] = f"{name} ({error.reason})"
        return images

    def left_out(self) -> tuple[str, ...]:
        """A note on the broken files; refused where that was not asked for, or nothing is left."""
        if not self.broken:
            return ()
        shown = shortened([named for _, named in sorted(self.broken.items())], 5)
        all_broken = len(self.broken) == self.count
        if all_broken or not self.skip_broken:
            fix = "get them again" if all_broken else SKIP_HINT
            raise ArtifactError(
                f"{self.path}: {len(self.broken):,} of {self.count:,} images are broken: {shown}; {fix}"
            )
        return (f"left out {len(self.broken):,} broken image{'s' * (len(self.broken) != 1)}: {shown}",)


def decoded_stream(
    files: Iterator[Encoded], count: int, path: Path, image_size: int | None, *, skip_broken: bool
) -> ImageStream:
    """The images in files, decoded while the pack is written.

    Args:
        files: place in the pack, name for messages and content of each, in any order.
        count: number of files.
        path: what holds them.
        image_size: as `decode_image` has it.
        skip_broken: leave out what is no whole image; otherwise all are counted, then refused.
    """
    decoder = _Decoder(path, count, image_size, skip_broken)
    return ImageStream(count, _blocks(files, decoder), decoder.left_out)


def skips_broken(spec: Spec) -> bool:
    """What a spec says of broken images: `?skip_broken=1` leaves them out."""
    skip = spec.query.get("skip_broken", "0")
    if skip not in ("0", "1"):
        raise UsageError(f"{spec.text}: skip_broken is {skip}, expected 0 or 1")
    return skip == "1"


def _blocks(files: Iterator[Encoded], decoder: _Decoder) -> Blocks:
    with progress(f"importing {decoder.path.name}", decoder.count) as advance:
        found: list[Image] = []
        for file in files:
            found = decoder([file])
            advance(1)
            if found:
                break
        for first_place, first_name, first in found:
            yield first_place, first[None]
            for num_files, images in _batches_decoded(files, first.nbytes, decoder):
                for place, name, image in images:
                    _require_same_size(decoder.path, (first_name, first), (name, image))
                    yield place, image[None]
                advance(num_files)


def _batches_decoded(
    files: Iterator[Encoded], image_bytes: int, decoder: _Decoder
) -> Iterator[tuple[int, list[Image]]]:
    """Batches of files of which the images take so many bytes: their number and the images; large files in threads."""
    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    running: deque[tuple[Future[list[Image]], int, int]] = deque()
    waiting = 0  # bytes of what is in `running`
    try:
        for batch in _batches(files, image_bytes):
            num_bytes = sum(len(data) for _, _, data in batch)
            if num_bytes < SMALL_FILE * len(batch):
                yield len(batch), decoder(batch)
                continue
            num_bytes += image_bytes * len(batch)
            # A bounded queue: reading is faster than decoding, and the archive may be larger than the memory.
            while running and (len(running) > 2 * workers or waiting + num_bytes > MAX_WAITING_BYTES):
                done, num_files, size = running.popleft()
                waiting -= size
                yield num_files, done.result()
            waiting += num_bytes
            running.append((pool.submit(decoder, batch), len(batch), num_bytes))
        while running:
            done, num_files, _ = running.popleft()
            yield num_files, done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(files: Iterator[Encoded], image_bytes: int) -> Iterator[list[Encoded]]:
    batch: list[Encoded] = []
    size = 0
    for file in files:
        batch.append(file)
        size += len(file[2]) + image_bytes
        if len(batch) >= FILES_AT_A_TIME or size >= BYTES_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _require_same_size(path: Path, *images: tuple[str, npt.NDArray[np.uint8]]) -> None:
    (first_name, first), (name, image) = images
    if image.shape != first.shape:
        (_, height, width), (_, other_height, other_width) = first.shape, image.shape
        smallest = min(height, width, other_height, other_width)
        side = next((smallest // step * step for step in (16, 8) if smallest >= step), smallest)  # networks halve it
        raise ArtifactError(
            f"{path}: images differ in size, {first_name} is {width}x{height} px and {name} is "
            f"{other_width}x{other_height}; resize them to one size with `image_size`, for example {side}, or by "
            f"driftkit data {path} --image-size {side} --output NEW.safetensors"
        )
