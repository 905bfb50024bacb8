"""Images as arrays: every layout gives the same pack, and whatever is no array of images is refused in one line."""

import os
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from driftkit.datasets import arrays, sources
from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError, StorageError, UsageError
from driftkit.storage.images import to_float
from tests.conftest import driftkit

LAST = np.random.default_rng(0).integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)  # [N, H, W, 3]
FIRST = np.ascontiguousarray(LAST.transpose(0, 3, 1, 2))
GREY = LAST[..., 0]
LABELS = np.arange(12) % 4


def check(pack, images=FIRST, labels=LABELS):
    assert torch.equal(pack.images, torch.from_numpy(np.ascontiguousarray(images)))
    assert pack.labels.tolist() == ([-1] * len(images) if labels is None else labels.tolist())
    assert pack.classes == (() if labels is None else ("0", "1", "2", "3"))
    assert pack.card.source.kind == "array"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("arr_0", "arr_1"), ("images", "labels"), ("x", "y"), ("images", "y"), ("data", "y")])
def test_npz_is_read_by_the_names_that_programs_give(save, keys):
    save("a.npz", **dict(zip(keys, (LAST, LABELS), strict=True)))
    check(open_dataset("a.npz"))


def test_npz_without_labels_is_unlabelled():
    np.savez("a.npz", LAST)
    check(open_dataset("a.npz"), labels=None)


def test_reference_batch_with_statistics_is_images():
    np.savez("a.npz", arr_0=LAST, mu=np.zeros(4), sigma=np.eye(4))
    pack = open_dataset("a.npz")
    check(pack, labels=None)
    assert pack.card.notes == ("arrays that are neither images nor labels, skipped: mu, sigma",)


@pytest.mark.parametrize("array", [LAST, FIRST, np.asfortranarray(LAST)])
def test_npy_is_read_with_channels_first_or_last(array):
    np.save("a.npy", array)
    check(open_dataset("a.npy"), labels=None)


@pytest.mark.parametrize("array", [GREY, GREY[..., None], GREY[:, None]])
def test_grey_images_become_rgb(array):
    np.save("a.npy", array)
    check(open_dataset("a.npy"), np.repeat(GREY[:, None], 3, axis=1), labels=None)


@pytest.mark.parametrize(("suffix", "read_as"), [(".npy", "[N, H, W, 3]"), (".pt", "[N, 3, H, W]")])
def test_a_shape_that_tells_nothing_is_read_by_custom_and_said(suffix, read_as):
    array = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 3), dtype=np.uint8)
    np.save("a.npy", array)
    torch.save(torch.from_numpy(array), "a.pt")
    pack = open_dataset(f"a{suffix}")
    assert pack.card.notes == (f"[12, 3, 8, 3] was read as {read_as}",)
    assert torch.equal(pack.images, torch.from_numpy(array if suffix == ".pt" else array.transpose(0, 3, 1, 2).copy()))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_torch_files_hold_a_tensor_or_a_dict(suffix, legacy):
    file, options = f"a{suffix}", {"_use_new_zipfile_serialization": not legacy}
    torch.save(torch.from_numpy(FIRST), file, **options)
    check(open_dataset(file), labels=None)
    torch.save({"images": torch.from_numpy(LAST), "labels": torch.from_numpy(LABELS)}, file, **options)
    check(open_dataset(file))


