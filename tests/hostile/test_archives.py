"""Archives and folders that mean ill: bombs, links, pipes and devices are refused before they cost memory."""

import gzip
import io
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import pytest

from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError, StorageError
from tests.hostile.memory import peaks
from tests.image_files import as_zip, png

MIB = 2**20


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is that large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(3 * 10**6))) + chunk(b"IEND", b"")


def in_zip(tmp_path, data):
    return as_zip(tmp_path / "x.zip", {"1.png": data})


def bomb_zip(path: Path) -> Path:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("1.png", "w") as one,
    ):
        for _ in range(300):
            one.write(bytes(MIB))
    return path


def bomb_tar(path: Path, kind: bytes, size: int) -> Path:
    """A compressed tar whose first member, of that kind, is of zeros."""
    header = tarfile.TarInfo("1.png")
    header.type, header.size = kind, size * MIB
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.tobuf())
        for _ in range(size + 1):
            stream.write(bytes(MIB))
    return path


def many_members(path: Path) -> Path:
    header = tarfile.TarInfo(".hidden").tobuf()
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(100):
            stream.write(header * 1000)
        stream.write(bytes(1024))
    return path


def giant_header(path: Path, length: int) -> Path:
    """A safetensors file whose header is so long, nearly all of it spaces."""
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", length) + b"{}")
        for _ in range(min(length, 90 * MIB) // MIB):
            file.write(b" " * MIB)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc to read the peak of memory from")
def test_bombs_are_refused_before_memory_is_spent(tmp_path):
    """Each would take 128 MiB to gigabytes: a member of 300 MiB, headers of 128 MiB, 286 MiB of pixels."""
    headers = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
    bombs = {
        bomb_zip(tmp_path / "1.zip"): "314,572,800 bytes, expected at most 268,435,456 for one image",
        bomb_tar(tmp_path / "1.tar.gz", tarfile.REGTYPE, 300): "expected at most 268,435,456 for one image",
        **{
            bomb_tar(
                tmp_path / f"header-{i}.tar.gz", kind, 128
            ): "a header of 134,217,728 bytes, expected at most 1,048,576"
            for i, kind in enumerate(headers)
        },
        many_members(tmp_path / "many.tar.gz"): "no images among 0 files",  # tarfile itself keeps 140 MiB of them
        in_zip(tmp_path, claimed(10_000, 10_000)): "1.png: 10000x10000 px, expected at most 67,108,864 pixels",
    }
    tensors = {
        giant_header(
            tmp_path / "1.safetensors", 2**60
        ): "a header of 1,152,921,504,606,846,976 bytes, expected at most",
        giant_header(tmp_path / "2.safetensors", 90 * MIB): "a header of 94,371,840 bytes, expected at most 33,554,432",
    }
    files = [*(("images", path) for path in bombs), *(("tensors", path) for path in tensors)]
    for (said, peak), expected in zip(peaks(files), [*bombs.values(), *tensors.values()], strict=True):
        assert expected in said
        assert peak < 48 * MIB, said


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (0, 0)])
def test_sizes_that_no_image_has_are_refused(tmp_path, size):
    with pytest.raises(ArtifactError, match=r"1\.png"):
        open_dataset(str(in_zip(tmp_path, claimed(*size))))


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path):
    path = in_zip(tmp_path, bytes(4 * MIB))
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for size in (7, 2**31):  # less than there is, and far more
        path.write_bytes(whole[: directory + 24] + struct.pack("<I", size) + whole[directory + 28 :])
        with pytest.raises(ArtifactError, match=r"x\.zip"):
            open_dataset(str(path))


def test_zip64_sizes_are_read_and_refused(tmp_path):
    path = tmp_path / "x.zip"
    info = zipfile.ZipInfo("1.png")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, png())
        info.file_size = info.compress_size = 2**62
    with pytest.raises(ArtifactError, match="4,611,686,018,427,387,904 bytes"):
        open_dataset(str(path))


def test_an_archive_in_an_archive_is_no_image(tmp_path):
    inner = as_zip(tmp_path / "inner.zip", {f"{i}.png": bytes(MIB) for i in range(8)}).read_bytes()
    path = as_zip(tmp_path / "x.zip", {"1.png": png(), "inner.zip": inner, "inner.tar": inner})
    pack = open_dataset(str(path))
    assert (len(pack), pack.card.notes) == (1, ("left out: 1 .tar, 1 .zip",))
    with pytest.raises(ArtifactError, match=r"2\.png \(not an image\)"):
        open_dataset(str(as_zip(tmp_path / "y.zip", {"2.png": inner})))


