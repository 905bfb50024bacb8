"""Parquet files of the Hub: columns, class names, splits and shards, and what is refused. Needs pyarrow."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from driftkit.datasets.packs import open_pack
from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError, UsageError
from tests.conftest import driftkit
from tests.image_files import encoded


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    result = driftkit("data", "a.parquet")
    assert result.exit_code == 3
    assert "needs pyarrow; install the extra: uv sync --extra parquet" in result.stderr
    assert result.stderr.strip().count("\n") == 0


@pytest.fixture
def pa():
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet  # which `pa.parquet` needs

    return pa


PIXELS = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), dtype=np.uint8)  # several pieces
LABELS = [i % 3 for i in range(150)]
NAMES = {"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}


def entries(count=150):
    return [{"bytes": encoded(image), "path": f"{i}.png"} for i, image in enumerate(PIXELS[:count])]


def write(pa, path, columns, description=NAMES):
    table = pa.table(columns)
    if description is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(description)})
    pa.parquet.write_table(table, path, row_group_size=100)


def check(pack, count=150, classes=("ant", "bee", "cat")):
    assert torch.equal(pack.images, torch.from_numpy(PIXELS[:count].transpose(0, 3, 1, 2).copy()))
    assert pack.labels.tolist() == LABELS[:count]
    assert pack.classes == classes
    assert pack.card.source.kind == "parquet"


def test_file_is_read_with_the_names_of_its_classes(pa):
    write(pa, "a.parquet", {"image": entries(), "label": LABELS})
    check(open_dataset("a.parquet"))


@pytest.mark.parametrize("column", ["labels", "fine_label"])
def test_other_names_and_plain_bytes_are_read(pa, column):
    columns = {"img": [encoded(image) for image in PIXELS[:6]], column: LABELS[:6], "more": ["x"] * 6}
    write(pa, "a.parquet", columns, description=None)
    check(open_dataset("a.parquet"), 6, ("0", "1", "2"))


def test_images_without_labels_are_unlabelled(pa):
    write(pa, "a.parquet", {"image": entries(4)})
    write(pa, "b.parquet", {"image": entries(4), "label": [-1] * 4})
    for name in ("a.parquet", "b.parquet"):
        pack = open_dataset(name)
        assert (pack.labels.tolist(), pack.classes) == ([-1] * 4, ())


@pytest.fixture
def hub(pa, tmp_path):
    """A dataset as it lies on the Hub: two shards of one split, one of another."""
    (tmp_path / "hub/data").mkdir(parents=True)
    shards = {"train-00000-of-00002": (0, 60), "train-00001-of-00002": (60, 150), "test-00000-of-00001": (0, 9)}
    for name, (first, last) in shards.items():
        columns = {"image": entries()[first:last], "label": LABELS[first:last]}
        write(pa, tmp_path / f"hub/data/{name}.parquet", columns)
    return tmp_path / "hub"


def test_splits_of_a_folder_are_named_by_their_files(hub):
    for folder in (hub, hub / "data"):
        check(open_dataset(f"{folder}?split=train"))
        check(open_dataset(f"{folder}:test"), 9)
    with pytest.raises(ArtifactError, match=r"holds the splits test, train; name one, for example .*\?split=test"):
        open_dataset(str(hub))
    with pytest.raises(ArtifactError, match="no split 'val'; it has test, train"):
        open_dataset(f"{hub}:val")
    with pytest.raises(UsageError, match="unknown key"):
        open_dataset(f"{hub}/data/test-00000-of-00001.parquet?split=test")


def test_a_missing_shard_is_refused(hub):
    (hub / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(ArtifactError, match="split train has 1 of 2 files"):
        open_dataset(f"{hub}:train")


def test_folders_of_numbered_files_are_splits(pa, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "plain_text" / split).mkdir(parents=True)
        write(pa, tmp_path / "plain_text" / split / "0000.parquet", {"image": entries(5), "label": LABELS[:5]})
    check(open_dataset("plain_text:train"), 5)
    check(open_dataset("plain_text/test"), 5)


def test_several_sets_in_one_folder_are_refused(pa, tmp_path):
    for name in ("small", "large"):
        (tmp_path / "hub" / name).mkdir(parents=True)
        write(pa, tmp_path / "hub" / name / "train-00000-of-00001.parquet", {"image": entries(2)})
    with pytest.raises(ArtifactError, match="split train in 2 folders; name one"):
        open_dataset("hub")


def test_shards_with_other_classes_are_refused(hub, pa):
    columns = {"image": entries(9), "label": LABELS[:9]}
    write(pa, hub / "data/train-00001-of-00002.parquet", columns, description=None)
    with pytest.raises(ArtifactError, match="other columns or classes"):
        open_dataset(f"{hub}:train")


REFUSED = {
    "no images": ({"text": ["a"], "label": [0]}, "columns text, label; expected images in `image` or `img`"),
    "texts": ({"image": ["a"]}, "`image` is string, expected encoded images"),
    "labels that are texts": ({"image": [b"x"], "label": ["a"]}, "`label` is string, expected whole numbers"),
    "names alone": ({"image": [{"bytes": None, "path": "a.png"}, {"bytes": b"x", "path": ""}]}, "row 0 names 'a.png'"),
    "an empty row": (
        {"image": [encoded(PIXELS[0]), None]},
        r"1 of 2 images are broken: row 1 \(not an image \(empty file\)\)",
    ),
    "a broken image": ({"image": [encoded(PIXELS[0]), encoded(PIXELS[0])[:60]]}, "row 1"),
    "two sizes": ({"image": [encoded(PIXELS[0]), encoded(PIXELS[0][:4])]}, "row 0 is 8x8 px and row 1 is 8x4"),
    "no label": ({"image": [encoded(PIXELS[0])] * 2, "label": [0, None]}, "row 1 has the label None"),
    "a negative label": ({"image": [encoded(PIXELS[0])], "label": [-2]}, "row 0 has the label -2"),
    "a huge label": ({"image": [encoded(PIXELS[0])], "label": [10**9]}, "row 0 has the label 1000000000"),
    "a label of no class": (
        {"image": [encoded(PIXELS[0])], "label": [3]},
        "labels up to 3, expected those of 3 classes",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_parquet_of_something_else_is_refused(pa, kind, tmp_path):
    columns, said = REFUSED[kind]
    write(pa, "a.parquet", columns)
    with pytest.raises(ArtifactError, match=said) as caught:
        open_dataset("a.parquet")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("data/*"))


def test_broken_images_are_counted_and_five_named(pa, tmp_path):
    images = [b"junk" if i % 2 else encoded(image) for i, image in enumerate(PIXELS[:12])]
    write(pa, "a.parquet", {"image": images})
    named = ", ".join(f"row {i} (not an image)" for i in (1, 3, 5, 7, 9))
    said = f"a.parquet: 6 of 12 images are broken: {named} and 1 more; replace them, or leave them out"
    with pytest.raises(ArtifactError, match=re.escape(said)):
        open_dataset("a.parquet")
    assert not list(tmp_path.glob("data/*"))


def test_broken_images_are_left_out_with_their_labels_where_asked(pa, hub):
    columns = {"image": entries(3), "label": LABELS[:3]}
    columns["image"][1]["bytes"] = b""
    write(pa, hub / "data/val-00000-of-00001.parquet", columns)
    result = driftkit("data", f"{hub}:val", "--skip-broken", "--output", "val")
    assert result.exit_code == 0, result.stderr
    pack = open_pack("val")
    assert torch.equal(pack.images, torch.from_numpy(PIXELS[[0, 2]].transpose(0, 3, 1, 2).copy()))
    assert (pack.labels.tolist(), pack.classes) == ([0, 2], ("ant", "bee", "cat"))
    name = "data/val-00000-of-00001.parquet: row 1 (not an image (empty file))"
    assert pack.card.notes == (f"left out 1 broken image: {name}",)
    assert pack.card.source.options == {"split": "val", "skip_broken": True}


def test_an_image_of_more_bytes_than_a_file_may_have_is_refused(pa, monkeypatch):
    write(pa, "a.parquet", {"image": [encoded(PIXELS[0]), encoded(PIXELS[1]) + bytes(1000)]})
    monkeypatch.setattr("driftkit.datasets.containers.MAX_MEMBER_BYTES", 1000)
    with pytest.raises(ArtifactError, match=r"a\.parquet: row 1: 1,\d+ bytes, expected at most 1,000 for one image"):
        open_dataset("a.parquet?skip_broken=1")


def test_levels_of_classes_are_refused(pa):
    write(pa, "a.parquet", {"image": entries(2)})
    result = driftkit("data", "a.parquet", "--class-level", 1)
    assert result.exit_code == 2
    assert "--class-level is for folders, archives and shards, and this is none; remove it" in result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_a_file_without_rows_is_refused(pa):
    write(pa, "a.parquet", {"image": pa.array([], pa.binary())})
    with pytest.raises(ArtifactError, match="has no rows"):
        open_dataset("a.parquet")


@pytest.mark.parametrize("size", [0, 4, 300, -1])
def test_files_that_are_cut_off_are_refused_by_name(pa, tmp_path, size):
    write(pa, "a.parquet", {"image": entries(4), "label": LABELS[:4]})
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"a\.parquet is not a readable \.parquet file") as caught:
        open_dataset("a.parquet")
    assert "\n" not in str(caught.value)


def test_images_are_resized_at_the_import(pa):
    write(pa, "a.parquet", {"image": [encoded(PIXELS[0]), encoded(PIXELS[0][:4])]})
    assert open_dataset("a.parquet", image_size=4).images.shape == (2, 3, 4, 4)


def test_descriptions_of_image_files_are_no_images(pa, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/0.png").write_bytes(encoded(PIXELS[0]))
    write(pa, tmp_path / "photos/metadata.parquet", {"file_name": ["0.png"]})
    assert open_dataset("photos").card.source.kind == "folder"


def test_a_table_beside_image_files_does_not_take_their_place(pa, tmp_path):
    (tmp_path / "photos").mkdir()
    write(pa, tmp_path / "photos" / "00000.parquet", {"image": entries(3)})
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "0.png")
    pack = open_dataset(str(tmp_path / "photos"))
    assert (pack.card.source.kind, len(pack)) == ("folder", 1)
