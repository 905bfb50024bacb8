"""CIFAR-10 as its authors publish it: the binary edition, or the Python edition, which `cifar_pickle` reads."""

import hashlib
import os
import tarfile
import urllib.parse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driftkit.datasets.cifar_pickle import MAX_BYTES, read_pickled_batch
from driftkit.datasets.decode import resize_images
from driftkit.datasets.packs import RawImages
from driftkit.datasets.spec import Request, SourceKind, Spec
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.runtime.progress import warn
from driftkit.storage.download import download
from driftkit.storage.files import digest_json

ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
OFFICIAL_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
URL_VARIABLE = "DRIFTKIT_CIFAR10_URL"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
MAX_ARCHIVE_BYTES = 200_000_000  # the archives have 170 million
BINARY_ARCHIVE, BINARY_FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
FOLDERS = (FOLDER, BINARY_FOLDER)
BINARY_ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
BATCH_MD5S = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BATCH_FILES = {*BATCH_MD5S, *(f"{name}.bin" for name in BATCH_MD5S)}
SPLITS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class BatchLayout:
    """Where a batch file has its labels.

    Attributes:
        key: their name in the Python edition.
        label_bytes, label_byte: of an image in the binary edition, how many come before its pixels and which it is.
    """

    num_classes: int
    key: str
    label_bytes: int
    label_byte: int


LAYOUT = BatchLayout(len(CLASSES), "labels", 1, 0)


@dataclass(frozen=True)
class Cifar10Source:
    """CIFAR-10 as a source of images."""

    spec: str
    split: str
    path: Path | None  # an archive or an extracted folder; None where it has to be fetched
    download_dir: Path  # where a fetched archive goes
    url: str | None  # where to fetch it from; None means that it must not be fetched
    image_size: int | None = None  # side in pixels; None leaves 32
    batch: str | None = None  # one batch file of the folder `path`, instead of a split
    notes: tuple[str, ...] = ()
    kind: str = "cifar10"

    @property
    def label(self) -> str:
        return f"cifar10 {self.split if self.batch is None else Path(self.batch).stem}"

    def recorded_options(self) -> dict[str, Any]:
        part = {"split": self.split} if self.batch is None else {"batch": self.batch}
        return {**part, **({"image_size": self.image_size} if self.image_size else {})}

    def digest(self) -> str:
        # An archive is refused unless its checksum is the known one, so its batches have the known ones, too.
        # Both editions hold the same images in the same order.
        known = {name: BATCH_MD5S[name] for name in SPLITS[self.split]}
        return digest_json(self._folder_md5s if self.path is not None and self.path.is_dir() else known)

    def read(self) -> RawImages:
        path = self.path or fetch_archive(self.url, self.download_dir / ARCHIVE)
        verified: bool | None = True
        if path.is_dir():
            verified = self._verified(path)
            batches = [(name, read_file(path / name)) for name in self._batch_names(path)]
        else:
            check_md5(path)
            batches = read_members(path, self._batch_names(path))
        parts = [parse_batch(data, f"{path}: {name}") for name, data in batches]
        images, labels = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        if self.image_size is not None:
            images = resize_images(images, self.image_size)
        return RawImages(images, labels, CLASSES, self.notes, verified)

    def _verified(self, folder: Path) -> bool | None:
        """Whether the batches have the known checksums; None for the binary edition, of which none are known."""
        if self._is_binary(folder):
            return None
        different = [name for name, md5 in self._folder_md5s.items() if md5 != BATCH_MD5S[name]]
        for name in different:
            warn(f"{folder / name}: md5 {self._folder_md5s[name]}, expected {BATCH_MD5S[name]}; the pack is unverified")
        return not different

    def _batch_names(self, path: Path) -> list[str]:
        if self.batch is not None:
            return [self.batch]
        return [f"{name}.bin" if self._is_binary(path) else name for name in SPLITS[self.split]]

    def _is_binary(self, path: Path) -> bool:
        if self.batch is not None:
            return self.batch.endswith(".bin")
        if path.is_dir():
            return not any((path / batch).is_file() for batch in BATCH_MD5S)
        return path.name == BINARY_ARCHIVE

    @cached_property
    def _folder_md5s(self) -> dict[str, str]:
        assert self.path is not None
        names = self._batch_names(self.path)
        return {name: hashlib.md5(read_file(self.path / name)).hexdigest() for name in names}


def is_cifar10(path: Path) -> bool:
    """Whether a path is an original archive or a batch file, by its name, or a folder that holds either."""
    if path.is_dir():
        return any((path / name).is_file() for name in BATCH_FILES) or find_cifar10(path) is not None
    return path.name in (ARCHIVE, BINARY_ARCHIVE) or (path.name in BATCH_FILES and path.is_file())


def find_cifar10(data_dir: Path) -> Path | None:
    """An archive or an extracted folder in `data_dir`."""
    names = (ARCHIVE, FOLDER, BINARY_ARCHIVE, BINARY_FOLDER)
    return next((data_dir / name for name in names if (data_dir / name).exists()), None)


def archive_url(url: str | None = None) -> str:
    """Where to fetch the archive from: the argument, else DRIFTKIT_CIFAR10_URL, else the official host.

    Raises:
        UsageError: the address is none of http, https or file.
    """
    chosen = url or os.environ.get(URL_VARIABLE) or OFFICIAL_URL
    if urllib.parse.urlsplit(chosen).scheme not in ("http", "https", "file"):
        raise UsageError(
            f"address of CIFAR-10 is {chosen!r}, expected one that begins with https://, http:// or file://"
        )
    return chosen