@pytest.mark.parametrize("name", ["images", "data"])
def test_safetensors_hold_images_or_one_tensor_of_four_dimensions(name):
    save_file({name: torch.from_numpy(FIRST), "labels": torch.from_numpy(LABELS)}, "a.safetensors")
    check(open_dataset("a.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value_range", ["-1,1", "0,1"])
def test_floats_are_rounded_from_the_named_range(dtype, value_range):
    floats = to_float(torch.from_numpy(FIRST)).to(dtype)
    torch.save(floats if value_range == "-1,1" else (floats + 1) / 2, "a.pt")
    pack = open_dataset(f"a.pt?range={value_range}")
    difference = (pack.images.int() - torch.from_numpy(FIRST).int()).abs()
    assert int(difference.max()) <= (1 if dtype in (torch.float16, torch.bfloat16) else 0)
    assert pack.card.source.options == {"range": value_range}
    assert "rounded to 8 bits" in pack.card.notes[0]


def test_image_size_resizes_at_the_import():
    np.save("a.npy", GREY)
    assert open_dataset("a.npy", image_size=4).images.shape == (12, 3, 4, 4)


def test_an_import_is_reused_while_the_content_is_the_same(monkeypatch):
    np.savez("a.npz", LAST)
    first = open_dataset("a.npz").path
    os.utime("a.npz", (0, 0))  # the checksums in the archive count, not its age
    with monkeypatch.context() as patch:
        patch.setattr(sources, "import_source", None)
        assert open_dataset("a.npz").path == first
    np.savez("a.npz", LAST[::-1])
    assert open_dataset("a.npz").path != first


def test_images_are_converted_a_piece_at_a_time(monkeypatch):
    monkeypatch.setattr(arrays, "BYTES_AT_A_TIME", 2**19)
    np.save("a.npy", np.zeros((480, 64, 64, 3), np.float32))  # 22 MiB
    tracemalloc.start()
    open_dataset("a.npy?range=0,1")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21  # 5.6 MiB of images as uint8


PEOPLE = np.array([{"a": 1}] * 12, dtype=object)
REFUSED = {
    "one image": ({"arr_0": LAST[0]}, r"\[8, 6, 3\], expected images \[N, H, W, 3\]"),
    "no images": ({"arr_0": LAST[:0]}, "N > 0"),
    "four channels": ({"arr_0": np.zeros((12, 8, 8, 4), np.uint8)}, r"\[12, 8, 8, 4\]"),
    "features": ({"arr_0": np.zeros((12, 8), np.uint8)}, r"\[12, 8\]"),
    "other integers": ({"arr_0": LAST.astype(np.int64)}, "int64 .*expected uint8"),
    "objects": ({"arr_0": PEOPLE}, "never unpickled"),
    "records": ({"arr_0": np.zeros(12, [("a", "u1"), ("b", "f4")])}, "arr_0"),
    "other names": ({"pixels": LAST[0], "names": np.arange(3)}, "pixels uint8 .*expected images as one of `arr_0`"),
    "two of them": ({"images": LAST, "x": LAST}, "expected images as one of"),
    "nothing": ({}, "holds nothing"),
    "statistics": ({"mu": np.zeros(4), "sigma": np.eye(4)}, "features and no images"),
    "features of a reference": ({"pool_3": np.zeros((9, 4))}, r"holds pool_3 float64 \[9, 4\], features and no images"),
    "floats of no range": ({"arr_0": LAST / 255}, r"a\.npz\?range=-1,1 or a\.npz\?range=0,1"),
    "labels of another length": ({"arr_0": LAST, "arr_1": LABELS[:5]}, r"int64 \[5\], .*each image, \[12\]"),
    "labels that are floats": ({"arr_0": LAST, "arr_1": LABELS / 1}, "float64"),
    "negative labels": ({"arr_0": LAST, "arr_1": LABELS - 1}, "from -1 to 2"),
    "huge labels": ({"arr_0": LAST, "arr_1": LABELS.astype(np.uint64) + 2**63}, "from 92"),
    "labels that are objects": ({"arr_0": LAST, "arr_1": PEOPLE}, "never unpickled"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_npz_of_something_else_is_refused(kind, tmp_path):
    content, said = REFUSED[kind]
    np.savez("a.npz", **content)
    with pytest.raises(ArtifactError, match=said):
        open_dataset("a.npz")
    assert not list(tmp_path.glob("data/*"))


def test_refusals_are_one_line_of_the_command(tmp_path):
    np.savez("a.npz", LAST, LABELS - 1)
    result = driftkit("data", "a.npz")
    assert result.exit_code == 3
    assert result.stderr.strip().count("\n") == 0
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.parametrize(
    ("value", "value_range", "said"),
    [
        (np.nan, "0,1", "not finite, first in image 7"),
        (np.inf, "0,1", "not finite"),
        (1.5, "0,1", "values from 0 to 1.5, expected 0 to 1"),
        (-0.5, "0,1", "values from -0.5 to 0"),
        (255, "-1,1", "expected -1 to 1"),
    ],
)
def test_floats_outside_their_range_are_refused(value, value_range, said):
    floats = np.zeros((12, 8, 8, 3), np.float32)
    floats[7, 2, 2, 1] = value
    np.save("a.npy", floats)
    with pytest.raises(ArtifactError, match=said):
        open_dataset(f"a.npy?range={value_range}")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("a.npy?range=0,255", "range is 0,255, expected -1,1 or 0,1"),
        ("a.npy?range=0,1", "these are uint8; remove it"),
        ("a.npy?rnage=0,1", "did you mean range"),
        ("a.npy:train", "unknown key 'split'"),
        ("a.npy?class_level=1", "`class_level` is for folders, archives and shards, and this is none"),
        (
            "a.npy?skip_broken=1",
            "`skip_broken` is for images in folders, archives, shards and Parquet, and this is none",
        ),
    ],
)
def test_keys_that_do_not_fit_are_refused(spec, said):
    np.save("a.npy", LAST)
    with pytest.raises(UsageError, match=said):
        open_dataset(spec)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt", ".safetensors"])
@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_files_that_are_cut_off_are_refused_by_name(suffix, size):
    np.savez("a.npz", LAST)
    np.save("a.npy", LAST)
    torch.save(torch.from_numpy(FIRST), "a.pt")
    save_file({"images": torch.from_numpy(FIRST)}, "a.safetensors")
    with open(f"a{suffix}", "rb") as file:
        content = file.read()
    with open(f"a{suffix}", "wb") as file:
        file.write(content[:size])
    with pytest.raises(ArtifactError, match=rf"a\{suffix}") as caught:
        open_dataset(f"a{suffix}")
    assert "\n" not in str(caught.value)


def test_npz_with_a_flipped_byte_is_refused():
    np.savez("a.npz", LAST)
    with open("a.npz", "r+b") as file:
        file.seek(600)
        file.write(b"\xff\x00\xff\x00")
    with pytest.raises(ArtifactError, match="CRC"):
        open_dataset("a.npz")


def test_a_header_that_claims_more_than_there_is_room_for_is_refused(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000, 1000, 3)}"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ArtifactError, match="cut off"):
        open_dataset("a.npz")
    one = torch.zeros(1, dtype=torch.uint8)
    torch.save(one.expand(10**9, 3, 1000, 1000), "a.pt")
    with pytest.raises(ArtifactError, match=r"a\.pt holds 1,000,000,000 images, expected at most 20,000,000"):
        open_dataset("a.pt")
    torch.save(one.expand(10**7, 3, 1000, 1000), "a.pt")
    with pytest.raises(StorageError, match=r"10,000,000 images of 1000x1000 px needs 30,000,080\.0 MB and"):
        open_dataset("a.pt")
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2, 3, 8, 8)], "holds a list"),
        ({"images": torch.zeros(2, 3, 8, 8), "epoch": 3}, "'epoch' is a int, expected tensors alone"),
        ({1: torch.zeros(2, 3, 8, 8)}, "expected tensors alone"),
        ({"a": torch.zeros(2, 3, 8, 8), "b": torch.zeros(2, 3, 8, 8)}, "expected images as one of"),
        (torch.zeros(2, 3, 8, 8).to_sparse(), "a dense one"),
        (torch.zeros(2, 3, 8, 8, device="meta"), "a dense one"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.complex64), "complex64"),
        (os.path.join, "nothing in it was run"),
    ],
)
def test_torch_files_of_anything_else_are_refused(content, said):
    torch.save(content, "a.pt")
    with pytest.raises(ArtifactError, match=said) as caught:
        open_dataset("a.pt")
    assert "\n" not in str(caught.value)
