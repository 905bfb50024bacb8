"""CIFAR-10 from its original archive. Its batch files are pickles, which are listed here and never loaded."""

import contextlib
import hashlib
import io
import os
import pickletools
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driftkit.datasets.decode import resize_images
from driftkit.datasets.packs import RawImages
from driftkit.datasets.spec import Request, SourceKind
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.runtime.progress import progress, warn
from driftkit.storage.files import atomic_path, digest_json

ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
OFFICIAL_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
URL_VARIABLE = "DRIFTKIT_CIFAR10_URL"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
BATCH_MD5S = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
SPLITS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_BYTES = 3 * 32 * 32
MAX_BATCH_BYTES = 64 * 2**20
TIMEOUT_S = 20.0
SLOW_AFTER_S, SLOWEST_BYTES_PER_S = 30.0, 50_000


@dataclass(frozen=True)
class Cifar10Source:
    """CIFAR-10 as a source of images.

    Args:
        spec: the text that named it.
        split: train or test.
        path: the archive or the extracted folder; None where it has to be fetched.
        download_dir: where a fetched archive goes.
        url: where to fetch it from; None means that it must not be fetched.
        image_size: side in pixels; None leaves 32.
    """

    spec: str
    split: str
    path: Path | None
    download_dir: Path
    url: str | None
    image_size: int | None = None
    kind: str = "cifar10"

    @property
    def label(self) -> str:
        return f"cifar10 {self.split}"

    @property
    def name(self) -> str:
        return f"cifar10-{self.split}" + (f"-{self.image_size}px" if self.image_size else "")

    def recorded_options(self) -> dict[str, Any]:
        return {"split": self.split, **({"image_size": self.image_size} if self.image_size else {})}

    def digest(self) -> str:
        # The archive is refused unless its checksum is the known one, so its batches have the known ones, too.
        return digest_json(self._folder_md5s if self.path is not None and self.path.is_dir() else self._known_md5s)

    def read(self) -> RawImages:
        path = self.path or download(self.url, self.download_dir / ARCHIVE)
        verified = True
        if path.is_dir():
            different = [name for name, md5 in self._folder_md5s.items() if md5 != BATCH_MD5S[name]]
            verified = not different
            for name in different:
                warn(
                    f"{path / name}: md5 {self._folder_md5s[name]}, expected {BATCH_MD5S[name]}; the pack is unverified"
                )
            batches = [(name, _read_file(path / name)) for name in SPLITS[self.split]]
        else:
            check_md5(path)
            batches = _read_members(path, SPLITS[self.split])
        parts = [parse_batch(data, f"{path}: {name}") for name, data in batches]
        images, labels = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        if self.image_size is not None:
            images = resize_images(images, self.image_size)
        return RawImages(images, labels, CLASSES, verified=verified)

    @property
    def _known_md5s(self) -> dict[str, str]:
        return {name: BATCH_MD5S[name] for name in SPLITS[self.split]}

    @cached_property
    def _folder_md5s(self) -> dict[str, str]:
        assert self.path is not None
        return {name: hashlib.md5(_read_file(self.path / name)).hexdigest() for name in SPLITS[self.split]}


def is_cifar10(path: Path) -> bool:
    """Whether a path is the original archive, by its name, or its extracted folder."""
    return path.name == ARCHIVE or (path.is_dir() and any((path / batch).is_file() for batch in BATCH_MD5S))


def find_cifar10(data_dir: Path) -> Path | None:
    """The archive or the extracted folder in `data_dir`."""
    return next((data_dir / name for name in (ARCHIVE, FOLDER) if (data_dir / name).exists()), None)


def archive_url(url: str | None = None) -> str:
    """Where to fetch the archive from: the argument, else the variable DRIFTKIT_CIFAR10_URL, else the official host.

    Raises:
        UsageError: the address is none of http, https or file.
    """
    chosen = url or os.environ.get(URL_VARIABLE) or OFFICIAL_URL
    if urllib.parse.urlsplit(chosen).scheme not in ("http", "https", "file"):
        raise UsageError(
            f"address of CIFAR-10 is {chosen!r}, expected one that begins with https://, http:// or file://"
        )
    return chosen


def download(url: str | None, target: Path) -> Path:
    """Fetch the archive to `target`; the name appears only when the whole file is there and its checksum fits.

    Raises:
        ArtifactError: fetching is not allowed, fails, is hopelessly slow, or gives another file.
    """
    advice = placing_advice(target)
    if url is None:
        raise NotFoundError(f"CIFAR-10 is not in {target.parent}/; {advice}")
    try:
        with atomic_path(target) as temporary:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply, open(temporary, "wb") as file:
                _copy(reply, file)
            check_md5(temporary, shown=url)
    except (OSError, HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise NotFoundError(f"CIFAR-10 could not be fetched from {url}: {reason}; {advice}") from None
    return target


def placing_advice(target: Path) -> str:
    """How the archive gets to where it belongs without a download by this program."""
    return f"place {ARCHIVE} (md5 {ARCHIVE_MD5}) in {target.parent}/, or name a mirror with {URL_VARIABLE}"


def _copy(reply: Any, file: io.BufferedWriter) -> None:
    started, done = time.monotonic(), 0
    with progress("fetching CIFAR-10", int(reply.headers.get("Content-Length") or 0), unit="bytes") as advance:
        while piece := reply.read1(2**18) if hasattr(reply, "read1") else reply.read(2**18):
            file.write(piece)
            done += len(piece)
            advance(len(piece))
            elapsed = time.monotonic() - started
            if done > ARCHIVE_BYTES:
                raise OSError(f"more than the expected {ARCHIVE_BYTES:,} bytes came")
            if elapsed > SLOW_AFTER_S and done / elapsed < SLOWEST_BYTES_PER_S:
                raise OSError(f"only {done / elapsed / 1000:.0f} kB/s, the host throttles")


def check_md5(path: Path, *, shown: str | None = None) -> None:
    """Compare the archive with the known checksum.

    Raises:
        ArtifactError: it differs.
    """
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "md5").hexdigest()
    if got != ARCHIVE_MD5:
        raise ArtifactError(
            f"{shown or path} is not the original archive: md5 {got}, expected {ARCHIVE_MD5}; get it again"
        )