def fetch_archive(url: str | None, target: Path) -> Path:
    """Fetch the archive to `target`; the name appears only when the whole file is there and its checksum fits.

    Raises:
        NotFoundError: fetching is not allowed, fails, or gives another file.
    """
    advice = placing_advice(target)
    if url is None:
        raise NotFoundError(f"CIFAR-10 is not in {target.parent}/; {advice}")
    try:
        download(url, target, lambda path: check_md5(path, ARCHIVE_MD5), max_bytes=MAX_ARCHIVE_BYTES)
    except ArtifactError as error:
        raise NotFoundError(f"CIFAR-10 could not be fetched: {error}; {advice}") from None
    return target


def placing_advice(target: Path) -> str:
    """How the archive gets to where it belongs without a download by this program."""
    return f"place {ARCHIVE} (md5 {ARCHIVE_MD5}) in {target.parent}/, or name a mirror with {URL_VARIABLE}"


def check_md5(path: Path, expected: str | None = None) -> None:
    """Refuse an archive that has another checksum than its authors publish, by its name where none is given."""
    expected = expected or (BINARY_ARCHIVE_MD5 if path.name == BINARY_ARCHIVE else ARCHIVE_MD5)
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "md5").hexdigest()
    if got != expected:
        raise ArtifactError(f"{path} is not the original archive: md5 {got}, expected {expected}; get it again")


def parse_batch(data: bytes, name: str, layout: BatchLayout = LAYOUT) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one batch file, which errors call `name`.

    The binary edition (`.bin`) has bytes of labels and 3072 of pixels per image; the Python edition is a pickle.

    Raises:
        ArtifactError: it holds no images, no labels, not as many of one as of the other, or anything else.
    """
    if name.endswith(".bin"):
        size = layout.label_bytes + IMAGE_BYTES
        if not data or len(data) % size:
            raise ArtifactError(f"{name}: {len(data):,} bytes, expected a multiple of {size}; get it again")
        records = np.frombuffer(data, np.uint8).reshape(-1, size)
        pixels, labels = records[:, layout.label_bytes :], records[:, layout.label_byte].tolist()
    else:
        content, labels = read_pickled_batch(data, name, layout.key)
        if not labels or len(content) != len(labels) * IMAGE_BYTES:
            raise ArtifactError(
                f"{name}: {len(content) // IMAGE_BYTES} images and {len(labels)} labels, expected as many of both; "
                "get it again"
            )
        pixels = np.frombuffer(content, np.uint8)
    if not 0 <= min(labels) <= max(labels) < layout.num_classes:
        raise ArtifactError(
            f"{name}: labels {min(labels)} to {max(labels)}, expected 0 to {layout.num_classes - 1}; get it again"
        )
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels)


def read_file(path: Path) -> bytes:
    """The content of a batch file; ArtifactError where it is absent or too large for one."""
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path} is no plain file; extract the archive again")
        if path.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{path}: {path.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}; get it again")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror}; a split needs all its batch files, extract the archive again"
        ) from None


def read_members(archive: Path, names: Sequence[str], folders: Sequence[str] = FOLDERS) -> list[tuple[str, bytes]]:
    """Name and content of files in an archive's folder of one of these names; ArtifactError where one is absent."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").partition("/")
                if folder in folders and name in names and member.isfile() and member.size <= MAX_BYTES:
                    stream = tar.extractfile(member)
                    assert stream is not None, "plain files only"
                    found[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"{archive} is no whole archive: {error}; get it again") from None
    for name in names:
        if name not in found:
            raise ArtifactError(f"{archive} holds no {name}; get it again")
    return [(name, found[name]) for name in names]


def named_split(spec: Spec) -> str:
    """The split that a spec names, else train; UsageError for another one than train and test."""
    split = spec.query.get("split", "train")
    if split not in SPLITS:
        raise UsageError(f"{spec.text}: split is {split}, expected {' or '.join(SPLITS)}")
    return split


def assumed_split(spec: Spec, found: Path) -> tuple[str, ...]:
    """A note on the split of what was found in a folder, where the spec names none."""
    return () if "split" in spec.query else (f"the train split of {found.name}; ?split=test names the other one",)


def _open(request: Request) -> Cifar10Source:
    spec, url = request.spec, archive_url(request.url) if request.allow_download else None
    path: Path | None = spec.path
    batch: str | None = None
    notes: tuple[str, ...] = ()
    if spec.target == "cifar10":
        path = find_cifar10(request.data_dir)
    elif spec.path.is_file() and spec.path.name in BATCH_FILES:
        path, batch = spec.path.parent, spec.path.name
    elif spec.path.is_dir() and (found := find_cifar10(spec.path)) is not None:
        path, notes = found, assumed_split(spec, found)
    spec.require_keys(*(["split"] if batch is None else []))
    return Cifar10Source(
        spec.text, named_split(spec), path, request.data_dir, url, request.image_size, batch=batch, notes=notes
    )


CIFAR10_KIND = SourceKind(
    "cifar10[?split=test]", lambda spec: spec.target == "cifar10" or is_cifar10(spec.path), _open, name="cifar10"
)