def test_a_tar_with_holes_is_refused(tmp_path):
    header = tarfile.TarInfo("1.png")
    header.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "x.tar").write_bytes(header.tobuf() + bytes(10240))
    with pytest.raises(ArtifactError, match="has holes"):
        open_dataset(str(tmp_path / "x.tar"))
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("1.png")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "8"}
        member.size = 512
        archive.addfile(member, io.BytesIO(b"1\n0\n8\n".ljust(512, b"\0")))
    with pytest.raises(ArtifactError, match="has holes"):
        open_dataset(str(tmp_path / "x.tar"))


def test_more_files_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("driftkit.datasets.containers.MAX_FILES", 2)
    with pytest.raises(ArtifactError, match="more than 2 files"):
        open_dataset(str(as_zip(tmp_path / "x.zip", {f"{i}.png": png() for i in range(3)})))


def test_images_for_which_the_disk_has_no_room_are_refused_before_it_is_full(tmp_path, monkeypatch):
    path = as_zip(tmp_path / "x.zip", {f"{i}.png": png(size=(64, 64)) for i in range(4)})
    monkeypatch.setattr("driftkit.storage.atomic.free_bytes", lambda target: 49_000)
    with pytest.raises(StorageError, match=r"a pack of 4 images of 64x64 px needs 0.0 MB and 0.0 MB are free"):
        open_dataset(str(path))
    assert not (tmp_path / "data").exists()


def test_links_lead_to_images_anywhere_and_to_nothing_else(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(png())
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.png").write_bytes(png())
    (photos / "2.png").symlink_to("1.png")
    (photos / "3.png").symlink_to("../other/a.png")
    pack = open_dataset(str(photos))
    assert (len(pack), pack.card.notes) == (3, (f"follows links to {tmp_path}/other",))
    for target, said in (("/dev/zero", r"4\.png is no plain file"), ("/proc/self/environ", r"4\.png \(not an image")):
        (photos / "4.png").symlink_to(target)
        with pytest.raises(ArtifactError, match=said):
            open_dataset(str(photos))
        (photos / "4.png").unlink()
    (tmp_path / "named").symlink_to(photos, target_is_directory=True)  # the folder that is named may be a link itself
    assert len(open_dataset(str(tmp_path / "named"))) == 3


@pytest.mark.parametrize("target", [".", "..", "../cat", "../../photos"])
def test_a_link_that_leads_back_is_refused_and_named(tmp_path, target):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(png())
    (tmp_path / "photos" / "cat" / "round").symlink_to(target)
    with pytest.raises(ArtifactError, match=r"photos/cat/round is a link to a folder that it lies in"):
        open_dataset(str(tmp_path / "photos"))


def test_links_that_double_a_few_folders_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("driftkit.datasets.containers.MAX_FILES", 1000)
    for i in range(20):
        (tmp_path / f"level{i}").mkdir()
        for name in "ab":
            (tmp_path / f"level{i}" / name).symlink_to(f"../level{i + 1}")
    (tmp_path / "level20").mkdir()
    with pytest.raises(ArtifactError, match="more than 1,000 files"):
        open_dataset(str(tmp_path / "level0"))


def test_pipes_are_refused_and_not_waited_for(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.png").write_bytes(png())
    os.mkfifo(photos / "2.png")
    with pytest.raises(ArtifactError, match=r"2\.png is no plain file"):
        open_dataset(str(photos))
    for name in ("x.zip", "x.tar", "x.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ArtifactError, match=r"no plain file|no such file"):
            open_dataset(str(tmp_path / name))
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
        with tarfile.open(tmp_path / "y.tar", "w") as archive:
            member = tarfile.TarInfo("1.png")
            member.type = kind
            archive.addfile(member)
        with pytest.raises(ArtifactError, match="a link or a device"):
            open_dataset(str(tmp_path / "y.tar"))


def test_nothing_is_ever_extracted(tmp_path, monkeypatch):
    """The images of an archive reach the pack, and no other file appears."""
    before = set(os.listdir(tempfile.gettempdir()))
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_, **__: pytest.fail("made a temporary folder"))
    open_dataset(str(as_zip(tmp_path / "x.zip", {"a/1.png": png(), "b/1.png": png()})))
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert all(name == "x.zip" or name.startswith(("data/x-", "data/.x-")) for name in found)
    assert not {n for n in set(os.listdir(tempfile.gettempdir())) - before if n.endswith(".png")}


def test_names_that_are_no_utf8_come_through(tmp_path):
    photos = tmp_path / "photos"
    for name in (b"\xff\xfe", b"caf\xe9"):
        place = os.path.join(os.fsencode(photos), name)
        os.makedirs(place)
        with open(os.path.join(place, b"1.png"), "wb") as file:
            file.write(png())
    pack = open_dataset(str(photos))
    assert [os.fsencode(name) for name in pack.classes] == [b"caf\xe9", b"\xff\xfe"]
    from tests.conftest import driftkit

    shown = driftkit("data", photos)
    assert shown.exit_code == 0, shown.output
    assert "caf\\udce9" in shown.output
