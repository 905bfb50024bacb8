"""Images in Parquet files as the Hub stores them: encoded images in one column, labels in another, read in pieces."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from driftkit.datasets.arrays import MAX_CLASSES, reading
from driftkit.datasets.containers import require_image_file
from driftkit.datasets.decode import SUFFIXES
from driftkit.datasets.decoding import decoded_stream, skips_broken
from driftkit.datasets.packs import UNLABELLED, RawImages, require_count
from driftkit.datasets.spec import Request, SourceKind, Spec
from driftkit.errors import ArtifactError, NotFoundError
from driftkit.storage.files import digest_json
from driftkit.storage.json_text import from_json

SUFFIX = ".parquet"
METADATA = "metadata.parquet"  # which lies next to image files and holds none
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
ROWS_AT_A_TIME, LABELS_AT_A_TIME = 64, 2**16


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files of one split as a source of images."""

    path: Path
    spec: str
    files: tuple[Path, ...]
    split: str | None = None  # None for a single file
    image_size: int | None = None
    skip_broken: bool = False  # leave out rows that hold no whole image instead of refusing them
    kind: str = "parquet"

    @property
    def label(self) -> str:
        name = Path(os.path.abspath(self.path)).name.removesuffix(SUFFIX)
        return name if self.split in (None, name) else f"{name}-{self.split}"

    def recorded_options(self) -> dict[str, Any]:
        options = {"split": self.split, "image_size": self.image_size}
        chosen = {key: value for key, value in options.items() if value is not None}
        return {**chosen, "skip_broken": True} if self.skip_broken else chosen

    def digest(self) -> str:
        status = [(os.path.realpath(file), file.stat()) for file in self.files]
        return digest_json([(path, s.st_size, s.st_mtime_ns) for path, s in status])

    def read(self) -> RawImages:
        tables = [_open_table(file) for file in self.files]
        columns = tables[0].columns
        for table in tables:
            if table.columns != columns:
                raise ArtifactError(f"{table.file} has other columns or classes than {self.files[0]}")
        count = sum(table.count for table in tables)
        if not count:
            raise ArtifactError(f"{self.path} has no rows, expected images")
        require_count(self.path, count)
        labels = _labels(tables)
        highest = int(labels.max())
        if columns.classes and highest >= len(columns.classes):
            raise ArtifactError(
                f"{self.path}: labels up to {highest}, expected those of {len(columns.classes)} classes"
            )
        names = columns.classes or tuple(str(label) for label in range(highest + 1))
        encoded = _encoded(tables, self.path)
        images = decoded_stream(encoded, count, self.path, self.image_size, skip_broken=self.skip_broken)
        return RawImages(images, labels, names if highest != UNLABELLED else ())


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; label is None where there are none, classes are empty where unnamed."""

    image: str
    label: str | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A Parquet file, of which what describes it was read."""

    file: Path
    columns: Columns
    count: int

    def pieces(self, column: str, at_a_time: int) -> Iterator[tuple[int, list[Any]]]:
        """Some values of a column at a time, and the row of the first of them."""
        done = 0
        with reading(self.file), _pyarrow_parquet(self.file).ParquetFile(self.file, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=at_a_time, columns=[column]):
                if done + batch.num_rows <= self.count:
                    yield done, batch.column(0).to_pylist()
                done += batch.num_rows
        if done != self.count:
            raise ArtifactError(f"{self.file} has {done} rows, expected {self.count}; get it again")


def _open_table(file: Path) -> Table:
    """Find out which columns of a file to read.

    Raises:
        ArtifactError: broken, without images, or its labels are no whole numbers.
    """
    parquet = _pyarrow_parquet(file)
    with reading(file), parquet.ParquetFile(file) as table:
        types = {field.name: field.type for field in table.schema_arrow}
        metadata, count = dict(table.schema_arrow.metadata or {}), table.metadata.num_rows
    image = next((name for name in IMAGE_COLUMNS if name in types), None)
    label = next((name for name in LABEL_COLUMNS if name in types), None)
    if image is None:
        raise ArtifactError(f"{file} has the columns {', '.join(types) or 'none'}; expected images in `image` or `img`")
    if not re.match(r"(large_)?binary$|struct<.*\bbytes: (large_)?binary\b", str(types[image])):
        raise ArtifactError(
            f"{file}: `{image}` is {types[image]}, expected encoded images, binary or struct<bytes, path>"
        )
    if label is not None and not re.match(r"u?int\d+$", str(types[label])):
        raise ArtifactError(f"{file}: `{label}` is {types[label]}, expected whole numbers")
    return Table(file, Columns(image, label, _class_names(metadata.get(b"huggingface", b"{}"), label)), count)


