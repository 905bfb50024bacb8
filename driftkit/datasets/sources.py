"""From the text that names images (a spec) to an open pack: everything but a pack is imported once, then reused."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

from pydantic import ValidationError

from driftkit.datasets.cifar10 import SPLITS, Cifar10Source, archive_url, find_cifar10, is_cifar10
from driftkit.datasets.containers import open_container
from driftkit.datasets.folder import FolderSource
from driftkit.datasets.packs import (
    SUFFIX,
    ImagePack,
    PackSource,
    RawImages,
    is_finished,
    open_pack,
    pack_path,
    write_pack,
)
from driftkit.datasets.shapes import ShapesOptions, ShapesSource
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.runtime.ranks import Ranks
from driftkit.storage.files import digest_json
from driftkit.storage.lock import locked_file

LAYOUT = 1  # part of every key: raise it when an import of the same files gives other pixels
NAMED = ("shapes", "cifar10")
KINDS = (
    "shapes[?split=test&image_size=16&...], cifar10[?split=test], a folder of images, "
    "a .zip, .tar or .tar.gz of images, or a pack (.safetensors)"
)


class Source(Protocol):
    """Images that can be imported. What `digest` covers decides whether an earlier import is reused."""

    @property
    def spec(self) -> str:
        """The text that named it."""
        ...

    @property
    def kind(self) -> str:
        """shapes, cifar10, folder or archive."""
        ...

    @property
    def name(self) -> str:
        """Readable beginning of the pack's file name."""
        ...

    @property
    def label(self) -> str:
        """How to name these images beside a figure."""
        ...

    def recorded_options(self) -> dict[str, Any]:
        """Import options for the card."""
        ...

    def digest(self) -> str:
        """Hex digest of what would be read, found without reading pixels."""
        ...

    def read(self) -> RawImages:
        """Read, download or draw the images."""
        ...


@dataclass(frozen=True)
class Spec:
    """A spec taken apart."""

    text: str
    target: str  # shapes, cifar10 or a path
    query: dict[str, str]


def data_directory(data_dir: Path | None = None) -> Path:
    """Where imported packs live: the argument, else the variable DRIFTKIT_DATA_DIR, else `data`."""
    return Path(data_dir or os.environ.get("DRIFTKIT_DATA_DIR") or "data")


def open_dataset(
    spec: str,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    data_dir: Path | None = None,
    ranks: Ranks | None = None,
    allow_download: bool = True,
    cifar10_url: str | None = None,
) -> ImagePack:
    """Open the images that a spec names; import them first if they are not in a pack yet.

    Args:
        spec: `shapes`, `cifar10` (either with `?key=value&...` or `:split`), a folder, an archive or a pack.
        image_size: side in pixels to which images are brought at the import; None leaves them as they are.
        limit: use at most so many, in equal shares of the classes; None uses all.
        data_dir: where imported packs go; see `data_directory`.
        ranks: peers of this process; only the first one imports or downloads, the others wait.
        allow_download: fetch CIFAR-10 where it is not found.
        cifar10_url: where to fetch it from; see `cifar10.archive_url`.

    Returns:
        The pack, memory-mapped unless `limit` picks a part of it.

    Raises:
        UsageError: the spec or an option does not fit.
        ArtifactError: what the spec names is absent, broken, or of another size than asked for.
    """
    ranks = ranks or Ranks()
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: expected at least 1 image")
    if not ranks.is_main:
        ranks.barrier()
    try:
        source = resolve(
            spec, image_size=image_size, data_dir=data_dir, allow_download=allow_download, cifar10_url=cifar10_url
        )
        if isinstance(source, ImagePack):
            require_size(source, image_size, spec)
            pack = source
            if ranks.is_main:
                pack.verify()
        else:
            path = import_path(source, data_dir)
            if not ranks.is_main and not is_finished(path):
                raise NotFoundError(
                    f"{spec}: the first rank left no pack at {path}; its message says why, "
                    "or DRIFTKIT_DATA_DIR is not shared between the machines"
                )
            pack = _import_once(source, path) if ranks.is_main else open_pack(path)
    finally:
        # In a `finally`, so that an error here does not leave the other ranks waiting.
        if ranks.is_main:
            ranks.barrier()
    return pack if limit is None else pack.limited(limit)


