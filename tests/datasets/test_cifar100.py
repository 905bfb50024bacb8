"""CIFAR-100: both editions, both kinds of labels, and torchvision's root folder."""

import hashlib
import tarfile

import numpy as np
import pytest
import torch

from driftkit.datasets import cifar100
from driftkit.datasets.cifar100 import COARSE, FINE
from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError, UsageError
from tests.datasets.test_cifar10 import python2_pickle

dump = __import__("pickle").dumps  # tests write pickles; the package reads none

COUNTS = {"train": 6, "test": 4}
FINE_LABELS, COARSE_LABELS = [99, 0, 47, 12, 3, 50], [13, 4, 17, 9, 0, 16]


def pixels(split):
    return np.random.default_rng(len(split)).integers(0, 256, (COUNTS[split], 3072), dtype=np.uint8)


def python_batch(split):
    fine, coarse = FINE_LABELS[: COUNTS[split]], COARSE_LABELS[: COUNTS[split]]
    return python2_pickle(pixels(split), fine, key="fine_labels", coarse_labels=coarse)


def binary_batch(split):
    rows = zip(pixels(split), FINE_LABELS, COARSE_LABELS, strict=False)
    return b"".join(bytes([coarse, fine]) + row.tobytes() for row, fine, coarse in rows)


@pytest.fixture
def root(tmp_path):
    """A folder with both editions, extracted."""
    for folder, suffix, batch in (("python", "", python_batch), ("binary", ".bin", binary_batch)):
        (tmp_path / f"root/cifar-100-{folder}").mkdir(parents=True)
        for split in COUNTS:
            (tmp_path / f"root/cifar-100-{folder}" / f"{split}{suffix}").write_bytes(batch(split))
    return tmp_path / "root"


def check(pack, split="train", coarse=False):
    assert torch.equal(pack.images.flatten(1), torch.from_numpy(pixels(split)))
    assert pack.labels.tolist() == (COARSE_LABELS if coarse else FINE_LABELS)[: COUNTS[split]]
    assert pack.classes == (COARSE if coarse else FINE)
    assert pack.card.label == f"cifar100 {split}" + (" coarse" if coarse else "")


def test_names_of_the_classes_are_those_of_the_authors():
    assert (len(set(FINE)), len(set(COARSE))) == (100, 20)
    assert list(FINE) == sorted(FINE)
    assert list(COARSE) == sorted(COARSE)


@pytest.mark.parametrize("edition", ["python", "binary"])
def test_extracted_folder_is_read_with_either_labels(root, edition, capsys):
    folder = root / f"cifar-100-{edition}"
    check(open_dataset(str(folder)))
    check(open_dataset(f"{folder}:test"), "test")
    check(open_dataset(f"{folder}?split=test&labels=coarse"), "test", coarse=True)
    # The checksums of the files are not the published ones; of the binary edition none are known.
    verified = open_dataset(str(folder)).card.source.verified
    assert verified is (False if edition == "python" else None)
    assert ("the pack is unverified" in capsys.readouterr().err) is (edition == "python")


@pytest.mark.parametrize("edition", ["python", "binary"])
def test_archive_with_the_published_checksum_is_read(root, monkeypatch, tmp_path, edition):
    archive = tmp_path / "data" / f"cifar-100-{edition}.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / f"cifar-100-{edition}", f"cifar-100-{edition}")
    with pytest.raises(ArtifactError, match="is not the original archive"):
        open_dataset(str(archive))
    monkeypatch.setitem(cifar100.ARCHIVE_MD5S, archive.name, hashlib.md5(archive.read_bytes()).hexdigest())
    for spec in (str(archive), "cifar100"):
        check(open_dataset(spec))
        assert open_dataset(spec).card.source.verified is True
    check(open_dataset("cifar100?labels=coarse"), coarse=True)


def test_a_file_of_the_binary_edition_is_read(root):
    check(open_dataset(f"{root}/cifar-100-binary/test.bin?labels=coarse"), "test", coarse=True)


def test_root_folder_of_torchvision_is_read_and_the_split_is_said(root):
    pack = open_dataset(str(root))
    check(pack)
    assert pack.card.notes == ("the train split of cifar-100-python; ?split=test names the other one",)
    check(open_dataset(f"{root}:test"), "test")
    (root / "cifar-10-batches-py").mkdir()
    with pytest.raises(ArtifactError, match=r"CIFAR-10 and CIFAR-100; name one, .*cifar-10-batches-py or"):
        open_dataset(str(root))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fine_labels": [1, 2]}, "6 images and 2 labels"),
        ({"fine_labels": [100] * 6}, "labels 100 to 100, expected 0 to 99"),
        ({"fine_labels": [-1] * 6}, "labels -1"),
        ({"fine_labels": None}, "no data and fine_labels"),
        ({"data": print}, "not permitted"),
    ],
)
def test_broken_batches_are_refused_by_name(root, changes, said):
    document = {"fine_labels": FINE_LABELS, "data": pixels("train").tobytes(), **changes}
    (root / "cifar-100-python" / "train").write_bytes(dump(document, protocol=3))
    with pytest.raises(ArtifactError, match=rf"train.*{said}"):
        open_dataset(str(root / "cifar-100-python"))


def test_what_does_not_fit_is_explained(root):
    for spec, said in (("labels=rough", "fine or coarse"), ("split=val", "train or test"), ("label=fine", "labels")):
        with pytest.raises(UsageError, match=said):
            open_dataset(f"{root}?{spec}")
    with pytest.raises(ArtifactError, match=r"CIFAR-100 is not in .*place cifar-100-python\.tar\.gz \(md5 eb9058c3"):
        open_dataset("cifar100")
    (root / "cifar-100-binary" / "test.bin").write_bytes(bytes(3073))
    with pytest.raises(ArtifactError, match="multiple of 3074"):
        open_dataset(f"{root}/cifar-100-binary:test")