def parse_batch(data: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of one batch file, found by listing the pickle's opcodes; nothing in it is executed.

    Args:
        data: content of the file, a pickle of any protocol from 2 to 5, written by Python 2 or 3.
        name: how errors name it.

    Returns:
        uint8 [N, 3, 32, 32] and int64 [N].

    Raises:
        ArtifactError: it holds no images, no labels, or not as many of one as of the other.
    """
    pixels = b""
    labels: list[int] | None = None
    # Pickletools raises whatever the broken bytes lead to, nearly always ValueError.
    try:
        operations = pickletools.genops(data)
        for _, argument, _ in operations:
            if isinstance(argument, str | bytes | bytearray):
                if argument in ("labels", b"labels") and labels is None:
                    labels = _list_of_ints(operations)
                elif len(argument) % IMAGE_BYTES == 0 and len(argument) > len(pixels):
                    # Python 2 strings, and bytes that went through a protocol without them, come as latin-1 text.
                    pixels = argument.encode("latin-1") if isinstance(argument, str) else bytes(argument)
    except (ValueError, IndexError, OverflowError, EOFError) as error:
        raise ArtifactError(f"{name} is no batch of CIFAR-10: {error}; get it again") from None
    if not pixels or not labels or len(pixels) != len(labels) * IMAGE_BYTES:
        raise ArtifactError(
            f"{name}: {len(pixels) // IMAGE_BYTES} images and {len(labels or ())} labels, "
            "expected as many of both; get it again"
        )
    if not 0 <= min(labels) <= max(labels) < len(CLASSES):
        raise ArtifactError(f"{name}: labels {min(labels)} to {max(labels)}, expected 0 to 9; get it again")
    images = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images.copy()), torch.tensor(labels)


def _list_of_ints(operations: Iterator[Any]) -> list[int]:
    """The ints of the list that the next opcodes build; takes one opcode more than that."""
    numbers: list[int] = []
    begun = False
    for opcode, argument, _ in operations:
        if opcode.name in ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"):
            numbers.append(int(argument))
        elif opcode.name in ("EMPTY_LIST", "MARK"):
            begun = True
        elif opcode.name in ("APPENDS", "APPEND", "LIST", "FRAME", "MEMOIZE") or "PUT" in opcode.name:
            continue
        # A key of bytes goes through protocol 2 as encode(text, "latin1"): these stand between it and the list.
        elif begun or opcode.name not in ("BINUNICODE", "BINGET", "LONG_BINGET", "TUPLE2", "REDUCE"):
            break
    return numbers


def _read_file(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path} is no plain file; extract {ARCHIVE} again")
        if path.stat().st_size > MAX_BATCH_BYTES:
            raise ArtifactError(f"{path}: {path.stat().st_size:,} bytes, expected about 31,000,000; get it again")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror}; a split needs all its batch files, extract {ARCHIVE} again"
        ) from None


def _read_members(archive: Path, names: list[str]) -> list[tuple[str, bytes]]:
    found: dict[str, bytes] = {}
    with _named_errors(archive), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            folder, _, name = member.name.removeprefix("./").partition("/")
            if folder == FOLDER and name in names and member.isfile() and member.size <= MAX_BATCH_BYTES:
                stream = tar.extractfile(member)
                assert stream is not None, "plain files only"
                found[name] = stream.read()
    for name in names:
        if name not in found:
            raise ArtifactError(f"{archive} holds no {FOLDER}/{name}; get it again")
    return [(name, found[name]) for name in names]


@contextlib.contextmanager
def _named_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"{archive} is no whole archive: {error}; get it again") from None


def _open(request: Request) -> Cifar10Source:
    spec = request.spec
    spec.require_keys("split")
    split = spec.query.get("split", "train")
    if split not in SPLITS:
        raise UsageError(f"{spec.text}: split is {split}, expected {' or '.join(SPLITS)}")
    path = find_cifar10(request.data_dir) if spec.target == "cifar10" else spec.path
    url = archive_url(request.url) if request.allow_download else None
    return Cifar10Source(spec.text, split, path, request.data_dir, url, request.image_size)


CIFAR10_KIND = SourceKind(
    "cifar10[?split=test]", lambda spec: spec.target == "cifar10" or is_cifar10(spec.path), _open, name="cifar10"
)
