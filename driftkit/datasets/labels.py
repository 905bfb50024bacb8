"""Labels that stand in files next to the images: EDM's and StyleGAN's dataset.json, webdataset's .cls and .json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from driftkit.datasets.containers import Container, Tar
from driftkit.datasets.shards import Shards
from driftkit.errors import ArtifactError, shortened
from driftkit.storage.json_text import from_json

LIST_NAME = "dataset.json"
LABEL_KEYS = ("label", "cls", "class")
FIX = "mend it, or leave it out with `class_level` 0"


@dataclass(frozen=True)
class FileLabels:
    """What label files say."""

    files: list[str]  # names of the files
    classes: list[str] | None  # the class of each image; None where they say that there are none


def read_labels(container: Container, files: Sequence[str], images: Sequence[str]) -> FileLabels | None:
    """The classes that a dataset.json above all images gives them, or a .cls or .json next to each.

    A dataset.json of EDM and StyleGAN holds as `labels` null, pairs `["00000/img00000000.png", 6]`, or a mapping of
    names to labels; or it is that mapping. Next to 000001.jpg, 000001.cls holds a number; a 000001.json in a tar
    archive holds a number or a name for one of `LABEL_KEYS`, and is looked at where there is no .cls.

    Args:
        container: what holds the files.
        files: names of all of them.
        images: names of those that need a class.

    Returns:
        None where no file says anything.

    Raises:
        ArtifactError: a file is broken, a label is a vector, an image has none, or one is of a file that is not there.
    """
    return _from_list(container, files, images) or _from_samples(container, files, images)


def _from_list(container: Container, files: Sequence[str], images: Sequence[str]) -> FileLabels | None:
    there = set(files)
    for parent in PurePosixPath(images[0]).parents:
        folder = "" if str(parent) == "." else f"{parent}/"
        name = folder + LIST_NAME
        if name not in there or not all(image.startswith(folder) for image in images):
            continue
        place = f"{container.path}: {name}"
        labels = _labels_in(_json(dict(container.contents({name}))[name], place), place)
        if labels is None:
            return FileLabels([name], None)
        classes: dict[str, str] = {}
        for key, value in labels:
            file = folder + str(key).replace("\\", "/")
            if file in classes or file not in there:
                what = "which is not there" if file not in there else "twice"
                raise ArtifactError(f"{place} names {file}, {what}; {FIX}")
            classes[file] = class_name(value, f"{place}: {file}")
        return FileLabels([name], _of_all(images, images, classes, place))
    return None


def _labels_in(document: Any, place: str) -> list[tuple[Any, Any]] | None:
    if isinstance(document, Mapping):
        labels = document.get("labels", document)
        if labels is None:
            return None
        if isinstance(labels, Mapping):
            return list(labels.items())
        if isinstance(labels, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in labels):
            return [(name, label) for name, label in labels]
    raise ArtifactError(f'{place}: expected {{"labels": [["NAME.png", 6], ...]}} or null; {FIX}')


def _from_samples(container: Container, files: Sequence[str], images: Sequence[str]) -> FileLabels | None:
    keys = list(map(sample_key, images))
    known = set(keys)
    for suffix in (".cls", ".json") if isinstance(container, Tar | Shards) else (".cls",):
        label_files = {file for file in files if file.endswith(suffix) and file[: -len(suffix)] in known}
        classes: dict[str, str] = {}
        for name, data in container.contents(label_files) if label_files else ():
            place = f"{container.path}: {name}"
            value = _number(data, place) if suffix == ".cls" else _label_in(_json(data, place))
            if value is not None:
                classes[sample_key(name)] = class_name(value, place)
        if classes:
            return FileLabels(sorted(label_files), _of_all(images, keys, classes, f"{container.path}: {suffix} files"))
    return None


def sample_key(name: str) -> str:
    """What the files of one sample share: the name up to the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _json(data: bytes, place: str) -> Any:
    try:
        return from_json(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{place} is not readable JSON: {error}; {FIX}") from None


def _label_in(document: Any) -> Any:
    known = document if isinstance(document, Mapping) else {}
    return next((known[key] for key in LABEL_KEYS if key in known), None)


def _number(data: bytes, place: str) -> int:
    try:
        return int(data)
    except ValueError:
        raise ArtifactError(f"{place} holds {data[:20]!r}, expected a whole number; {FIX}") from None


def class_name(label: Any, place: str) -> str:
    """The class that a label names: a whole number as text, or a name as it is.

    Raises:
        ArtifactError: it is neither.
    """
    if isinstance(label, str) and label:
        return label
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        return str(label)
    what = f"a vector of {len(label)}" if isinstance(label, list) else repr(label)[:40]
    raise ArtifactError(f"{place}: the label is {what}, expected a whole number from 0 on, or a name; {FIX}")


def _of_all(images: Sequence[str], keys: Sequence[str], classes: Mapping[str, str], place: str) -> list[str]:
    """The class of every image, whose keys in `classes` are given."""
    bare = [image for image, key in zip(images, keys, strict=True) if key not in classes]
    if bare:
        some = f"{len(images) - len(bare):,} of {len(images):,} images"
        raise ArtifactError(f"{place}: labels for {some}, none for {shortened(bare, 2)}; {FIX}")
    return [classes[key] for key in keys]