def _class_names(description: bytes, label: str | None) -> tuple[str, ...]:
    """Names of the classes in what the Hub's library writes about the columns; none where it names none."""
    try:
        feature = from_json(description)["info"]["features"][label]
        names = feature["names"] if feature["_type"] == "ClassLabel" else []
    except (ValueError, RecursionError, KeyError, TypeError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _labels(tables: Sequence[Table]) -> torch.Tensor:
    """Labels int64 [N] of all tables, -1 where there are none."""
    parts = []
    for table in tables:
        if table.columns.label is None:
            parts.append(torch.full((table.count,), UNLABELLED))
            continue
        for first, numbers in table.pieces(table.columns.label, LABELS_AT_A_TIME):
            for row, number in enumerate(numbers, first):
                if number is None or not UNLABELLED <= number < MAX_CLASSES:
                    place = f"{table.file}: row {row}"
                    raise ArtifactError(f"{place} has the label {number}, expected 0 to {MAX_CLASSES - 1}")
            parts.append(torch.tensor(numbers))
    return torch.cat(parts)


def _encoded(tables: Sequence[Table], path: Path) -> Iterator[tuple[int, str, bytes]]:
    """Place, name for messages and content of the image of every row of all tables."""
    before = 0
    for table in tables:
        file = "" if table.file == path else f"{table.file.relative_to(path)}: "
        for first, values in table.pieces(table.columns.image, ROWS_AT_A_TIME):
            for row, value in enumerate(values, first):
                yield before + row, f"{file}row {row}", _content(value, f"{table.file}: row {row}")
        before += table.count


def _content(value: Any, place: str) -> bytes:
    """The encoded image in a cell; none in an empty one."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None and isinstance(value, dict) and value.get("path"):
        raise ArtifactError(
            f"{place} names {value['path']!r}, expected an image; write the files with their images in them"
        )
    require_image_file(place, len(content or b""))
    return content or b""


def _pyarrow_parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise NotFoundError(f"{file}: Parquet needs pyarrow; install the extra: uv sync --extra parquet") from None
    return pyarrow.parquet


def parquet_files(path: Path) -> list[Path]:
    """Parquet files of a folder and below, hidden ones and descriptions of image files skipped, in order of name."""
    files = (file for file in path.rglob(f"*{SUFFIX}") if file.name != METADATA)
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def choose_files(path: Path, split: str | None, spec: str) -> tuple[str, tuple[Path, ...]]:
    """The split and its files in a folder, where a name begins with the split or the files `0000` lie in its folder.

    Raises:
        ArtifactError: several splits and none named, no such split, several sets of files, or one that is not whole.
    """
    splits: dict[str, list[Path]] = {}
    for file in parquet_files(path):
        name = file.parent.name if file.stem.isdigit() else SHARD.split(file.stem)[0]
        splits.setdefault(name, []).append(file)
    if split is None and len(splits) > 1:
        raise ArtifactError(
            f"{path} holds the splits {', '.join(splits)}; name one, for example {path}?split={min(splits)}"
        )
    chosen = next(iter(splits)) if split is None else split
    files = splits.get(chosen, [])
    if not files:
        raise ArtifactError(f"{spec}: {path} has no split {chosen!r}; it has {', '.join(splits)}")
    folders = sorted({str(file.parent) for file in files})
    if len(folders) > 1:
        raise ArtifactError(
            f"{path} holds split {chosen} in {len(folders)} folders; name one, for example {folders[0]}"
        )
    shards = [found for file in files if (found := SHARD.search(file.stem)) is not None]
    if shards and [int(shard[1]) for shard in shards] != list(range(int(shards[0][2]))):
        numbers = ", ".join(shard[1] for shard in shards[:8])
        raise ArtifactError(
            f"{path}: split {chosen} has {len(shards)} of {int(shards[0][2])} files ({numbers}); get it again"
        )
    return chosen, tuple(files)


def _open(request: Request) -> ParquetSource:
    spec, path = request.spec, request.spec.path
    if not path.is_dir():
        spec.require_keys("skip_broken")
        return ParquetSource(path, spec.text, (path,), None, request.image_size, skips_broken(spec))
    spec.require_keys("split", "skip_broken")
    split, files = choose_files(path, spec.query.get("split"), spec.text)
    return ParquetSource(path, spec.text, files, split, request.image_size, skips_broken(spec))


def is_parquet(spec: Spec) -> bool:
    """Whether a spec names a Parquet file, or a folder of them, in which no image files are."""
    path = spec.path
    if path.is_dir():
        # The first image ends the search, so that large folders of them are not walked.
        return not any(f.suffix.lower() in SUFFIXES for f in path.rglob("*")) and bool(parquet_files(path))
    return path.suffix.lower() == SUFFIX and path.exists()


PARQUET_KIND = SourceKind("a .parquet file of the Hub or a folder of them", is_parquet, _open)
