"""Packs: what is written comes back mapped, and a pack that is not whole is never taken for one."""

import hashlib
import json
import os
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from driftkit.datasets.packs import (
    ImageStream,
    PackCard,
    PackSource,
    RawImages,
    balanced_indices,
    import_pack,
    open_pack,
    write_pack,
)
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


def parts(content):
    """Length of the header, the header (whose metadata safetensors writes in a random order) and the numbers."""
    length = int.from_bytes(content[:8], "little")
    return length, json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.mark.parametrize("size", [(4, 8), (5, 7)])
def test_file_is_what_safetensors_writes(size, tmp_path):
    images, labels = torch.randint(0, 256, (301, 3, *size), dtype=torch.uint8), torch.arange(301) % 2
    pack = write_pack(tmp_path / "few", images, labels, ["a", "b"], source=SOURCE, label="few")
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    written = save({"images": images, "labels": labels}, metadata={"driftkit": "pack", "sha256": digest})
    (length, header, rest), expected = map(parts, (pack.path.read_bytes(), written))
    assert (length, header, rest) == expected
    assert length % 8 == 0


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


def as_stream(images, batches, notes=tuple):
    blocks = ((places[0], images[places].numpy()) for places in batches)
    return RawImages(ImageStream(len(images), blocks, notes), torch.arange(len(images)) % 3, ("a", "b", "c"), ("one",))


def test_stream_in_any_order_makes_the_same_pack(pack, tmp_path):
    raw = as_stream(pack.images, [[8, 9, 10, 11], [0], [1, 2, 3], [6, 7], [4, 5]])
    opened = import_pack(tmp_path / "new", raw, source=SOURCE, label="few")
    assert opened.path.read_bytes() == pack.path.read_bytes()
    assert (opened.card.notes, opened.labels.tolist()) == (("one",), pack.labels.tolist())


def test_places_that_get_no_image_are_left_out_with_their_labels(pack, tmp_path):
    raw = as_stream(pack.images, [[4, 5], [0], [8, 9, 10]], lambda: ("six are missing",))
    opened = import_pack(tmp_path / "new", raw, source=SOURCE, label="few")
    kept = [0, 4, 5, 8, 9, 10]
    same = write_pack(tmp_path / "same", pack.images[kept], pack.labels[kept], "abc", source=SOURCE, label="few")
    assert opened.path.read_bytes() == same.path.read_bytes()
    assert opened.card.notes == ("one", "six are missing")
    opened.require_content()


def test_limit_of_an_import_is_that_of_a_pack(pack, tmp_path):
    raw = as_stream(pack.images, [[*range(6, 12)], [*range(6)]])
    opened = import_pack(tmp_path / "new", raw, source=SOURCE, label="few", limit=7)
    assert (opened.digest, opened.labels.tolist()) == (pack.limited(7).digest, pack.limited(7).labels.tolist())


def test_stream_that_fails_leaves_what_was_there(pack, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail():
        raise ArtifactError("all broken")

    def interrupted():
        yield 0, pack.images[:2].numpy()
        raise KeyboardInterrupt

    other = as_stream(pack.images.flip(0), [[0, 1]], fail)
    for raw, error in (
        (other, ArtifactError),
        (replace(other, images=ImageStream(12, interrupted())), KeyboardInterrupt),
    ):
        with pytest.raises(error):
            import_pack(pack.path, raw, source=SOURCE, label="few")
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("part", [torch.zeros(2, 3, 8, 4), torch.zeros(2, 3, 4, 8, dtype=torch.uint8)])
def test_stream_of_other_images_is_refused(pack, tmp_path, part):
    blocks = ((place, images.numpy()) for place, images in ((0, pack.images[:2]), (2, part)))
    raw = RawImages(ImageStream(4, blocks), torch.zeros(4, dtype=torch.int64), ("a",))
    with pytest.raises(ValueError, match=r"from place 2, expected uint8 \[3, 8, 8\] in places 0 to 4"):
        import_pack(tmp_path / "no", raw, source=SOURCE, label="no")
    assert not list(tmp_path.glob("*no*"))


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
