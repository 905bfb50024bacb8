"""Images in a folder or an archive: which class each belongs to, and how thousands are decoded at a time."""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from driftkit.datasets.containers import ARCHIVE_SUFFIXES, Container, open_container
from driftkit.datasets.decode import SUFFIXES, decode_image
from driftkit.datasets.packs import UNLABELLED, RawImages
from driftkit.datasets.spec import Request, SourceKind
from driftkit.errors import ArtifactError, ResourceError, UsageError
from driftkit.runtime.progress import progress

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
FILES_AT_A_TIME, BYTES_AT_A_TIME = 128, 4 * 2**20
MAX_WAITING_BYTES = 512 * 2**20


@dataclass(frozen=True)
class FolderSource:
    """A folder or an archive as a source of images."""

    path: Path
    spec: str
    split: str | None = None
    image_size: int | None = None

    @cached_property
    def container(self) -> Container:
        return open_container(self.path)

    @property
    def kind(self) -> str:
        return "folder" if self.path.is_dir() else "archive"

    @property
    def label(self) -> str:
        path = Path(os.path.abspath(self.path))
        name = path.name
        for suffix in ARCHIVE_SUFFIXES:
            if self.kind == "archive" and name.lower().endswith(suffix):
                name = name[: -len(suffix)]
                break
        parts = [path.parent.name if name.lower() in SPLITS else "", name, self.split or ""]
        return "-".join(part for part in parts if part)

    @property
    def name(self) -> str:
        return self.label + (f"-{self.image_size}px" if self.image_size else "")

    def recorded_options(self) -> dict[str, Any]:
        options = {"split": self.split, "image_size": self.image_size}
        return {key: value for key, value in options.items() if value is not None}

    def digest(self) -> str:
        return self.container.digest()

    def read(self) -> RawImages:
        files = arrange(self.container.names(), self.path, self.split, is_folder=self.kind == "folder")
        images = _decode(self.container, files.names, self.image_size)
        notes = (f"files that are no images, skipped: {files.num_others}",) if files.num_others else ()
        return RawImages(images, torch.tensor(files.labels), files.classes, notes)


def _open(request: Request) -> FolderSource:
    spec = request.spec
    if (spec.path / "manifest.json").is_file() and (spec.path / "checkpoints").is_dir():
        raise UsageError(
            f"{spec.text}: is a run, whose pictures are grids; name images, or what driftkit sample {spec.text} makes"
        )
    spec.require_keys("split")
    source = FolderSource(spec.path, spec.text, spec.query.get("split"), request.image_size)
    open_container(spec.path)
    return source


FOLDER_KIND = SourceKind("a folder of images", lambda spec: spec.path.is_dir(), _open)
ARCHIVE_KIND = SourceKind(
    "a .zip, .tar or .tar.gz of images",
    lambda spec: spec.target.lower().endswith(ARCHIVE_SUFFIXES) and spec.path.exists(),
    _open,
)


@dataclass(frozen=True)
class Arrangement:
    """Image files in the order of the pack."""

    names: list[str]
    labels: list[int]
    classes: tuple[str, ...]
    num_others: int  # files that are no images, by their suffix


