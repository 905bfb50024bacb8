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


def python2_pickle(pixels, labels):
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
    numbers = b"]q\x06(" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    names = b"]q\x07(" + b"".join(short(b"leptodactylus_pentadactylus_s_%06d.png" % n) for n in labels) + b"e"
    items = (
        short(b"data") + array + short(b"labels") + numbers + short(b"batch_label") + short(b"training batch 1 of 5")
    )
    return b"\x80\x02}q\x00(" + items + short(b"filenames") + names + b"u."


def check(data, pixels, labels):
    images, got = parse_batch(data, "batch")
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(pixels).reshape(-1, 3, 32, 32))
    assert got.tolist() == labels


def test_python_2_batch_is_read():
    pixels, labels = batch()
    check(python2_pickle(pixels, labels), pixels, labels)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("bytes_keys", [False, True])
def test_python_3_batch_of_every_protocol_is_read(protocol, bytes_keys):
    pixels, labels = batch(1203)  # more than one run of APPENDS
    names = [f"{i}.png" for i in range(len(labels))]
    document = {"batch_label": "x", "labels": labels, "data": pixels, "filenames": names}
    if bytes_keys:
        document = {key.encode(): value for key, value in document.items()}
    check(dump(document, protocol=protocol), pixels, labels)


def test_single_image_batch_is_read():
    pixels, labels = batch(1)
    check(dump({"data": pixels, "labels": labels}, protocol=2), pixels, labels)


def test_nothing_in_a_batch_is_executed(tmp_path):
    target = tmp_path / "touched"
    pixels, labels = batch()
    payload = b"cos\nsystem\n(U" + bytes([len(f"touch {target}")]) + f"touch {target}".encode() + b"tR0"
    check(b"\x80\x02" + payload + python2_pickle(pixels, labels)[2:], pixels, labels)
    assert not target.exists()


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


def test_hopelessly_slow_host_is_given_up(archive, monkeypatch):
    monkeypatch.setattr(cifar10, "SLOW_AFTER_S", -1.0)
    monkeypatch.setattr(cifar10, "SLOWEST_BYTES_PER_S", 1e12)
    with pytest.raises(ArtifactError, match="throttles"):
        open_dataset("cifar10", url=archive.as_uri())
