"""Images in a folder, an archive or shards as a source, and how thousands of files are decoded at a time."""

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from driftkit.datasets.arrangement import SPLITS, arrange, suffix_of
from driftkit.datasets.containers import ARCHIVE_SUFFIXES, Container, listed
from driftkit.datasets.decode import BrokenImageError, decode_image, require_decoders, require_memory
from driftkit.datasets.packs import RawImages
from driftkit.datasets.shards import RANGE, is_shards, open_files
from driftkit.datasets.spec import Request, SourceKind
from driftkit.errors import ArtifactError, UsageError
from driftkit.runtime.progress import progress

FILES_AT_A_TIME, BYTES_AT_A_TIME = 128, 4 * 2**20
MAX_WAITING_BYTES = 512 * 2**20
SMALL_FILE = 8 * 2**10  # bytes, below which threads take longer than one alone: most of the work is Python's
SKIP_HINT = "replace them, or leave them out with `skip_broken` (?skip_broken=1 behind the name)"


@dataclass(frozen=True)
class FolderSource:
    """A folder, an archive or shards as a source of images."""

    path: Path
    spec: str
    split: str | None = None
    image_size: int | None = None
    class_level: int | None = None  # as `arrange` has it
    skip_broken: bool = False  # leave out what is no whole image instead of refusing it

    @cached_property
    def container(self) -> Container:
        return open_files(self.path)

    @cached_property
    def kind(self) -> str:
        if is_shards(self.path):
            return "shards"
        return "folder" if self.path.is_dir() else "archive"

    @property
    def label(self) -> str:
        path = Path(os.path.abspath(self.path))
        name = re.sub(rf"[-_.]?{RANGE.pattern}", "", path.name)
        for suffix in ARCHIVE_SUFFIXES:
            if not path.is_dir() and name.lower().endswith(suffix):
                name = name[: -len(suffix)]
                break
        parts = [path.parent.name if not name or name.lower() in SPLITS else "", name, self.split or ""]
        return "-".join(part for part in parts if part)

    @property
    def name(self) -> str:
        return self.label + (f"-{self.image_size}px" if self.image_size else "")

    def recorded_options(self) -> dict[str, Any]:
        options = {"split": self.split, "image_size": self.image_size, "class_level": self.class_level}
        chosen = {key: value for key, value in options.items() if value is not None}
        return {**chosen, "skip_broken": True} if self.skip_broken else chosen

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return self.container.digest()

    def read(self) -> RawImages:
        files = arrange(self.container, self.split, self.class_level)
        require_decoders(map(suffix_of, files.names))
        images, broken = _decode(self.container, files.names, self.image_size)
        labels, notes = torch.tensor(files.labels), (*files.notes, *self.container.notes())
        if broken:
            shown = listed([f"{files.names[i]} ({reason})" for i, reason in sorted(broken.items())])
            all_broken = len(broken) == len(files.names)
            if all_broken or not self.skip_broken:
                fix = "get them again" if all_broken else SKIP_HINT
                raise ArtifactError(
                    f"{self.path}: {len(broken):,} of {len(files.names):,} images are broken: {shown}; {fix}"
                )
            kept = [i for i in range(len(files.names)) if i not in broken]
            images, labels = _moved_together(images, kept), labels[kept]
            notes = (*notes, f"left out {len(broken):,} broken images: {shown}")
        return RawImages(torch.from_numpy(images), labels, files.classes, notes)


def _open(request: Request) -> FolderSource:
    spec = request.spec
    if (spec.path / "manifest.json").is_file() and (spec.path / "checkpoints").is_dir():
        raise UsageError(
            f"{spec.text}: is a run, whose pictures are grids; name images, or what driftkit sample {spec.text} makes"
        )
    spec.require_keys("split", "class_level", "skip_broken")
    level, skip = spec.query.get("class_level"), spec.query.get("skip_broken", "0")
    if level is not None and not re.fullmatch(r"\d{1,3}", level, re.ASCII):
        raise UsageError(f"{spec.text}: class_level is {level}, expected 0 for no classes or the level of a folder")
    if skip not in ("0", "1"):
        raise UsageError(f"{spec.text}: skip_broken is {skip}, expected 0 or 1")
    source = FolderSource(
        spec.path, spec.text, spec.query.get("split"), request.image_size,
        class_level=None if level is None else int(level), skip_broken=skip == "1",
    )  # fmt: skip
    open_files(spec.path)
    return source


