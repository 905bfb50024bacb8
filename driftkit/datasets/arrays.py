"""Images as numbers: .npz, .npy, .safetensors that is no pack, and .pt. Read a piece at a time and never unpickled."""

import contextlib
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from driftkit.datasets.decode import MAX_PIXELS, resize_images
from driftkit.datasets.packs import SUFFIX, UNLABELLED, Blocks, ImageStream, RawImages, require_count
from driftkit.datasets.spec import Request, SourceKind, Spec
from driftkit.errors import ArtifactError, DriftkitError, NotFoundError, UsageError
from driftkit.runtime.progress import progress
from driftkit.storage.files import digest_json, read_tensors

Numbers = npt.NDArray[Any]
TORCH_SUFFIXES = (".pt", ".pth", SUFFIX)  # whose images have their channels first where the shape does not tell
SUFFIXES = (".npz", ".npy", *TORCH_SUFFIXES)
KEYS = {"arr_0": "arr_1", "images": "labels", "x": "y"}  # names of the images and of their labels
RANGES = {"-1,1": (-1.0, 1.0), "0,1": (0.0, 1.0)}
SLACK = 1e-3  # by which floats may leave their range: rounding
FLOATS = ("float16", "float32", "float64", "bfloat16")
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
SHAPES = "[N, H, W, 3], [N, 3, H, W], [N, H, W] or [N, H, W, 1]"
MAX_CLASSES = 100_000
BYTES_AT_A_TIME = 16 * 2**20


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, whose shape and type are known before its numbers are read.

    Attributes:
        dtype: as numpy and torch name it, for example "uint8" or "float32".
        rows: number of rows at a time -> the rows in pieces of so many, each [n, ...].
    """

    shape: tuple[int, ...]
    dtype: str
    rows: Callable[[int], Iterator[Numbers]]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class ArraySource:
    """A file of arrays as a source of images."""

    path: Path
    spec: str
    value_range: str | None = None  # a key of RANGES, for floating-point images
    image_size: int | None = None
    kind: str = "array"

    @property
    def label(self) -> str:
        return self.path.stem

    def recorded_options(self) -> dict[str, Any]:
        options = {"range": self.value_range, "image_size": self.image_size}
        return {key: value for key, value in options.items() if value is not None}

    def digest(self) -> str:
        if self.path.suffix.lower() == ".npz":  # a zip, which knows the checksums of its arrays
            with reading(self.path), zipfile.ZipFile(self.path) as archive:
                return digest_json(sorted((m.filename, m.CRC, m.file_size) for m in archive.infolist()))
        status = self.path.stat()
        return digest_json([os.path.realpath(self.path), status.st_size, status.st_mtime_ns])

    def read(self) -> RawImages:
        with reading(self.path):
            arrays = open_arrays(self.path)
            name = find_images(arrays, self.path)
            stored = arrays.pop(name)
            images, notes = _image_stream(stored, self._place(name), self)
            keys = sorted((key for key in KEYS.values() if key in arrays), key=lambda key: key != KEYS.get(name))
            key = next(iter(keys), "")
            labels, classes = read_labels(arrays.pop(key, None), images.count, self._place(key))
        if arrays:
            notes = (*notes, f"arrays that are neither images nor labels, skipped: {', '.join(sorted(arrays))}")
        return RawImages(images, labels, classes, notes)

    def _place(self, name: str) -> str:
        return f"{self.path}: `{name}`" if name else f"{self.path}:"


def open_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of a file by name; "" is the name of one that has none.

    Raises:
        ArtifactError: absent, cut off, or anything but arrays of numbers.
    """
    with reading(path):
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path} is no plain file; expected arrays of images")
        suffix = path.suffix.lower()
        if suffix == ".npy":
            return {"": _numpy_array(lambda: path.open("rb"), path.stat().st_size, str(path))}
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            return {
                (name := m.filename.removesuffix(".npy")): _numpy_array(
                    partial(_member, path, m.filename), m.file_size, f"{path}: `{name}`"
                )
                for m in members
            }

        def read() -> dict[str, torch.Tensor]:
            return read_tensors(path)[0] if suffix == SUFFIX else _read_torch_file(path)

        tensors, is_mapped = read(), suffix == SUFFIX or zipfile.is_zipfile(path)
        again = read if is_mapped else lambda: tensors
        return {name: _of_tensor(name, tensor, again) for name, tensor in tensors.items()}


