"""CIFAR-10: batches are read without unpickling, whatever wrote them."""

import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
import torch

from driftkit.datasets import cifar10
from driftkit.datasets.cifar10 import BATCH_MD5S, CLASSES, parse_batch
from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError, UsageError

dump = __import__("pickle").dumps  # tests write pickles; the package reads none


def batch(count=4, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, [int(i * 3 % 10) for i in range(count)]


def python2_pickle(pixels, labels, key="labels", **more_labels):
    """The opcodes of the original files: protocol 2, byte strings, labels before the file names."""

    def short(text):
        return b"U" + bytes([len(text)]) + text + b"q\x01"

    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85" + short(b"b") + b"\x87Rq\x04"
        b"(K\x01M"
        + struct.pack("<H", len(pixels))
        + b"M\x00\x0c\x86cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\x00K\x01\x87R"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"q\x05tb"
    )
    lists = {key: labels, **more_labels}.items()
    numbers = [short(k.encode()) + b"]q\x06(" + b"".join(b"K" + bytes([n]) for n in v) + b"e" for k, v in lists]
    names = b"]q\x07(" + b"".join(short(b"leptodactylus_pentadactylus_s_%06d.png" % n) for n in labels) + b"e"
    items = short(b"data") + array + b"".join(numbers) + short(b"batch_label") + short(b"training batch 1 of 5")
    return b"\x80\x02}q\x00(" + items + short(b"filenames") + names + b"u."


def check(data, pixels, labels):
    images, got = parse_batch(data, "batch")
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(pixels).reshape(-1, 3, 32, 32))
    assert got.tolist() == labels


def test_python_2_batch_is_read():
    pixels, labels = batch()
    check(python2_pickle(pixels, labels), pixels, labels)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("bytes_keys", [False, True])
def test_python_3_batch_is_read(protocol, bytes_keys):
    pixels, labels = batch(1203)  # more than one run of APPENDS
    names = [f"{i}.png" for i in range(len(labels))]
    document = {"batch_label": "x", "labels": labels, "data": pixels, "filenames": names}
    if bytes_keys:
        document = {key.encode(): value for key, value in document.items()}
    check(dump(document, protocol=protocol), pixels, labels)


def binary_batch(pixels, labels):
    return b"".join(bytes([label]) + row.tobytes() for row, label in zip(pixels, labels, strict=True))


def test_batch_of_the_binary_edition_is_read():
    pixels, labels = batch()
    images, got = parse_batch(binary_batch(pixels, labels), "batch.bin")
    assert torch.equal(images, torch.from_numpy(pixels).reshape(-1, 3, 32, 32))
    assert got.tolist() == labels


@pytest.mark.parametrize("data", [b"", bytes(3072), bytes(2 * 3073 - 1), b"\x0a" + bytes(3072)])
def test_broken_binary_batches_are_refused_by_name(data):
    with pytest.raises(ArtifactError, match=r"batch_7\.bin"):
        parse_batch(data, "batch_7.bin")


PAYLOADS = {
    "command": b"cos\nsystem\n(U\x05touch" + b"tR0",
    "eval": b"cbuiltins\neval\n(U\x031+1" + b"tR0",
    "numpy": b"cnumpy\nload\n(U\x01xtR0",
    "codec": b"c_codecs\nencode\n(U\x01xtR0",
    "huge array": b"cnumpy\nndarray\n(I99999999999999\ntR0",
    "huge memo index": b"Nr\xff\xff\xff\x7f0",
    "huge bytes": b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00",
    "extension": b"\x82\x01",
    "persistent": b"Px\n",
}


