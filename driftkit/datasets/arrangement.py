"""Which files of a folder or an archive are images, their order, and the class each belongs to."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from driftkit.datasets.containers import Container, Tar, natural_order
from driftkit.datasets.decode import SUFFIXES
from driftkit.datasets.labels import read_labels, sample_key
from driftkit.datasets.packs import UNLABELLED
from driftkit.datasets.shards import Shards
from driftkit.errors import ArtifactError, shortened

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
HEIC = frozenset({".heic", ".heif"})


@dataclass(frozen=True)
class Arrangement:
    """Image files in the order of the pack."""

    names: list[str]
    labels: list[int]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """The image files to read, before their classes are known."""

    names: list[str]
    start: int = 0  # folders at the head of every name that lie above the place where levels are counted

    def folders(self, name: str) -> list[str]:
        """The folders of a name below that place."""
        place = name.rpartition("/")[0]
        return place.split("/")[self.start :] if place else []

    def shared(self) -> list[str]:
        """The folders below that place in which all the files lie."""
        one_of_each = {name.rpartition("/")[0]: name for name in self.names}
        folders = [self.folders(name) for name in one_of_each.values()]
        least, greatest = min(folders), max(folders)  # what these two share, all between them share
        depth = 0
        while depth < len(least) and least[depth] == greatest[depth]:
            depth += 1
        return least[:depth]


def arrange(container: Container, split: str | None = None, class_level: int | None = None) -> Arrangement:
    """Order image files by name (numbers by value) and find their classes.

    Files that say labels go before folders; without any of them the images are unlabelled.

    Args:
        container: what holds the files.
        split: keep only what lies in this folder; None keeps all.
        class_level: which folder is the class: 1 is the first below the root or the split, 0 makes no classes. None:
            what label files say, else the first folder below those that all images share.

    Raises:
        ArtifactError: no images; splits and none named; labels that do not fit; or some images lie in class folders
            and some do not.
    """
    files, source = container.names(), container.path
    names = image_names(files, source)
    others = Counter(suffix for suffix in map(suffix_of, files) if suffix not in SUFFIXES)
    if isinstance(container, Tar | Shards):
        names, masks = _without_masks(names)
        others.update(masks)
    chosen = of_split(Chosen(names, start=int(isinstance(container, Shards))), source, split)
    found = read_labels(container, files, chosen.names) if class_level is None else None
    if found is None:
        arranged = by_folders(chosen, source, class_level)
    else:
        others.subtract(map(suffix_of, found.files))
        arranged = unlabelled(chosen) if found.classes is None else of_classes(chosen, found.classes)
    left_out = (f"left out: {counted(others)}",) if others.total() else ()
    return Arrangement(arranged.names, arranged.labels, arranged.classes, (*left_out, *arranged.notes))


def image_names(files: Sequence[str], source: Path) -> list[str]:
    """Those of the files that are images by their suffix, in natural order.

    Raises:
        ArtifactError: there are none.
    """
    names = sorted((name for name in files if suffix_of(name) in SUFFIXES), key=natural_order)
    if names:
        return names
    suffixes = Counter(map(suffix_of, files))
    there = f" ({counted(suffixes)})" if files else ""
    hint = f"expected {', '.join(sorted(SUFFIXES))}"
    if HEIC & suffixes.keys():
        hint = "HEIC images are not read; convert them, for example to .jpg or .png"
    elif ".tar" in suffixes:
        hint += ", or shards by name as in name-{000..007}.tar"
    raise ArtifactError(f"{source}: no images among {len(files)} files{there}; {hint}")


def of_split(chosen: Chosen, source: Path, split: str | None) -> Chosen:
    """What lies in the folder of a split; all where none is named and there are no splits to choose from.

    Raises:
        ArtifactError: there are several and none is named, or not the one that is.
    """
    shared = chosen.shared()
    depth = len(shared)
    tops = {folders[depth] for name in chosen.names if len(folders := chosen.folders(name)) > depth}
    if split is None:
        splits = sorted(top for top in tops if top.lower() in SPLITS)
        if len(splits) >= 2:
            inside = "/".join([*shared, splits[-1]])
            in_folder = source.is_dir() and not chosen.start
            advice = f"{source}/{inside}" if in_folder else f"{source}?split={splits[-1]}"
            raise ArtifactError(f"{source} holds the splits {', '.join(splits)}; name one, for example {advice}")
        return chosen
    if split in shared:
        return Chosen(chosen.names, chosen.start + shared.index(split) + 1)
    kept = [name for name in chosen.names if chosen.folders(name)[depth : depth + 1] == [split]]
    if not kept:
        existing = ", ".join(sorted(tops | set(shared), key=natural_order)[:8]) or "no folders"
        raise ArtifactError(f"{source} has no split {split!r}; it has {existing}")
    return Chosen(kept, chosen.start + depth + 1)


def by_folders(chosen: Chosen, source: Path, class_level: int | None = None) -> Arrangement:
    """Classes named by the folders at a level, which `arrange` explains; a note says where that is a guess."""
    depths = [len(chosen.folders(name)) for name in chosen.names]
    if class_level == 0:
        return unlabelled(chosen)
    if class_level is not None:
        if class_level > min(depths):
            name = chosen.names[depths.index(min(depths))]
            raise ArtifactError(
                f"{source}: {name} lies at level {min(depths)}, above `class_level` {class_level}; give a smaller one"
            )
        return of_classes(chosen, [chosen.folders(name)[class_level - 1] for name in chosen.names])
    if all(map(_is_in_chunk, chosen.names)):
        return unlabelled(chosen, "numbered folders are no classes")
    shared = chosen.shared()
    level = len(shared) + 1
    place = "/".join(shared)
    guessed = shared and shared[-1].lower() not in SPLITS and not source.name.startswith(shared[-1])
    if max(depths) < level:
        note = f"assumed no classes, since all images lie in {place}; ?class_level={level - 1} makes it their class"
        return unlabelled(chosen, *([note] if guessed else []))
    if min(depths) < level:
        name = chosen.names[depths.index(min(depths))]
        raise ArtifactError(
            f"{source}: {name} is next to class folders; expected every image in one, or none, or `class_level` 0"
        )
    classes = [chosen.folders(name)[level - 1] for name in chosen.names]
    notes = [f"assumed that the folders in {place} are the classes (class_level {level})"] if guessed else []
    if min(depths) > level and all(len(name) == 1 and name.isalpha() for name in classes):
        shown = shortened(sorted(set(classes)), 3)
        notes.append(f"assumed that {shown} are the classes; ?class_level={level + 1} takes the folders below them")
    return of_classes(chosen, classes, *notes)


def of_classes(chosen: Chosen, classes: Sequence[str], *notes: str) -> Arrangement:
    """Images of which each has a class; labels follow the natural order of the names that occur."""
    names = tuple(sorted(set(classes), key=natural_order))
    index = {name: i for i, name in enumerate(names)}
    return Arrangement(chosen.names, [index[name] for name in classes], names, notes)


def unlabelled(chosen: Chosen, *notes: str) -> Arrangement:
    """Images without classes."""
    return Arrangement(chosen.names, [UNLABELLED] * len(chosen.names), (), notes)


def _is_in_chunk(name: str) -> bool:
    """Whether a file's number says in which folder it lies, as 00001/img00001234.png and 001000/001234.png of EDM.

    FFHQ has folders like EDM's, with numbers of five digits.
    """
    *_, folder, file = ["", *name.split("/")]
    stem = file.rpartition(".")[0]
    if re.fullmatch(r"img\d{8}", stem):
        return stem[3:8] == folder
    return re.fullmatch(r"\d{5,}", stem) is not None and stem[:-3] + "000" == folder


def _without_masks(names: list[str]) -> tuple[list[str], Counter[str]]:
    """Names without the 000001.seg.png of samples that have a 000001.jpg, as webdataset has it; and their endings."""
    plain = {name for name in names if name.rpartition("/")[2].count(".") == 1}
    keys = set(map(sample_key, plain))
    kept = [name for name in names if name in plain or sample_key(name) not in keys]
    return kept, Counter(name[len(sample_key(name)) :].lower() for name in set(names) - set(kept))


def suffix_of(name: str) -> str:
    """The ending of a file's name with its dot, in lower case; empty where there is none."""
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot:].lower() if dot > 0 else ""


def counted(suffixes: Counter[str]) -> str:
    """How many files there are of each ending, most first, for example "12 .txt, 3 .heic"."""
    shown = sorted((-count, suffix) for suffix, count in suffixes.items() if count)
    return shortened([f"{-count:,} {suffix or 'without ending'}" for count, suffix in shown], 5)
