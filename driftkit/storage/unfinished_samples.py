"""Images of a sampling that is not finished: kept next to its output, so that the same request goes on behind them.

They lie in a hidden folder until the output is written whole. Nothing unfinished ever has the output's name.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from driftkit.errors import ArtifactError, UsageError
from driftkit.storage.atomic import remove_folder
from driftkit.storage.files import read_json, read_tensors, state_digest, write_json, write_tensors

SUFFIX = ".unfinished"
REQUEST_FILE = "request.json"
PARTS = "*.safetensors"
KEEP_EVERY_S = 10.0  # of sampling: at most so much of it is lost, and what is shorter writes nothing


class UnfinishedSamples:
    """What there is already of the images that a request asks for; image i is a function of the request and i.

    Args:
        output: what will be written.
        request: the settings that decide the images, as JSON data.

    Raises:
        UsageError: the images that are kept for `output` are of another request.
        ArtifactError: they are damaged.
    """

    def __init__(self, output: Path, request: Mapping[str, Any]):
        self.folder = output.with_name(f".{output.name}{SUFFIX}")
        self.request = dict(request)
        self.exists = (self.folder / REQUEST_FILE).is_file()
        self.kept: list[torch.Tensor] = []
        self._new: list[torch.Tensor] = []
        self._saved = 0.0
        if self.exists:
            if different := differences(read_json(self.folder / REQUEST_FILE), self.request):
                raise UsageError(
                    f"`output` {output}: the sampling that was begun there had other settings ({different}); give "
                    "these again, or another `output` to start over"
                )
            while (path := self._part(self.count)).is_file():
                self.kept.append(self._read(path))

    @property
    def count(self) -> int:
        """Number of images that there are."""
        return sum(map(len, self.kept))

    def begin(self, first: int) -> None:
        """Sampling goes on with this image: those from there on are made again."""
        if first < self.count:
            kept = torch.cat(self.kept)[:first]
            self.kept = []
            if first:
                self._write(kept)
            for path in self.folder.glob(PARTS):
                if path != self._part(0) or not first:
                    path.unlink()
        self._saved = time.monotonic()

    def add(self, images: torch.Tensor) -> None:
        """The next images, uint8 [n, 3, H, W]; they are written once sampling has taken some time."""
        self._new.append(images)
        if time.monotonic() - self._saved >= KEEP_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the images that were added."""
        if self._new:
            self.mark()
            part = torch.cat(self._new)
            self._write(part)
            self._new = []
        self._saved = time.monotonic()

    def mark(self) -> None:
        """Say that the output is being made: what has its name until it is finished is of this request."""
        if not self.exists:
            write_json(self.folder / REQUEST_FILE, self.request)
            self.exists = True

    def images(self) -> torch.Tensor:
        """All images, uint8 [N, 3, H, W]."""
        return torch.cat([*self.kept, *self._new])

    def finish(self) -> None:
        """The output is there: remove what was kept for it."""
        if self.exists:
            remove_folder(self.folder)

    def give_up(self) -> None:
        """The output could not be written: leave nothing but images that were worth keeping."""
        if self.folder.exists() and not any(self.folder.glob(PARTS)):
            remove_folder(self.folder)

    def _write(self, images: torch.Tensor) -> None:
        """Write the next part."""
        write_tensors(self._part(self.count), {"images": images}, header={"digest": state_digest({"images": images})})
        self.kept.append(images)

    def _read(self, path: Path) -> torch.Tensor:
        tensors, header = read_tensors(path)
        images = tensors.get("images", torch.empty(0))
        if not len(images) or state_digest({"images": images}) != header.get("digest"):
            raise ArtifactError(f"{path} is damaged; remove {self.folder} to start over")
        return images

    def _part(self, first: int) -> Path:
        return self.folder / f"{first:08d}.safetensors"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two requests differ, in words; empty where they do not."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"`{key}` was {before.get(key)!r:.60} and is {now.get(key)!r:.60} now" for key in keys[:3])
