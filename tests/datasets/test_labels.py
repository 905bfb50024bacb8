"""Classes from label files, chunks that are none, and folders at a level."""

import json

import pytest

from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError, UsageError
from tests.conftest import driftkit
from tests.datasets.test_folder import KINDS, make
from tests.image_files import as_folder, as_tar, as_zip, png

CHUNKS = {f"{i // 1000:05}/img{i:08}.png": png((i % 1000, 0, 0)) for i in (0, 1, 999, 1000, 1001)}
NAMES = list(CHUNKS)


def with_list(document, files=CHUNKS, name="dataset.json"):
    return {**files, name: document if isinstance(document, bytes) else json.dumps(document).encode()}


@KINDS
@pytest.mark.parametrize(
    "labels",
    [
        [[name, label] for name, label in zip(NAMES, (6, 10, 6, 0, 10), strict=True)],
        dict(zip(NAMES, (6, 10, 6, 0, 10), strict=True)),
        [[name.replace("/", "\\"), label] for name, label in zip(NAMES, (6, 10, 6, 0, 10), strict=True)],
    ],
    ids=["pairs", "mapping", "backslashes"],
)
def test_dataset_json_gives_the_labels(kind, labels, tmp_path):
    pack = open_dataset(str(make(kind, tmp_path, with_list({"labels": labels}))))
    assert pack.classes == ("0", "6", "10")
    assert pack.labels.tolist() == [1, 2, 1, 0, 2]
    assert pack.card.notes == ()


def test_dataset_json_may_be_the_mapping_itself_hold_names_and_lie_in_a_folder(tmp_path):
    files = {f"edm/{name}": data for name, data in CHUNKS.items()}
    labels = dict(zip(NAMES, ("cat", "dog", "cat", "cat", "dog"), strict=True))
    pack = open_dataset(str(as_zip(tmp_path / "x.zip", with_list(labels, files, "edm/dataset.json"))))
    assert (pack.classes, pack.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 0, 1])


@pytest.mark.parametrize("document", [{"labels": None}, {"labels": None, "more": 1}])
def test_dataset_json_without_labels_makes_no_classes(document, tmp_path):
    files = {"cat/1.png": png(), "dog/1.png": png()}
    pack = open_dataset(str(as_zip(tmp_path / "x.zip", with_list(document, files))))
    assert (pack.classes, pack.labels.tolist()) == ((), [-1, -1])


def one_label(value):
    return {"labels": [[name, value if name == NAMES[2] else 1] for name in NAMES]}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"{", "dataset.json is not readable JSON"),
        (b'{"labels": NaN}', "dataset.json is not readable JSON"),
        ([1, 2], r"expected \{\"labels\""),
        ({"labels": [1, 2, 3, 4, 5]}, r"expected \{\"labels\""),
        ({"labels": 3}, r"expected \{\"labels\""),
        ({"about": "cats"}, "names about, which is not there"),
        ({"labels": [[name, 1] for name in NAMES[:3]]}, r"labels for 3 of 5 images, none for 00001/img00001000\.png"),
        ({"labels": [[name, 1] for name in [*NAMES, "00009/img00009000.png"]]}, "img00009000.png, which is not there"),
        ({"labels": [[name, 1] for name in [*NAMES, NAMES[0]]]}, "img00000000.png, twice"),
        (one_label([0, 1, 0]), r"img00000999\.png: the label is a vector of 3"),
        (one_label(0.5), "the label is 0.5"),
        (one_label(True), "the label is True"),
        (one_label(-1), "the label is -1"),
        (one_label(None), "the label is None"),
        (one_label(""), "the label is ''"),
    ],
)
def test_a_dataset_json_that_does_not_fit_is_one_line_and_code_3(document, said, tmp_path):
    path = as_zip(tmp_path / "x.zip", with_list(document))
    with pytest.raises(ArtifactError, match=said):
        open_dataset(str(path))
    shown = driftkit("data", path)
    assert (shown.exit_code, len(shown.stderr.splitlines()), shown.stdout) == (3, 1, "")
    assert "--class-level 0" in shown.stderr
    assert open_dataset(f"{path}?class_level=0").classes == ()


@KINDS
@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        [f"root/{name}" for name in NAMES],
        NAMES[:2],
        ["000000/000000.png", "000000/000999.png", "001000/001000.png"],
        ["00000/00000.png", "00000/00999.png", "69000/69001.png"],
    ],
    ids=["dataset-tool", "below-a-folder", "one-chunk", "generated", "ffhq"],
)
def test_numbered_chunks_are_no_classes(kind, names, tmp_path):
    pack = open_dataset(str(make(kind, tmp_path, {name: png() for name in names})))
    assert (pack.classes, set(pack.labels.tolist())) == ((), {-1})
    assert pack.card.notes == ("numbered folders are no classes",)