def array_names(path: Path) -> set[str]:
    """Names of the arrays of an .npz; none where there is no such file, or it cannot be read."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return set()
    with contextlib.suppress(ArtifactError), reading(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}
    return set()


def find_images(arrays: Mapping[str, StoredArray], path: Path) -> str:
    """Name of the array that holds the images: `arr_0`, `images` or `x`, else the only one of four dimensions.

    Raises:
        ArtifactError: there is none, or more than one.
    """
    names = [name for name in KEYS if name in arrays] or [n for n, stored in arrays.items() if len(stored.shape) == 4]
    if "" in arrays:
        return ""
    if len(names) == 1:
        return names[0]
    shown = [f"{name} {stored}" for name, stored in list(arrays.items())[:6]]
    held = ", ".join(shown) + (f" and {len(arrays) - 6} more" if len(arrays) > 6 else "") or "nothing"
    expected = f"images as one of `arr_0`, `images` and `x`, {SHAPES}"
    if not names and arrays.keys() & {"mu", "sigma", "pool_3"}:
        held, expected = (
            f"{held}, features and no images",
            f"{expected}, or for a reference `mu` [D] and `sigma` [D, D]",
        )
    raise ArtifactError(f"{path} holds {held}; expected {expected}")


def read_labels(stored: StoredArray | None, count: int, place: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Labels int64 [count], and the classes that they name: "0", "1", ... to the largest; without any, unlabelled.

    Raises:
        ArtifactError: of another type or length, or numbers that are no labels.
    """
    if stored is None:
        return torch.full((count,), UNLABELLED), ()
    if stored.dtype not in INTEGERS or stored.shape not in ((count,), (count, 1)):
        raise ArtifactError(f"{place} is {stored}, expected a whole number for each image, [{count}]")
    values = np.concatenate(list(stored.rows(BYTES_AT_A_TIME))).reshape(count)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= MAX_CLASSES:
        raise ArtifactError(f"{place} has labels from {low} to {high}, expected 0 to at most {MAX_CLASSES - 1}")
    return torch.from_numpy(values.astype(np.int64)), tuple(str(label) for label in range(high + 1))


