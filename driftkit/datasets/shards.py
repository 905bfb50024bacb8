"""Several tar archives as one set of files: the shards of webdataset, named by a range in braces or by their folder."""

import os
import re
from collections.abc import Container as Holds
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from driftkit.datasets.containers import TAR_SUFFIXES, Container, Tar, is_hidden, natural_order, open_container
from driftkit.errors import ArtifactError, NotFoundError, shortened
from driftkit.storage.files import digest_json

MAX_SHARDS = 100_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_shards(path: Path) -> bool:
    """Whether a path is a range of tar archives, or a folder that holds tar archives and nothing else."""
    if not path.is_dir():
        return RANGE.search(path.name) is not None and path.name.lower().endswith(TAR_SUFFIXES) and not path.exists()
    some = False
    with os.scandir(path) as entries:
        for entry in entries:
            if not is_hidden(entry.name):
                if not (entry.name.lower().endswith(TAR_SUFFIXES) and entry.is_file()):
                    return False
                some = True
    return some


def open_files(path: Path) -> Container:
    """The shards, folder or archive at `path`.

    Raises:
        ArtifactError: it is none of them.
    """
    return Shards(path) if is_shards(path) else open_container(path)


@dataclass(frozen=True)
class Shards:
    """Tar archives, read one after another; names begin with that of the archive, as if it were a folder."""

    path: Path  # with a range in braces, or a folder

    @cached_property
    def _shards(self) -> dict[str, Tar]:
        is_folder = self.path.is_dir()
        names, folder = (_in_folder(self.path), self.path) if is_folder else (_in_range(self.path), self.path.parent)
        missing = [name for name in names if not (folder / name).is_file()]
        if len(missing) == len(names):
            raise NotFoundError(
                f"{self.path}: none of the {len(names):,} shards is there; expected {shortened(names, 3)}"
            )
        if missing:
            raise NotFoundError(
                f"{self.path}: {len(missing):,} of {len(names):,} shards are missing: {shortened(missing, 5)}"
            )
        return {name: Tar(folder / name) for name in names}

    def names(self) -> list[str]:
        return [f"{shard}/{name}" for shard, tar in self._shards.items() for name in tar.names()]

    def notes(self) -> tuple[str, ...]:
        return (f"shards: {len(self._shards):,}",)

    def digest(self) -> str:
        return digest_json([[shard, tar.digest()] for shard, tar in self._shards.items()])

    def contents(self, names: Holds[str]) -> Iterator[tuple[str, bytes]]:
        for shard, tar in self._shards.items():
            for name, data in tar.contents(_Within(names, f"{shard}/")):
                yield f"{shard}/{name}", data


@dataclass(frozen=True)
class _Within:
    """Those of the names that begin with a prefix, without it."""

    names: Holds[str]
    prefix: str

    def __contains__(self, name: object) -> bool:
        return f"{self.prefix}{name}" in self.names


def _in_range(path: Path) -> list[str]:
    found = RANGE.search(path.name)
    assert found is not None, "is_shards saw one"
    first, last, width = int(found[1]), int(found[2]), len(found[1])
    if not 0 <= last - first < MAX_SHARDS or RANGE.search(path.name, found.end()):
        raise ArtifactError(
            f"{path}: expected one range of at most {MAX_SHARDS:,} shards, the smaller number first, as {{000..007}}"
        )
    head, tail = path.name[: found.start()], path.name[found.end() :]
    return [f"{head}{number:0{width}}{tail}" for number in range(first, last + 1)]


def _in_folder(path: Path) -> list[str]:
    names = sorted((name for name in os.listdir(path) if not is_hidden(name)), key=natural_order)
    families = {re.sub(r"\d+", "#", name): name for name in reversed(names)}
    if len(families) > 1:  # train and val side by side, most likely
        raise ArtifactError(
            f"{path}: archives of different names, such as {' and '.join(list(families.values())[:2])}, are not read "
            "as one set; name one archive, or shards as in name-{000..007}.tar"
        )
    return names
