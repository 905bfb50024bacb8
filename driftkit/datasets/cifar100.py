"""CIFAR-100 as its authors publish it, read as CIFAR-10 is: 100 fine classes, or `?labels=coarse` with 20 of them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from driftkit.datasets.cifar10 import (
    BatchLayout,
    assumed_split,
    check_md5,
    find_cifar10,
    named_split,
    parse_batch,
    read_file,
    read_members,
)
from driftkit.datasets.decode import resize_images
from driftkit.datasets.packs import RawImages
from driftkit.datasets.spec import Request, SourceKind
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.runtime.progress import warn
from driftkit.storage.files import digest_json

ARCHIVE_MD5S = {
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
}
PYTHON_FOLDER, BINARY_FOLDER = FOLDERS = ("cifar-100-python", "cifar-100-binary")
FILE_MD5S = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
FINE = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip
COARSE = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
    "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
    "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
)  # fmt: skip
LABELS = {"fine": FINE, "coarse": COARSE}
LAYOUTS = {
    "fine": BatchLayout(len(FINE), "fine_labels", label_bytes=2, label_byte=1),
    "coarse": BatchLayout(len(COARSE), "coarse_labels", label_bytes=2, label_byte=0),
}


@dataclass(frozen=True)
class Cifar100Source:
    """CIFAR-100 as a source of images."""

    spec: str
    path: Path  # an archive, an extracted folder, or a file of the binary edition
    split: str
    labels: str = "fine"
    image_size: int | None = None
    notes: tuple[str, ...] = ()
    kind: str = "cifar100"

    @property
    def label(self) -> str:
        return f"cifar100 {self.split}" + (" coarse" if self.labels == "coarse" else "")

    def recorded_options(self) -> dict[str, Any]:
        size = {"image_size": self.image_size} if self.image_size else {}
        return {"split": self.split, "labels": self.labels, **size}

    def digest(self) -> str:
        # Both editions hold the same images in the same order; an archive with another checksum is refused.
        return digest_json(FILE_MD5S[self.split] if self.path.name in ARCHIVE_MD5S else self._md5)

    def read(self) -> RawImages:
        verified: bool | None = True
        if self.path.name in ARCHIVE_MD5S:
            check_md5(self.path, ARCHIVE_MD5S[self.path.name])
            suffix = ".bin" if "binary" in self.path.name else ""
            ((name, data),) = read_members(self.path, [self.split + suffix], FOLDERS)
            place = f"{self.path}: {name}"
        else:
            place, data, verified = str(self._file), read_file(self._file), self._verified()
        images, labels = parse_batch(data, place, LAYOUTS[self.labels])
        if self.image_size is not None:
            images = resize_images(images, self.image_size)
        return RawImages(images, labels, LABELS[self.labels], self.notes, verified)

    @cached_property
    def _file(self) -> Path:
        files = [self.path] if not self.path.is_dir() else [self.path / self.split, self.path / f"{self.split}.bin"]
        return next((file for file in files if file.is_file()), files[0])

    @cached_property
    def _md5(self) -> str:
        return hashlib.md5(read_file(self._file)).hexdigest()

    def _verified(self) -> bool | None:
        """Whether the file has the known checksum; None for the binary edition, of which none is known."""
        if self._file.suffix == ".bin":
            return None
        expected = FILE_MD5S[self.split]
        if self._md5 != expected:
            warn(f"{self._file}: md5 {self._md5}, expected {expected}; the pack is unverified")
        return self._md5 == expected


def find_cifar100(folder: Path) -> Path | None:
    """An archive or an extracted folder in a folder."""
    names = ("cifar-100-python.tar.gz", PYTHON_FOLDER, "cifar-100-binary.tar.gz", BINARY_FOLDER)
    return next((folder / name for name in names if (folder / name).exists()), None)


def is_cifar100(path: Path) -> bool:
    """Whether a path is an original archive or a file of the binary edition, by its name, or a folder of either."""
    files = [f"{split}{suffix}" for split in FILE_MD5S for suffix in ("", ".bin")]
    if not path.is_dir():
        return (path.name in ARCHIVE_MD5S and path.is_file()) or (
            path.name in files and path.suffix == ".bin" and path.is_file()
        )
    # `train` and `test` are names of many things, so that the names of the classes must lie next to them.
    is_named = path.name in FOLDERS or any((path / name).is_file() for name in ("meta", "fine_label_names.txt"))
    return (is_named and any((path / name).is_file() for name in files)) or find_cifar100(path) is not None


def _open(request: Request) -> Cifar100Source:
    spec, path = request.spec, request.spec.path
    notes: tuple[str, ...] = ()
    split, labels = named_split(spec), spec.query.get("labels", "fine")
    if labels not in LABELS:
        raise UsageError(f"{spec.text}: labels is {labels}, expected {' or '.join(LABELS)}")
    if path.suffix == ".bin":
        spec.require_keys("labels")
        return Cifar100Source(spec.text, path, path.stem, labels, request.image_size)
    spec.require_keys("split", "labels")
    folder = request.data_dir if spec.target == "cifar100" else path
    found = find_cifar100(folder) if folder.is_dir() else None
    if spec.target == "cifar100":
        if found is None:
            archive, md5 = next(iter(ARCHIVE_MD5S.items()))
            raise NotFoundError(f"CIFAR-100 is not in {folder}/; place {archive} (md5 {md5}) there, or name its path")
        path = found
    elif found is not None:
        if (other := find_cifar10(path)) is not None:
            raise ArtifactError(f"{path} holds CIFAR-10 and CIFAR-100; name one, {other} or {found}")
        path, notes = found, assumed_split(spec, found)
    return Cifar100Source(spec.text, path, split, labels, request.image_size, notes)


CIFAR100_KIND = SourceKind(
    "cifar100[?split=test&labels=coarse]",
    lambda spec: spec.target == "cifar100" or is_cifar100(spec.path),
    _open,
    name="cifar100",
)
