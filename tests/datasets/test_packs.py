"""Packs: what is written comes back mapped, and a pack that is not whole is never taken for one."""

import os
import time

import pytest
import torch

from driftkit.datasets.packs import PackCard, PackSource, balanced_indices, open_pack, write_pack
from driftkit.errors import ArtifactError
from driftkit.storage.files import read_json, write_json

SOURCE = PackSource(spec="here", kind="folder")


@pytest.fixture
def pack(tmp_path):
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return write_pack(tmp_path / "few", images, torch.arange(12) % 3, ["a", "b", "c"], source=SOURCE, label="few")


def test_pack_comes_back_as_written(pack, tmp_path):
    for name in ("few", "few.safetensors"):
        opened = open_pack(tmp_path / name)
        assert torch.equal(opened.images, pack.images)
        assert opened.classes == ("a", "b", "c")
        assert opened.class_counts() == {"a": 4, "b": 4, "c": 4}
        assert (len(opened), opened.image_size, opened.digest) == (12, 8, pack.card.sha256)
        opened.verify()


def test_opening_reads_no_images(tmp_path):
    images = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8)
    write_pack(tmp_path / "many", images, torch.zeros(50_000, dtype=torch.int64), ["a"], source=SOURCE, label="many")
    begun = time.monotonic()
    open_pack(tmp_path / "many")
    assert time.monotonic() - begun < 0.5


def test_tensors_without_a_card_are_an_unfinished_import(pack):
    pack.path.with_suffix(".json").unlink()
    with pytest.raises(ArtifactError, match="unfinished import"):
        open_pack(pack.path)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("count", 11, "shape of images"),
        ("width", 9, "shape of images"),
        ("sha256", "0" * 64, "sha256"),
        ("classes", ["a"], "labels"),
    ],
)
def test_card_of_other_tensors_is_refused(pack, key, value, named):
    side = pack.path.with_suffix(".json")
    write_json(side, {**read_json(side), key: value})
    with pytest.raises(ArtifactError, match=named):
        open_pack(pack.path)


@pytest.mark.parametrize("change", [{"format_version": 2}, {"kind": "samples"}, {"count": "many"}])
def test_card_of_another_kind_is_refused(pack, change):
    side = pack.path.with_suffix(".json")
    write_json(side, {**read_json(side), **change})
    with pytest.raises(ArtifactError, match=r"few\.json"):
        open_pack(pack.path)


def test_truncated_pack_is_refused(pack):
    os.truncate(pack.path, pack.path.stat().st_size - 10)
    with pytest.raises(ArtifactError, match=r"few\.safetensors"):
        open_pack(pack.path)


def test_verify_finds_a_changed_pixel(pack):
    content = bytearray(pack.path.read_bytes())
    content[-5] ^= 1
    pack.path.write_bytes(content)
    with pytest.raises(ArtifactError):
        open_pack(pack.path).verify()


def test_replacing_a_pack_never_leaves_the_old_card(pack, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(PackCard, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_pack(pack.path, pack.images[:, :, :, :4], pack.labels, pack.classes, source=SOURCE, label="other")
    with pytest.raises(ArtifactError, match="unfinished import"):
        open_pack(pack.path)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])),
    ],
)
def test_what_is_no_pack_is_not_written(tmp_path, images, labels):
    with pytest.raises(ValueError, match="expected"):
        write_pack(tmp_path / "no", images, labels, ["a"], source=SOURCE, label="no")
    assert not list(tmp_path.glob("no*"))


def test_limit_takes_equal_shares_of_the_classes_and_has_its_own_digest(pack):
    part = pack.limited(7)
    assert part.class_counts() == {"a": 3, "b": 2, "c": 2}
    assert torch.equal(part.images, pack.images[:7])
    assert part.digest != pack.digest
    part.verify()
    assert pack.limited(12) is pack


def test_balanced_indices_of_sorted_labels():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert balanced_indices(labels, 4).tolist() == [0, 1, 3, 4]
    assert balanced_indices(torch.full((5,), -1), 3).tolist() == [0, 1, 2]


def test_image_size_of_oblong_images_is_an_error(tmp_path):
    images = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    pack = write_pack(tmp_path / "oblong", images, torch.tensor([-1, -1]), [], source=SOURCE, label="oblong")
    assert pack.class_counts() == {"(unlabelled)": 2}
    with pytest.raises(ArtifactError, match="6x4 px"):
        _ = pack.image_size
