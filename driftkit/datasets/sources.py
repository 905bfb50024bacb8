"""From the text that names images (a spec) to an open pack: everything but a pack is imported once, then reused."""

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl

from driftkit.config.layers import did_you_mean
from driftkit.datasets.arrays import ARRAY_KIND
from driftkit.datasets.cifar10 import CIFAR10_KIND
from driftkit.datasets.cifar100 import CIFAR100_KIND
from driftkit.datasets.containers import open_container
from driftkit.datasets.folder import ARCHIVE_KIND, FOLDER_KIND, SHARDS_KIND
from driftkit.datasets.packs import SUFFIX, ImagePack, PackSource, import_pack, is_finished, open_pack, pack_path
from driftkit.datasets.parquet import PARQUET_KIND
from driftkit.datasets.shapes import SHAPES_KIND
from driftkit.datasets.spec import Request, Source, SourceKind, Spec
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.runtime.progress import phase
from driftkit.runtime.ranks import Ranks
from driftkit.storage.files import digest_json
from driftkit.storage.lock import locked_file

LAYOUT = 2  # part of every key: raise it when an import of the same files gives other pixels or labels


def _is_pack(spec: Spec) -> bool:
    return spec.path.suffix == SUFFIX or (not spec.path.exists() and pack_path(spec.path).is_file())


def _open_pack(request: Request) -> ImagePack:
    request.spec.require_keys()
    return open_pack(request.spec.path)


# Later rows are asked first: a name goes before a pack of that name, and a special kind of folder before any folder.
SOURCES: dict[str, SourceKind] = {
    "archive": ARCHIVE_KIND,
    "folder": FOLDER_KIND,
    "shards": SHARDS_KIND,
    "parquet": PARQUET_KIND,
    "cifar10": CIFAR10_KIND,
    "cifar100": CIFAR100_KIND,
    "pack": SourceKind("a pack (.safetensors)", _is_pack, _open_pack),
    "array": ARRAY_KIND,
    "shapes": SHAPES_KIND,
}


def data_directory(data_dir: Path | None = None) -> Path:
    """Folder of imported packs: the argument, else the variable DRIFTKIT_DATA_DIR, else `data`."""
    folder = Path(data_dir or os.environ.get("DRIFTKIT_DATA_DIR") or "data")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"folder of imported images (DRIFTKIT_DATA_DIR) {folder}: expected a folder, got a file")
    return folder


def open_dataset(
    spec: str,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    data_dir: Path | None = None,
    ranks: Ranks | None = None,
    allow_download: bool = True,
    url: str | None = None,
) -> ImagePack:
    """Open the images that a spec names, memory-mapped; import them first if they are not in a pack yet.

    Args:
        spec: a name (with `?key=value&...` or `:split`), a folder, an archive or a pack.
        image_size, data_dir, allow_download, url: as in `Request`.
        limit: largest number of images, in equal shares of the classes, which are then in memory; None uses all.
        ranks: peers of this process; only the first one imports or downloads, the others wait.

    Raises:
        UsageError: the spec or an option does not fit.
        ArtifactError: what the spec names is absent, broken, or of another size than asked for.
    """
    ranks = ranks or Ranks()
    if limit is not None and limit < 1:
        raise UsageError(f"`limit` {limit}: expected at least 1 image")
    if not ranks.is_main:
        ranks.barrier()
    try:
        with phase(f"reading images {spec}"):
            source = resolve(spec, image_size=image_size, data_dir=data_dir, allow_download=allow_download, url=url)
            if isinstance(source, ImagePack):
                _require_pack_size(source, image_size, spec)
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
    url: str | None = None,
) -> Source | ImagePack:
    """What a spec names: an open pack, or a source that can be imported. The arguments are those of `open_dataset`.

    Raises:
        UsageError: a query key or value does not fit.
        ArtifactError: there is nothing of that name.
    """
    request = Request(parse_spec(spec), image_size, data_directory(data_dir), allow_download, url)
    for kind in reversed(SOURCES.values()):
        if kind.accepts(request.spec):
            return kind.open(request)
    if not request.spec.path.exists():
        hint = did_you_mean(request.spec.target.partition(":")[0], _names())
        raise NotFoundError(f"{request.spec.target}: no such file or folder{hint}; expected {_expected()}")
    open_container(request.spec.path)  # which says what it takes
    raise ArtifactError(f"{spec}: expected {_expected()}")


def require_there(spec: str) -> None:
    """Refuse a path that is not there, as `resolve` does, without opening what it names."""
    parsed = parse_spec(spec)
    if not any(kind.accepts(parsed) for kind in SOURCES.values()) and not parsed.path.exists():
        resolve(spec, allow_download=False)


def import_path(source: Source, data_dir: Path | None = None) -> Path:
    """The pack that an import of `source` goes to; its name holds a digest of what would be read."""
    key = digest_json({"layout": LAYOUT, "kind": source.kind, "digest": source.digest(), **source.recorded_options()})
    size = source.recorded_options().get("image_size")
    name = source.label + (f"-{size}px" if size else "")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or source.kind
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
    record = source_record(source).model_copy(update={"verified": raw.verified})
    return import_pack(path, raw, source=record, label=source.label)


def source_record(source: Source) -> PackSource:
    """What a card says about the origin before the images are read."""
    return PackSource(spec=source.spec, kind=source.kind, options=source.recorded_options(), digest=source.digest())


def _require_pack_size(pack: ImagePack, image_size: int | None, spec: str) -> None:
    """Refuse a pack of another size than asked for: resizing is an import, never done in passing."""
    got = (pack.card.width, pack.card.height)
    if image_size is not None and got != (image_size, image_size):
        raise ArtifactError(
            f"{pack.path}: images are {got[0]}x{got[1]} px, expected {image_size}x{image_size}; "
            f"resized ones: driftkit data {spec} --image-size {image_size} --output NEW.safetensors"
        )


def parse_spec(spec: str) -> Spec:
    """Take a spec apart; `NAME:SPLIT` and `NAME?split=SPLIT` are the same, for a path, too.

    Raises:
        UsageError: the spec is empty, or its query is no `key=value&...`.
    """
    if not spec.strip():
        raise UsageError(f"the name of the images is empty; expected {_expected()}")
    if Path(spec).exists() and spec not in _names():
        return Spec(spec, spec, {})  # a file's name may have a question mark
    target, mark, text = spec.partition("?")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True) if mark and text else []
    except ValueError:
        raise UsageError(f"{spec}: expected key=value&key=value after the question mark, got {text!r}") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise UsageError(f"{spec}: a key is given twice; give it once")
    name, colon, split = target.rpartition(":")
    if colon and (name in _names() or (name and Path(name).exists() and not Path(target).exists())):
        if "split" in query:
            raise UsageError(f"{spec}: names the split twice; give {name}:{split} or {name}?split={split}")
        target, query = name, {"split": split, **query}
    return Spec(spec, target, query)


def names_a_place(spec: str) -> bool:
    """Whether a spec says where images lie, so that their content decides and not their name."""
    return parse_spec(spec).target not in _names()


def _names() -> list[str]:
    return [kind.name for kind in SOURCES.values() if kind.name]


def _expected() -> str:
    *others, last = (kind.help for kind in reversed(SOURCES.values()))
    return f"{', '.join(others)} or {last}"
