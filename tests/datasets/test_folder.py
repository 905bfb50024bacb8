"""Folders and archives: classes and order by name, every kind of image, and nothing hostile or broken gets through."""

import io
import stat
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from driftkit.datasets.containers import natural_order
from driftkit.datasets.decode import BrokenImageError, decode_image
from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError
from tests.image_files import as_folder, as_tar, as_zip, encoded, png

TREE = {f"root/{name}/{i}.png": png((i, 0, c)) for c, name in enumerate(("cat", "dog")) for i in (10, 9, 1)}


def make(kind, tmp_path, files):
    makers = {"folder": (as_folder, "photos"), "zip": (as_zip, "photos.zip"), "tar": (as_tar, "photos.tar"),
              "tar.gz": (as_tar, "photos.tar.gz")}  # fmt: skip
    maker, name = makers[kind]
    return maker(tmp_path / name, files)


KINDS = pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])


@KINDS
def test_class_folders_give_labels_in_natural_order(kind, tmp_path):
    pack = open_dataset(str(make(kind, tmp_path, TREE)))
    assert pack.classes == ("cat", "dog")
    assert pack.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert pack.images[:, 0, 0, 0].tolist() == [1, 9, 10, 1, 9, 10]
    assert pack.images[:, 2, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert pack.card.label == "photos"


def test_all_kinds_give_the_same_pack(tmp_path):
    digests = {open_dataset(str(make(kind, tmp_path, TREE))).digest for kind in ("folder", "zip", "tar", "tar.gz")}
    assert len(digests) == 1


@KINDS
def test_flat_images_are_unlabelled_and_hidden_files_ignored(kind, tmp_path):
    files = {
        "a/2.png": png(),
        "a/1.png": png(),
        "__MACOSX/a/._1.png": b"junk",
        "a/.hidden.png": b"junk",
        "a/notes.txt": b"",
    }
    pack = open_dataset(str(make(kind, tmp_path, files)))
    assert (pack.classes, pack.labels.tolist()) == ((), [-1, -1])
    assert pack.card.notes == (
        "left out: 1 .txt",
        "assumed no classes, since all images lie in a; ?class_level=1 makes it their class",
    )


@KINDS
def test_splits_must_be_named(kind, tmp_path):
    files = {f"all/{split}/{name}/1.png": png((i, 0, 0)) for i, split in enumerate(("train", "test")) for name in "ab"}
    path = make(kind, tmp_path, files)
    with pytest.raises(ArtifactError, match=r"holds the splits test, train.*photos(/all/train|\S*\?split=train)"):
        open_dataset(str(path))
    pack = open_dataset(f"{path}?split=test")
    assert (len(pack), pack.classes, int(pack.images[0, 0, 0, 0])) == (2, ("a", "b"), 1)
    with pytest.raises(ArtifactError, match="no split 'val'"):
        open_dataset(f"{path}?split=val")
    if kind == "folder":
        pack = open_dataset(str(path / "all" / "train"))
        assert (len(pack), pack.card.label) == (2, "all-train")


def test_single_split_is_taken_as_it_is(tmp_path):
    path = as_zip(tmp_path / "x.zip", {"train/a/1.png": png(), "train/b/1.png": png()})
    for spec in (path, f"{path}?split=train"):
        pack = open_dataset(str(spec))
        assert (pack.classes, pack.labels.tolist(), pack.card.notes) == (("a", "b"), [0, 1], ())


def test_image_beside_class_folders_is_an_error(tmp_path):
    path = as_folder(tmp_path / "x", {"a/1.png": png(), "b/1.png": png(), "c.png": png()})
    with pytest.raises(ArtifactError, match=r"c\.png is next to class folders"):
        open_dataset(str(path))
    assert open_dataset(f"{path}?class_level=0").labels.tolist() == [-1] * 3


def test_natural_order_counts():
    assert sorted(["img10", "img9", "img1", "b2", "b²"], key=natural_order)[-3:] == ["img1", "img9", "img10"]


@KINDS
def test_mixed_sizes_name_two_files_and_the_fix(kind, tmp_path):
    path = make(kind, tmp_path, {"1.png": png(), "2.png": png(size=(12, 10))})
    with pytest.raises(ArtifactError, match=r"1\.png is 8x8 px and 2\.png is 12x10; .*`image_size`, for example 8"):
        open_dataset(str(path))
    assert open_dataset(str(path), image_size=8).images.shape == (2, 3, 8, 8)


@KINDS
def test_broken_image_is_named_and_nothing_is_left(kind, tmp_path):
    files = {**TREE, "root/dog/9.png": TREE["root/dog/9.png"][:40]}
    with pytest.raises(ArtifactError, match=r"1 of 6 images are broken: root/dog/9\.png \(damaged or cut off\)"):
        open_dataset(str(make(kind, tmp_path, files)))
    assert not (tmp_path / "data").exists()


def with_broken(number):
    """Seven images, and as many as that which are none."""
    return {f"{i:02}.png": png((i, 0, 0)) for i in range(7)} | {f"x{i}.png": b"junk" for i in range(number)}


@KINDS
def test_all_broken_images_are_counted_and_five_named(kind, tmp_path):
    noise = encoded(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    files = {**with_broken(6), "00.png": b"", "03.png": noise[:150]}
    path = make(kind, tmp_path, files)
    with pytest.raises(ArtifactError) as caught:
        open_dataset(str(path))
    named = "00.png (not an image (empty file)), 03.png (cut off), x0.png (not an image), x1.png (not an image)"
    assert f"8 of 13 images are broken: {named}, x2.png (not an image) and 3 more; " in str(caught.value)
    assert "?skip_broken=1" in str(caught.value)
    assert not (tmp_path / "data").exists()


@KINDS
def test_broken_images_are_left_out_where_asked_and_said(kind, tmp_path):
    path = make(kind, tmp_path, {**with_broken(1), "cat/9.png": png((9, 0, 0)), "00.png": b"", "04.png": b"BM"})
    pack = open_dataset(f"{path}?skip_broken=1&class_level=0")
    assert pack.images[:, 0, 0, 0].tolist() == [1, 2, 3, 5, 6, 9]
    named = "00.png (not an image (empty file)), 04.png (not an image), x0.png (not an image)"
    assert pack.card.notes == (f"left out 3 broken images: {named}",)
    assert pack.card.source.options == {"skip_broken": True, "class_level": 0}
    pack.verify()


def test_labels_stay_with_their_images_where_some_are_left_out(tmp_path):
    path = as_folder(tmp_path / "x", {**TREE, "root/cat/1.png": b"", "root/dog/10.png": b""})
    pack = open_dataset(f"{path}?skip_broken=1")
    assert pack.labels.tolist() == [0, 0, 1, 1]
    assert pack.images[:, 0, 0, 0].tolist() == [9, 10, 1, 9]
    assert pack.images[:, 2, 0, 0].tolist() == [0, 0, 1, 1]


@KINDS
def test_source_without_images_is_an_error(kind, tmp_path):
    path = make(kind, tmp_path, {"notes.txt": b"x"})
    with pytest.raises(ArtifactError, match=r"no images among 1 files \(1 \.txt\)"):
        open_dataset(str(path))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("keep", [0.1, 0.4, 0.6, 0.75])
def test_truncated_archive_is_refused(kind, keep, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = make(kind, tmp_path, {f"{i}.png": encoded(noise) for i in range(8)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ArtifactError, match=r"photos\."):
        open_dataset(str(path))
    assert not (tmp_path / "data").exists()


def test_tar_cut_between_members_or_in_a_header_is_refused(tmp_path):
    path = as_tar(tmp_path / "photos.tar", {f"{i}.png": png() for i in range(4)})
    whole = path.read_bytes()
    for length in (1024, 2048, 2048 + 200):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="cut off"):
            open_dataset(str(path))


def test_zip_member_with_a_wrong_checksum_is_named(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", png())
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"1\.png is not readable"):
        open_dataset(str(path))


@pytest.mark.parametrize("name", ["../1.png", "/etc/1.png", "a/../../1.png", "C:/1.png", "..\\1.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_of_an_archive_are_refused(kind, name, tmp_path):
    with pytest.raises(ArtifactError, match="leads out"):
        open_dataset(str(make(kind, tmp_path, {"ok.png": png(), name: png()})))


def test_links_in_archives_are_refused(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        with tarfile.open(tmp_path / "l.tar", "w") as archive:
            member = tarfile.TarInfo("1.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(ArtifactError, match="a link or a device"):
            open_dataset(str(tmp_path / "l.tar"))
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as archive:
        info = zipfile.ZipInfo("1.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArtifactError, match="a link or a device"):
        open_dataset(str(tmp_path / "l.zip"))


def test_linked_folders_are_read_and_said(tmp_path):
    as_folder(tmp_path / "cats", {"1.png": png((1, 0, 0))})
    as_folder(tmp_path / "photos", {"dog/1.png": png((2, 0, 0))})
    for name in ("cat", "again"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "cats", target_is_directory=True)
    pack = open_dataset(str(tmp_path / "photos"))
    assert (pack.classes, pack.images[:, 0, 0, 0].tolist()) == (("again", "cat", "dog"), [1, 1, 2])
    assert pack.card.notes == (f"follows links to {tmp_path}/cats",)


def test_dead_links_are_refused(tmp_path):
    as_folder(tmp_path / "photos", TREE)
    (tmp_path / "photos" / "dead.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"dead\.png is not readable: No such file"):
        open_dataset(str(tmp_path / "photos"))


def test_backslashes_of_windows_in_a_zip_are_folders(tmp_path):
    pack = open_dataset(str(as_zip(tmp_path / "x.zip", {"a\\1.png": png(), "b\\c\\1.png": png(), "b\\": b""})))
    assert (pack.classes, pack.labels.tolist()) == (("a", "b"), [0, 1])
    for name in ("..\\1.png", "a\\..\\..\\1.png", "\\a\\1.png", "C:\\1.png"):
        with pytest.raises(ArtifactError, match="leads out"):
            open_dataset(str(as_zip(tmp_path / "x.zip", {"ok.png": png(), name: png()})))
    with pytest.raises(ArtifactError, match="backslash"):
        open_dataset(str(as_tar(tmp_path / "x.tar", {"a\\1.png": png()})))


def test_huge_images_and_members_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ArtifactError, match=r"big\.png: 8x8 px"):
        decode_image(png(), "big.png", None, max_pixels=63)
    monkeypatch.setattr("driftkit.datasets.containers.MAX_MEMBER_BYTES", 10)
    for kind in ("folder", "zip", "tar"):
        with pytest.raises(ArtifactError, match="expected at most 10 for one image"):
            open_dataset(str(make(kind, tmp_path, {"1.png": png()})))


def test_decompression_bomb_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ArtifactError, match=r"bomb\.png"):
        decode_image(png(), "bomb.png", None)


GREY = [128, 128, 128]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(128, mode="L"), GREY),
        (png(1, mode="1"), [255, 255, 255]),
        (encoded(np.full((8, 8), 128 * 257, dtype=np.uint16)), GREY),
        (png((0, 0, 0, 0), mode="RGBA"), [255, 255, 255]),
        (png((255, 0, 0, 128), mode="RGBA"), [255, 127, 127]),
        (png((0, 255), mode="LA"), [0, 0, 0]),
        (png((10, 20, 30), transparency=(10, 20, 30)), [255, 255, 255]),
        (png((0, 0, 0, 0), mode="CMYK", kind="TIFF"), [255, 255, 255]),
        (png((10, 20, 30), kind="BMP"), [10, 20, 30]),
        (png((10, 20, 30), kind="WEBP", lossless=True), [10, 20, 30]),
        (png((10, 20, 30), kind="JPEG2000"), [10, 20, 30]),
        (png((128, 128, 128), kind="AVIF", quality=100), GREY),
        (png((128, 128, 128), kind="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]), GREY),
    ],
)
def test_every_kind_of_image_becomes_rgb(data, expected):
    image = decode_image(data, "image", None)
    assert image.shape == (3, 8, 8)
    assert image.dtype == np.uint8
    assert image[:, 3, 3].tolist() == expected


def test_palette_image_keeps_its_colours():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE).save(stream, "GIF")
    assert decode_image(stream.getvalue(), "image", None)[:, 0, 0].tolist() == [200, 100, 50]


def test_turned_camera_image_is_set_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(png(size=(12, 8), exif=exif), "image", None).shape == (3, 12, 8)


@pytest.mark.parametrize("data", [png((0.5), mode="F", kind="TIFF"), b"", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_cannot_be_shown_is_refused(data):
    with pytest.raises(ArtifactError, match="image"):
        decode_image(data, "image", None)


@pytest.mark.parametrize(
    ("kind", "keep", "reason"),
    [
        ("PNG", 0, "not an image (empty file)"),
        ("PNG", 36, "damaged or cut off"),
        *((kind, 0.5, "cut off") for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM")),
        *((kind, 0.5, "damaged or cut off") for kind in ("WEBP", "JPEG2000", "AVIF")),
    ],
)
def test_a_part_of_an_image_is_called_so(kind, keep, reason):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    stream = io.BytesIO()
    noise.save(stream, kind)
    data = stream.getvalue()
    with pytest.raises(BrokenImageError) as caught:
        decode_image(data[: int(len(data) * keep) if isinstance(keep, float) else keep], "x", None)
    assert str(caught.value) == f"x: {reason}; replace or remove it"


@pytest.mark.parametrize("data", [b"x", b"hello", bytes(100), b"PK\3\4" * 9, b"P6\n\xff", b"<svg/>"])
def test_what_is_no_image_is_refused_without_words_of_pillow(data):
    with pytest.raises(BrokenImageError, match=r"^x: (not an image|damaged or cut off); replace or remove it$"):
        decode_image(data, "x", None)


@pytest.mark.parametrize(("suffix", "name"), [(".avif", "AVIF"), (".jp2", "JPEG 2000"), (".j2k", "JPEG 2000")])
def test_a_format_that_pillow_was_built_without_is_named(suffix, name, tmp_path, monkeypatch):
    path = as_folder(tmp_path / "x", {f"1{suffix}": png()})
    assert len(open_dataset(str(path))) == 1
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    with pytest.raises(ArtifactError, match=rf"\{suffix}: this Pillow reads no {name}"):
        open_dataset(f"{path}?class_level=0")


def test_resizing_keeps_the_centre_and_averages():
    wide = np.zeros((16, 32, 3), dtype=np.uint8)
    wide[:, 8:24] = 200  # the centred square
    # Bicubic weighs pixels just outside the square into the outermost columns, as resizing before cropping does.
    assert (decode_image(encoded(wide), "wide", 8)[:, :, 2:-2] == 200).all()
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert abs(int(decode_image(encoded(checks), "checks", 8)[0, 4, 4]) - 128) < 4


def test_changed_file_is_imported_again(tmp_path):
    path = as_folder(tmp_path / "photos", TREE)
    before = open_dataset(str(path))
    (path / "root/cat/1.png").write_bytes(png((99, 0, 0), size=(8, 8)))
    after = open_dataset(str(path))
    assert after.path != before.path
    assert int(after.images[0, 0, 0, 0]) == 99


@pytest.mark.real_data
def test_real_zip_is_imported(monkeypatch):
    import os

    pack = open_dataset(os.environ["DRIFTKIT_TEST_CIFAR10"])
    assert len(pack.classes) == 10
    assert pack.image_size == 32
    assert len(set(pack.class_counts().values())) == 1
    assert torch.equal(pack.labels.bincount(), torch.full((10,), len(pack) // 10))
    pack.verify()
