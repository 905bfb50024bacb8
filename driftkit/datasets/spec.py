"""What names images (a spec), what can be named, and what the registry knows of a kind of source. Loads no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union

from driftkit.config.layers import did_you_mean
from driftkit.errors import UsageError

if TYPE_CHECKING:
    from driftkit.datasets.packs import ImagePack, RawImages


@dataclass(frozen=True)
class Format:
    """One line of what can be named, for `driftkit data --help`; the table in datasets/README.md has a row for it."""

    looks: str  # how it is named
    what: str  # what it is, in a few words


# By key of SOURCES, in the order of the help text. Here and not in the rows, since --help does not load torch.
FORMATS: dict[str, tuple[Format, ...]] = {
    "shapes": (Format("shapes", "generated shapes, ten classes"),),
    "cifar10": (
        Format("cifar10", "CIFAR-10, downloaded if it is not there"),
        Format("cifar-10-python.tar.gz", "its archive or folder, or the binary one"),
    ),
    "cifar100": (
        Format("cifar100", "CIFAR-100 from the data folder; ?labels=coarse"),
        Format("cifar-100-python.tar.gz", "its archive or folder, or the binary one"),
        Format("root/", "torchvision's folder of either; ?split=test"),
    ),
    "parquet": (Format("name.parquet", "a file of the Hub, or a folder of them"),),
    "array": (
        Format("images.npz", "an array and its labels; .npy, .pt, .safetensors"),
        Format("images.npy?range=-1,1", "floating-point images in a stated range"),
    ),
    "folder": (
        Format("photos/", "image files, in class folders or none"),
        Format("edm/", "the same with a dataset.json (EDM, StyleGAN)"),
    ),
    "archive": (Format("photos.zip", "an archive of them: .zip, .tar, .tar.gz, ..."),),
    "shards": (Format("name-{000..007}.tar", "webdataset shards; or a folder of only those"),),
    "pack": (Format("photos.safetensors", "what an import wrote"),),
}


OF_FILES = {
    "class_level": "folders, archives and shards",
    "skip_broken": "images in folders, archives, shards and Parquet",
}
"""Keys that have options of `driftkit data`, which are given for any spec, and what they are for."""


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
                if key in OF_FILES:
                    raise UsageError(f"{self.text}: `{key}` is for {OF_FILES[key]}, and this is none; remove it")
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
    def label(self) -> str:
        """Name of these images: next to a score, and at the beginning of the pack's file name."""

    def recorded_options(self) -> dict[str, Any]:
        """Import options for the card, `image_size` among them where images are resized."""

    def digest(self) -> str:
        """Hex digest of what would be read, computed without reading pixels."""

    def read(self) -> "RawImages":
        """Read, download or draw the images."""


@dataclass(frozen=True)
class SourceKind:
    """One kind of images; a new kind is one file and one row of SOURCES, and of FORMATS for the help text.

    Attributes:
        help: how its specs look, for messages.
        accepts: whether a spec is of this kind.
        open: the source, or a pack that needs no import; raises UsageError and ArtifactError.
        name: the word that its specs begin with; None where they are paths.
    """

    help: str
    accepts: Callable[[Spec], bool]
    open: Callable[[Request], Union[Source, "ImagePack"]]
    name: str | None = None