@pytest.mark.parametrize("kind", PAYLOADS)
def test_nothing_in_a_batch_is_executed_or_takes_memory(kind):
    pixels, labels = batch()
    data = b"\x80\x02" + PAYLOADS[kind] + python2_pickle(pixels, labels)[2:]
    if kind in ("huge array", "huge memo index"):  # harmless here: nothing is made of it
        check(data, pixels, labels)
        return
    with pytest.raises(ArtifactError) as caught:
        parse_batch(data, "batch")
    assert caught.value.code == "artifact"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        dump({"labels": [1, 2]}, protocol=2),
        dump({"data": b"x" * 3072}, protocol=3),
        dump({"data": b"x" * 3072, "labels": [1, 2]}, protocol=3),
        dump({"data": b"x" * 3072, "labels": [10]}, protocol=3),
        dump({"data": b"x" * 3072, "labels": [1]}, protocol=3)[:100],
        dump({"data": b"x" * 3072, "labels": [True]}, protocol=3),
        dump([1, 2], protocol=3),
    ],
)
def test_broken_batches_are_refused_by_name(data):
    with pytest.raises(ArtifactError, match="batch_7"):
        parse_batch(data, "batch_7")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive laid out like the original, with its own checksum known."""
    path = tmp_path / "elsewhere" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for i, name in enumerate(BATCH_MD5S):
            content = python2_pickle(*batch(4, seed=i))
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def test_archive_in_the_data_folder_is_found(archive, tmp_path):
    (tmp_path / "data").mkdir()
    archive.rename(tmp_path / "data" / archive.name)
    pack = open_dataset("cifar10", allow_download=False)
    assert (len(pack), pack.classes, pack.card.source.verified, pack.card.label) == (20, CLASSES, True, "cifar10 train")
    assert torch.equal(pack.images[:4].flatten(1), torch.from_numpy(batch(4, seed=0)[0]))
    for spec in ("cifar10:test", "cifar10?split=test"):
        test = open_dataset(spec, allow_download=False)
        assert torch.equal(test.images.flatten(1), torch.from_numpy(batch(4, seed=5)[0]))


@pytest.mark.parametrize("extracted", [False, True])
def test_the_binary_edition_gives_the_same_pack(archive, tmp_path, monkeypatch, extracted):
    folder = tmp_path / "binary" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for i, name in enumerate(BATCH_MD5S):
        (folder / f"{name}.bin").write_bytes(binary_batch(*batch(4, seed=i)))
    binary = tmp_path / "binary" / "cifar-10-binary.tar.gz"
    with tarfile.open(binary, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(cifar10, "BINARY_ARCHIVE_MD5", hashlib.md5(binary.read_bytes()).hexdigest())
    packs = [open_dataset(str(archive)), open_dataset(str(folder if extracted else binary))]
    assert packs[0].digest == packs[1].digest
    assert torch.equal(packs[0].labels, packs[1].labels)
    assert packs[1].card.source.verified is (None if extracted else True)


@pytest.mark.parametrize(("name", "write"), [("data_batch_2", python2_pickle), ("data_batch_2.bin", binary_batch)])
def test_a_single_batch_file_is_read(tmp_path, name, write):
    (tmp_path / name).write_bytes(write(*batch()))
    pack = open_dataset(str(tmp_path / name))
    assert torch.equal(pack.images.flatten(1), torch.from_numpy(batch()[0]))
    assert (pack.card.label, pack.card.source.options) == ("cifar10 data_batch_2", {"batch": name})
    with pytest.raises(UsageError, match="unknown key 'split'"):
        open_dataset(f"{tmp_path / name}?split=test")


def test_root_folder_of_torchvision_is_read_and_the_split_is_said(archive, tmp_path):
    root = archive.parent
    pack = open_dataset(str(root))
    assert (len(pack), pack.card.label) == (20, "cifar10 train")
    assert pack.card.notes == ("the train split of cifar-10-python.tar.gz; ?split=test names the other one",)
    for spec in (f"{root}:test", f"{root}?split=test"):
        test = open_dataset(spec)
        assert (len(test), test.card.label, test.card.notes) == (4, "cifar10 test", ())


def test_archive_is_taken_by_its_path_and_resized(archive):
    pack = open_dataset(f"{archive}?split=test", image_size=16)
    assert (len(pack), pack.image_size, pack.card.label) == (4, 16, "cifar10 test")


def test_another_archive_of_that_name_is_refused(archive, monkeypatch):
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", "0" * 32)
    with pytest.raises(ArtifactError, match=f"expected {'0' * 32}"):
        open_dataset(str(archive))


def test_extracted_folder_with_other_checksums_warns_and_is_unverified(tmp_path, capsys):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "test_batch").write_bytes(python2_pickle(*batch()))
    pack = open_dataset("cifar10:test")
    assert pack.card.source.verified is False
    assert capsys.readouterr().err.count("warning: ") == 1
    with pytest.raises(ArtifactError, match="data_batch_1"):
        open_dataset("cifar10")


def test_download_is_checked_and_kept(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("DRIFTKIT_CIFAR10_URL", archive.as_uri())
    assert len(open_dataset("cifar10:test")) == 4
    assert (tmp_path / "data" / archive.name).read_bytes() == archive.read_bytes()


def test_failed_download_says_what_to_place_where_and_leaves_nothing(tmp_path):
    (tmp_path / "other.tar.gz").write_bytes(b"no archive")
    for url in ((tmp_path / "absent.tar.gz").as_uri(), (tmp_path / "other.tar.gz").as_uri()):
        with pytest.raises(ArtifactError, match=r"cifar-10-python\.tar\.gz|md5"):
            open_dataset("cifar10", url=url)
    with pytest.raises(ArtifactError, match="DRIFTKIT_CIFAR10_URL"):
        open_dataset("cifar10", url=(tmp_path / "absent.tar.gz").as_uri())
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_forbidden_download_and_odd_addresses(tmp_path):
    with pytest.raises(ArtifactError, match="is not in"):
        open_dataset("cifar10", allow_download=False)
    with pytest.raises(UsageError, match="ftp"):
        open_dataset("cifar10", url="ftp://host/file")
    with pytest.raises(UsageError, match="train or test"):
        open_dataset("cifar10:val", allow_download=False)