FOLDER_KIND = SourceKind("a folder of images", lambda spec: spec.path.is_dir(), _open)
ARCHIVE_KIND = SourceKind(
    "a .zip, .tar or .tar.gz of images",
    lambda spec: spec.target.lower().endswith(ARCHIVE_SUFFIXES) and spec.path.exists(),
    _open,
)
SHARDS_KIND = SourceKind("shards (name-{000..007}.tar)", lambda spec: is_shards(spec.path), _open)


def _decode(
    container: Container, names: Sequence[str], image_size: int | None
) -> tuple[npt.NDArray[np.uint8], dict[int, str]]:
    """Decode all files, large ones in threads.

    Returns:
        uint8 [N, 3, H, W] in the order of `names`, and what is wrong with those that are broken, by their place in
        it. What stands at their places is anything; there are no images at all where all are broken.
    """
    slots = {name: i for i, name in enumerate(names)}
    place = f"{container.path}/" if container.path.is_dir() else f"{container.path}: "
    broken: dict[int, str] = {}

    def decoded(name: str, data: bytes) -> npt.NDArray[np.uint8] | None:
        try:
            return decode_image(data, place + name, image_size)
        except BrokenImageError as error:
            broken[slots[name]] = error.reason
            return None

    files = container.contents(slots)
    whole = ((name, image) for name, data in files if (image := decoded(name, data)) is not None)
    first_name, first = next(whole, ("", np.empty((0, 0, 0), np.uint8)))
    _, height, width = first.shape
    require_memory(container.path, len(names), height, width)
    images = np.empty((len(names), *first.shape), dtype=np.uint8)
    if first_name:
        images[slots[first_name]] = first

    def work(batch: list[tuple[str, bytes]]) -> int:
        for name, data in batch:
            image = decoded(name, data)
            if image is None:
                continue
            if image.shape != first.shape:
                _, other_height, other_width = image.shape
                side = min(height, width, other_height, other_width)
                raise ArtifactError(
                    f"{container.path}: images differ in size, {first_name} is {width}x{height} px and {name} is "
                    f"{other_width}x{other_height}; resize them to one size with `image_size`, for example {side}"
                )
            images[slots[name]] = image
        return len(batch)

    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    try:
        with progress(f"importing {container.path.name}", len(names)) as advance:
            advance(len(broken) + bool(first_name))
            running: deque[tuple[Future[int], int]] = deque()
            waiting = 0
            for batch in _batches(files):
                if _size(batch) < SMALL_FILE * len(batch):
                    advance(work(batch))
                    continue
                waiting += _size(batch)
                # A bounded queue: reading is faster than decoding, and the archive may be larger than the memory.
                while running and (len(running) > 2 * workers or waiting > MAX_WAITING_BYTES):
                    done, size = running.popleft()
                    waiting -= size
                    advance(done.result())
                running.append((pool.submit(work, batch), _size(batch)))
            for done, _ in running:
                advance(done.result())
    finally:
        pool.shutdown(cancel_futures=True)
    return images, broken


def _moved_together(images: npt.NDArray[np.uint8], kept: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The images at those ascending places, moved within the memory that all of them have."""
    for to, at in enumerate(kept):
        if to != at:
            images[to] = images[at]
    return images[: len(kept)]


def _batches(files: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for name, data in files:
        batch.append((name, data))
        size += len(data)
        if len(batch) >= FILES_AT_A_TIME or size >= BYTES_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(batch: list[tuple[str, bytes]]) -> int:
    return sum(len(data) for _, data in batch)
