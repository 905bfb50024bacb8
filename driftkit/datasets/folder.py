"""Images in a folder, an archive or shards as a source."""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from driftkit.datasets.arrangement import SPLITS, arrange, suffix_of
from driftkit.datasets.containers import ARCHIVE_SUFFIXES, Container
from driftkit.datasets.decode import require_decoders
from driftkit.datasets.decoding import decoded_stream, skips_broken
from driftkit.datasets.packs import RawImages
from driftkit.datasets.shards import RANGE, is_shards, open_files
from driftkit.datasets.spec import Request, SourceKind
from driftkit.errors import UsageError


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
        slots = {name: i for i, name in enumerate(files.names)}
        encoded = ((slots[name], name, data) for name, data in self.container.contents(slots))
        images = decoded_stream(encoded, len(slots), self.path, self.image_size, skip_broken=self.skip_broken)
        notes = (*files.notes, *self.container.notes())
        return RawImages(images, torch.tensor(files.labels), files.classes, notes)


def _open(request: Request) -> FolderSource:
    spec = request.spec
    if (spec.path / "manifest.json").is_file() and (spec.path / "checkpoints").is_dir():
        raise UsageError(
            f"{spec.text}: is a run, whose pictures are grids; name images, or what driftkit sample {spec.text} makes"
        )
    spec.require_keys("split", "class_level", "skip_broken")
    level = spec.query.get("class_level")
    if level is not None and not re.fullmatch(r"\d{1,3}", level, re.ASCII):
        raise UsageError(f"{spec.text}: class_level is {level}, expected 0 for no classes or the level of a folder")
    source = FolderSource(
        spec.path, spec.text, spec.query.get("split"), request.image_size,
        class_level=None if level is None else int(level), skip_broken=skips_broken(spec),
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