def arrange(files: Sequence[str], source: Path, split: str | None, *, is_folder: bool) -> Arrangement:
    """Order image files by name (numbers by value) and find their classes.

    The class is the folder an image lies in, once the folders that all images share are taken away. Without folders
    the images are unlabelled.

    Args:
        files: names with forward slashes.
        source: the folder or archive, for errors.
        split: keep only what lies in this folder; None keeps all.
        is_folder: whether an error should advise `PATH/train` rather than `PATH?split=train`.

    Raises:
        ArtifactError: no images; splits and none named; or some images lie in class folders and some do not.
    """
    names = sorted((f for f in files if PurePosixPath(f).suffix.lower() in SUFFIXES), key=natural_order)
    if not names:
        raise ArtifactError(f"{source}: no images among {len(files)} files; expected {', '.join(sorted(SUFFIXES))}")
    num_others = len(files) - len(names)
    names = _of_split(names, source, split, is_folder=is_folder)
    depth = len(_shared_folders(names))
    classless = [name for name in names if len(_folders(name)) == depth]
    if len(classless) == len(names):
        return Arrangement(names, [UNLABELLED] * len(names), (), num_others)
    if classless:
        raise ArtifactError(f"{source}: {classless[0]} is next to class folders; expected every image in one, or none")
    class_names = [_folders(name)[-1] for name in names]
    classes = tuple(sorted(set(class_names), key=natural_order))
    index = {name: i for i, name in enumerate(classes)}
    return Arrangement(names, [index[name] for name in class_names], classes, num_others)


def _of_split(names: list[str], source: Path, split: str | None, *, is_folder: bool) -> list[str]:
    shared = _shared_folders(names)
    tops = {folders[len(shared)] for name in names if len(folders := _folders(name)) > len(shared)}
    if split is None:
        splits = sorted(top for top in tops if top.lower() in SPLITS)
        if len(splits) >= 2:
            inside = "/".join([*shared, splits[-1]])
            advice = f"{source}/{inside}" if is_folder else f"{source}?split={splits[-1]}"
            raise ArtifactError(f"{source} holds the splits {', '.join(splits)}; name one, for example {advice}")
        return names
    if split in shared:
        return names
    kept = [name for name in names if _folders(name)[len(shared) : len(shared) + 1] == [split]]
    if not kept:
        existing = ", ".join(sorted(tops | set(shared), key=natural_order)[:8]) or "no folders"
        raise ArtifactError(f"{source} has no split {split!r}; it has {existing}")
    return kept


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key under which img2 comes before img10."""
    pieces = re.split(r"(\d+)", name)
    return [(int(p), "") if p.isascii() and p.isdigit() else (-1, p) for p in pieces], name


def _folders(name: str) -> list[str]:
    return name.split("/")[:-1]


def _shared_folders(names: Sequence[str]) -> list[str]:
    folders = [_folders(name) for name in names]
    least, greatest = min(folders), max(folders)  # what these two share, all between them share
    depth = 0
    while depth < len(least) and least[depth] == greatest[depth]:
        depth += 1
    return least[:depth]


def _decode(container: Container, names: Sequence[str], image_size: int | None) -> torch.Tensor:
    """Decode the files in threads: uint8 [N, 3, H, W] in the order of `names`."""
    slots = {name: i for i, name in enumerate(names)}
    batches = _batches(container, slots)
    batch = next(batches)
    place = f"{container.path}/" if container.path.is_dir() else f"{container.path}: "
    first_name = batch[0][0]
    first = decode_image(batch[0][1], place + first_name, image_size)
    _, height, width = first.shape
    needed, memory = len(names) * first.nbytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:  # refused before images fill it
        raise ResourceError(
            f"{container.path}: {len(names):,} images of {width}x{height} px take {needed / 2**30:.1f} GiB and this "
            f"machine has {memory / 2**30:.1f}; resize them with `image_size`"
        )
    images = np.empty((len(names), *first.shape), dtype=np.uint8)

    def work(batch: list[tuple[str, bytes]]) -> int:
        for name, data in batch:
            image = decode_image(data, place + name, image_size)
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
            running: deque[tuple[Future[int], int]] = deque([(pool.submit(work, batch), _size(batch))])
            waiting = _size(batch)
            for batch in batches:
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
    return torch.from_numpy(images)


def _batches(container: Container, slots: dict[str, int]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for name, data in container.contents(slots):
        batch.append((name, data))
        size += len(data)
        if len(batch) >= FILES_AT_A_TIME or size >= BYTES_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(batch: list[tuple[str, bytes]]) -> int:
    return sum(len(data) for _, data in batch)