@pytest.mark.parametrize(
    "names",
    [
        [f"{label}/{i}.png" for label in range(10) for i in range(2)],
        [f"{label:05}/{i:05}.png" for label in range(3) for i in range(2)],
        [f"{label:05}/{label:05}_{i:05}.ppm" for label in range(3) for i in range(2)],
        [f"{label:05}/img{i:08}.png" for label in range(3) for i in range(2)],
        [*NAMES, "00002/img00000001.png"],
    ],
)
def test_numbered_classes_stay_classes(names, tmp_path):
    folders = {name.partition("/")[0] for name in names}
    assert set(open_dataset(str(as_folder(tmp_path / "x", {name: png() for name in names}))).classes) == folders


NESTED = ["cat/session1/1.png", "cat/session2/1.png", "cat/2.png", "dog/session1/1.png"]


@KINDS
def test_the_class_is_the_first_folder_however_deep_the_images_lie(kind, tmp_path):
    pack = open_dataset(str(make(kind, tmp_path, {name: png() for name in NESTED})))
    assert (pack.classes, pack.labels.tolist(), pack.card.notes) == (("cat", "dog"), [0, 0, 0, 1], ())


def test_a_split_above_nested_classes_does_not_count(tmp_path):
    path = as_folder(tmp_path / "x", {f"{split}/{name}": png() for split in ("train", "val") for name in NESTED})
    for spec in (f"{path}?split=train", f"{path}/train", f"{path}?split=train&class_level=1"):
        assert open_dataset(spec).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "classes", "note"),
    [
        (
            ["all/cat/1.png", "all/dog/1.png"],
            ("cat", "dog"),
            "assumed that the folders in all are the classes (class_level 2)",
        ),
        (
            ["cat/1.png", "cat/2.png"],
            (),
            "assumed no classes, since all images lie in cat; ?class_level=1 makes it their class",
        ),
        (
            ["a/abbey/1.png", "a/attic/1.png", "b/beach/1.png"],
            ("a", "b"),
            "assumed that a, b are the classes; ?class_level=2 takes the folders below them",
        ),
    ],
)
def test_a_guess_is_told(names, classes, note, tmp_path):
    pack = open_dataset(str(as_folder(tmp_path / "x", {name: png() for name in names})))
    assert (pack.classes, pack.card.notes) == (classes, (note,))


def test_the_level_says_which_folder_is_the_class(tmp_path):
    files = {name: png() for name in ("a/abbey/1.png", "a/attic/x/1.png", "b/abbey/1.png")}
    path = as_folder(tmp_path / "x", files)
    packs = [open_dataset(f"{path}?class_level={level}") for level in range(3)]
    assert [pack.classes for pack in packs] == [(), ("a", "b"), ("abbey", "attic")]
    assert packs[2].labels.tolist() == [0, 1, 0]
    assert packs[2].card.source.options == {"class_level": 2}
    assert len({pack.path for pack in (*packs, open_dataset(str(path)))}) == 4
    with pytest.raises(ArtifactError, match=r"a/abbey/1\.png lies at level 2, above `class_level` 3"):
        open_dataset(f"{path}?class_level=3")
    for level in ("-1", "two", ""):
        with pytest.raises(UsageError, match="class_level is"):
            open_dataset(f"{path}?class_level={level}")


def test_the_level_is_an_option_of_data_that_goes_before_label_files(tmp_path):
    files = {"cat/1.png": png(), "dog/1.png": png()}
    path = as_folder(tmp_path / "x", with_list({"labels": {"cat/1.png": 3, "dog/1.png": 4}}, files))
    shown = driftkit("data", path, "--class-level", 1, "--json")
    assert shown.exit_code == 0, shown.output
    card = json.loads(shown.stdout)
    assert (card["classes"], card["source"]["options"]) == ({"cat": 1, "dog": 1}, {"class_level": 1})
    assert open_dataset(str(path)).classes == ("3", "4")
    refused = driftkit("data", f"{path}?class_level=1", "--class-level", 1)
    assert (refused.exit_code, "twice" in refused.stderr) == (2, True)
    refused = driftkit("data", "shapes", "--class-level", 1)
    assert (refused.exit_code, "class_level" in refused.stderr) == (2, True)


def test_an_extracted_sample_is_labelled_by_its_cls_and_not_by_its_json(tmp_path):
    files = {"1.png": png(), "1.cls": b"7\n", "1.json": b'{"label": 3}', "1.txt": b"a cat"}
    pack = open_dataset(str(as_folder(tmp_path / "x", files)))
    assert (pack.classes, pack.card.notes) == (("7",), ("left out: 1 .json, 1 .txt",))
    tar = {name: data for name, data in files.items() if name != "1.cls"}
    assert open_dataset(str(as_tar(tmp_path / "x.tar", tar))).classes == ("3",)
    assert open_dataset(str(as_zip(tmp_path / "y.zip", tar))).classes == ()