def _image_stream(stored: StoredArray, place: str, source: ArraySource) -> tuple[ImageStream, tuple[str, ...]]:
    """The images, and notes on what was assumed or changed."""
    channels_last, notes = _channels_last(stored, place, source.path)
    limits = _limits(stored, place, source)
    if limits is not None:
        notes += (f"floating-point numbers from {limits[0]:g} to {limits[1]:g}, rounded to 8 bits",)
    count, *rest = stored.shape
    height, width = rest[:2] if channels_last else rest[-2:]
    require_count(source.path, count)
    if height * width > MAX_PIXELS:
        raise ArtifactError(f"{place} has images of {width}x{height} px, expected at most {MAX_PIXELS:,} pixels")

    def blocks() -> Blocks:
        first = 0
        with reading(source.path), progress(f"importing {source.path.name}", count) as advance:
            for block in stored.rows(max(1, BYTES_AT_A_TIME // (8 * math.prod(rest)))):
                if block.ndim == 3:
                    block = block[..., None]
                block = np.moveaxis(block, -1, 1) if channels_last else block
                if limits is not None:
                    block = _rounded(block, limits, place, first)
                block = np.broadcast_to(block, (len(block), 3, height, width))  # grey ones into all three channels
                if source.image_size is not None:
                    block = resize_images(torch.from_numpy(block.copy()), source.image_size).numpy()
                yield first, block
                first += len(block)
                advance(len(block))

    return ImageStream(count, blocks()), notes


def _channels_last(stored: StoredArray, place: str, path: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether channels (of which grey images have one) are the last dimension, and a note where that was assumed."""
    shape = stored.shape
    one_image = len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))
    if len(shape) not in (3, 4) or one_image or 0 in shape:
        raise ArtifactError(f"{place} is {stored}, expected images {SHAPES}, N > 0")
    if len(shape) == 3:
        return True, ()
    if shape[1] == shape[3] == 3:
        last = path.suffix.lower() not in TORCH_SUFFIXES
        return last, (f"{list(shape)} was read as {'[N, H, W, 3]' if last else '[N, 3, H, W]'}",)
    for channels in (3, 1):
        if shape[3] == channels or shape[1] == channels:
            return shape[3] == channels, ()
    raise ArtifactError(f"{place} is {stored}, expected images {SHAPES}")


def _limits(stored: StoredArray, place: str, source: ArraySource) -> tuple[float, float] | None:
    """The range of floating-point images; None for uint8."""
    if stored.dtype == "uint8":
        if source.value_range is not None:
            raise UsageError(f"{source.spec}: `range` is for floating-point images, these are uint8; remove it")
        return None
    if stored.dtype not in FLOATS:
        raise ArtifactError(f"{place} is {stored}, expected uint8, or floating point with ?range=-1,1 or ?range=0,1")
    if source.value_range is None:
        raise ArtifactError(
            f"{place} is {stored}: the range of its values has to be named; "
            f"{source.path}?range=-1,1 or {source.path}?range=0,1"
        )
    return RANGES[source.value_range]


def _rounded(block: Numbers, limits: tuple[float, float], place: str, first: int) -> Numbers:
    """Floats in that range as uint8; `first` is the number of the first image."""
    low, high = limits
    values = block.astype(np.float32)
    finite = np.isfinite(values).all(axis=(1, 2, 3))
    if not finite.all():
        raise ArtifactError(f"{place} has values that are not finite, first in image {first + int(finite.argmin())}")
    least, greatest = float(values.min()), float(values.max())
    if least < low - SLACK or greatest > high + SLACK:
        raise ArtifactError(f"{place} has values from {least:.4g} to {greatest:.4g}, expected {low:g} to {high:g}")
    return np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _numpy_array(opened: Callable[[], AbstractContextManager[IO[bytes]]], num_bytes: int, place: str) -> StoredArray:
    """An array in numpy's format, of which the header alone is read now."""
    with opened() as file:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            raise ArtifactError(f"{place} holds records, expected an array of numbers")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = header(file)
        start = file.tell()
    if dtype.hasobject:
        raise ArtifactError(f"{place} holds Python objects, which are never unpickled; write an array of numbers")
    if num_bytes - start != math.prod(shape) * dtype.itemsize:
        raise ArtifactError(f"{place} is cut off: {num_bytes - start:,} bytes of {dtype} {list(shape)}; write it again")

    def rows(at_a_time: int) -> Iterator[Numbers]:
        with opened() as file:
            file.read(start)  # not `seek`, after which a zip compares no checksum
            if is_fortran:
                whole = np.frombuffer(file.read(num_bytes - start), dtype).reshape(shape[::-1]).transpose()
                yield from (whole[first : first + at_a_time] for first in range(0, shape[0], at_a_time))
                return
            for first in range(0, shape[0], at_a_time):
                number = min(at_a_time, shape[0] - first)
                content = file.read(number * math.prod(shape[1:]) * dtype.itemsize)
                yield np.frombuffer(content, dtype).reshape(number, *shape[1:])

    return StoredArray(shape, dtype.name, rows)


@contextlib.contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        yield file


def _of_tensor(name: str, tensor: torch.Tensor, again: Callable[[], Mapping[str, torch.Tensor]]) -> StoredArray:
    """A tensor, mapped again for each piece: the pages that were looked at are memory until the file is closed."""

    def rows(at_a_time: int) -> Iterator[Numbers]:
        for first in range(0, len(tensor), at_a_time):
            piece = again()[name][first : first + at_a_time]
            yield (piece.float() if piece.dtype == torch.bfloat16 else piece).numpy()

    return StoredArray(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), rows)


def _read_torch_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a torch file: one, or a dict of nothing else."""
    try:
        with warnings.catch_warnings():  # of pickle protocols: what cannot be read is refused below
            warnings.simplefilter("ignore")
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except Exception as error:  # torch.load raises whatever its unpickler and zip reader raise
        raise ArtifactError(
            f"{path} cannot be read as tensors only ({type(error).__name__}); nothing in it was run"
        ) from None
    tensors = {"": document} if isinstance(document, torch.Tensor) else document
    if not isinstance(tensors, dict):
        raise ArtifactError(f"{path} holds a {type(document).__name__}, expected a tensor, or a dict of tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ArtifactError(f"{path}: {str(name)[:40]!r} is a {type(tensor).__name__}, expected tensors alone")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ArtifactError(f"{path}: {name[:40]!r} is a tensor without all of its numbers, expected a dense one")
    return {name: tensor.detach() for name, tensor in tensors.items()}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of whoever reads a file of another program as one line that names the file."""
    try:
        yield
    except (DriftkitError, MemoryError):
        raise
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except Exception as error:  # broken bytes lead numpy, torch and pyarrow to errors of many kinds
        line = next(iter(str(error).splitlines()), "")
        raise ArtifactError(
            f"{path} is not a readable {path.suffix} file: {type(error).__name__}: {line}; write it again"
        ) from None


def is_array_file(spec: Spec) -> bool:
    """Whether a spec names a file of arrays; a safetensors file of driftkit, which says so, is none."""
    path = spec.path
    if path.suffix.lower() not in SUFFIXES or not path.exists() or path.is_dir():
        return False
    return path.suffix != SUFFIX or not (path.with_suffix(".json").is_file() or "driftkit" in read_tensors(path)[1])


def _open(request: Request) -> ArraySource:
    spec = request.spec
    spec.require_keys("range")
    value_range = spec.query.get("range")
    if value_range is not None and value_range not in RANGES:
        raise UsageError(f"{spec.text}: range is {value_range}, expected {' or '.join(RANGES)}")
    source = ArraySource(spec.path, spec.text, value_range, request.image_size)
    find_images(open_arrays(spec.path), spec.path)
    return source


ARRAY_KIND = SourceKind("arrays of images (.npz, .npy, .safetensors, .pt)", is_array_file, _open)