def resolve(
    spec: str,
    *,
    image_size: int | None = None,
    data_dir: Path | None = None,
    allow_download: bool = True,
    cifar10_url: str | None = None,
) -> Source | ImagePack:
    """What a spec names: an open pack, or a source that can be imported. The arguments are those of `open_dataset`.

    Raises:
        UsageError: a query key or value does not fit.
        ArtifactError: there is nothing of that name.
    """
    parsed = parse_spec(spec)
    if parsed.target == "shapes":
        return ShapesSource(_shapes_options(parsed, image_size), spec=spec)
    path = Path(parsed.target)
    if path.suffix == SUFFIX or (not path.exists() and pack_path(path).is_file()):
        check_keys(parsed, ())
        return open_pack(path)
    directory = data_directory(data_dir)
    if parsed.target == "cifar10" or is_cifar10(path):
        check_keys(parsed, ("split",))
        split = parsed.query.get("split", "train")
        if split not in SPLITS:
            raise UsageError(f"{spec}: split is {split}, expected train or test")
        found = find_cifar10(directory) if parsed.target == "cifar10" else path
        url = archive_url(cifar10_url) if allow_download else None
        return Cifar10Source(spec, split, found, directory, url, image_size)
    if not path.exists():
        raise NotFoundError(_not_there(parsed))
    if (path / "manifest.json").is_file() and (path / "checkpoints").is_dir():
        raise UsageError(
            f"{spec}: is a run, whose pictures are grids; name images, or what driftkit sample {spec} makes"
        )
    check_keys(parsed, ("split",))
    source = FolderSource(path, spec, parsed.query.get("split"), image_size)
    open_container(path)
    return source


def import_path(source: Source, data_dir: Path | None = None) -> Path:
    """The pack that an import of `source` goes to; its name holds a digest of what would be read."""
    key = digest_json({"layout": LAYOUT, "kind": source.kind, "digest": source.digest(), **source.recorded_options()})
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip("-.") or source.kind
    return data_directory(data_dir) / f"{readable}-{key[:12]}{SUFFIX}"


def _import_once(source: Source, path: Path) -> ImagePack:
    """The pack of a source: the one that is there, or that another process is making, or an import."""
    if not is_finished(path):
        with locked_file(path):
            if not is_finished(path):  # nobody made it while this process waited
                return import_source(source, path)
    pack = open_pack(path)
    pack.verify()
    return pack


def import_source(source: Source, path: Path) -> ImagePack:
    """Read a source and write it as the pack `path`."""
    raw = source.read()
    return write_pack(
        path,
        raw.images,
        raw.labels,
        raw.classes,
        source=source_record(source).model_copy(update={"verified": raw.verified}),
        label=source.label,
        notes=raw.notes,
    )


def source_record(source: Source) -> PackSource:
    """What a card says about the origin before the images are read."""
    return PackSource(spec=source.spec, kind=source.kind, options=source.recorded_options(), digest=source.digest())


def require_size(pack: ImagePack, image_size: int | None, spec: str) -> None:
    """Refuse a pack of another size than asked for: resizing is an import, never done in passing.

    Raises:
        ArtifactError: the sizes differ.
    """
    got = (pack.card.width, pack.card.height)
    if image_size is not None and got != (image_size, image_size):
        raise ArtifactError(
            f"{pack.path}: images are {got[0]}x{got[1]} px, expected {image_size}x{image_size}; "
            f"resized ones: driftkit data {spec} --image-size {image_size} --output NEW.safetensors"
        )


def parse_spec(spec: str) -> Spec:
    """Take a spec apart: `NAME:SPLIT` and `NAME?split=SPLIT` are the same for shapes and cifar10.

    Raises:
        UsageError: the spec is empty, or its query is no `key=value&...`.
    """
    if not spec.strip():
        raise UsageError(f"the name of the images is empty; expected {KINDS}")
    if Path(spec).exists() and spec not in NAMED:
        return Spec(spec, spec, {})  # a question mark may stand in a file's name
    target, mark, text = spec.partition("?")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True) if mark and text else []
    except ValueError:
        raise UsageError(f"{spec}: expected key=value&key=value behind the question mark, got {text!r}") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise UsageError(f"{spec}: a key stands there twice; give it once")
    name, colon, split = target.partition(":")
    if colon and name in NAMED:
        if "split" in query:
            raise UsageError(f"{spec}: names the split twice; give {name}:{split} or {name}?split={split}")
        target, query = name, {"split": split, **query}
    return Spec(spec, target, query)


def _shapes_options(spec: Spec, image_size: int | None) -> ShapesOptions:
    check_keys(spec, tuple(ShapesOptions.model_fields))
    values: dict[str, Any] = dict(spec.query)
    if image_size is not None:
        if spec.query.get("image_size", str(image_size)) != str(image_size):
            raise UsageError(f"{spec.text}: has another image size than the option ({image_size}); give one of them")
        values["image_size"] = image_size
    try:
        return ShapesOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        raise UsageError(f"{spec.text}: {key} is {first['input']}: {first['msg']}") from None


def check_keys(spec: Spec, known: tuple[str, ...]) -> None:
    """Refuse query keys that the target does not know.

    Raises:
        UsageError: names the key, a likely one, and all known ones.
    """
    for key in spec.query:
        if key not in known:
            raise UsageError(f"{spec.text}: unknown key {key!r}{_did_you_mean(key, known)}; known: {', '.join(known)}")


def _did_you_mean(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _not_there(spec: Spec) -> str:
    hint = _did_you_mean(spec.target.partition(":")[0], NAMED)
    return f"{spec.target}: no such file or folder{hint or ','} expected {KINDS}"
