"""What names images (a spec), and what the registry knows of a kind of source."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from driftkit.config.layers import did_you_mean
from driftkit.datasets.packs import ImagePack, RawImages
from driftkit.errors import UsageError


@dataclass(frozen=True)
class Spec:
    """A spec taken apart."""

    text: str
    target: str  # a name or a path
    query: dict[str, str]

    @property
    def path(self) -> Path:
        return Path(self.target)

    def require_keys(self, *known: str) -> None:
        """Refuse query keys that the source does not know by a UsageError that names all known ones."""
        for key in self.query:
            if key not in known:
                hint = did_you_mean(key, known)
                raise UsageError(f"{self.text}: unknown key {key!r}{hint}; known: {', '.join(known) or 'none'}")


@dataclass(frozen=True)
class Request:
    """What a source is opened with."""

    spec: Spec
    image_size: int | None  # side in pixels to which images are brought at the import; None leaves them as they are
    data_dir: Path  # of imports and downloads
    allow_download: bool = True  # fetch images that are not here
    url: str | None = None  # address to fetch them from; None: the source's own


class Source(Protocol):
    """Images that can be imported. An earlier import is reused where `digest` and options are the same."""

    @property
    def spec(self) -> str:
        """The text that named it."""

    @property
    def kind(self) -> str:
        """Key of its row in SOURCES."""

    @property
    def name(self) -> str:
        """Readable beginning of the pack's file name."""

    @property
    def label(self) -> str:
        """Name of these images next to a score."""

    def recorded_options(self) -> dict[str, Any]:
        """Import options for the card."""

    def digest(self) -> str:
        """Hex digest of what would be read, computed without reading pixels."""

    def read(self) -> RawImages:
        """Read, download or draw the images."""


@dataclass(frozen=True)
class SourceKind:
    """One kind of images; a new kind is one file and one row of SOURCES.

    Attributes:
        help: how its specs look, for messages.
        accepts: whether a spec is of this kind.
        open: the source, or a pack that needs no import; raises UsageError and ArtifactError.
        name: the word that its specs begin with; None where they are paths.
    """

    help: str
    accepts: Callable[[Spec], bool]
    open: Callable[[Request], Source | ImagePack]
    name: str | None = None
