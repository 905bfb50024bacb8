"""Shards of webdataset: several tar archives as one set of images, labelled by the files of each sample."""

import json
import tracemalloc

import numpy as np
import pytest

from driftkit.datasets.containers import Tar
from driftkit.datasets.shards import Shards
from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError
from tests.conftest import driftkit
from tests.image_files import as_tar, encoded, png


def sample(number, label, *, kind="cls"):
    """The files of one sample, whose image has its number as colour."""
    said = {"cls": f"{label}\n".encode(), "json": json.dumps({"caption": "a cat", "label": label}).encode()}
    return {f"{number:06}.png": png((number, 0, 0)), f"{number:06}.txt": b"a cat", f"{number:06}.{kind}": said[kind]}


def shards(folder, count=3, *, name="train-{:03}.tar", **how):
    """Archives of two samples each, with labels 0, 5, 0, 5, ..."""
    folder.mkdir()
    for shard in range(count):
        as_tar(folder / name.format(shard), sample(2 * shard, 0, **how) | sample(2 * shard + 1, 5, **how))
    return folder


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("named", ["range", "folder"])
@pytest.mark.parametrize("name", ["train-{:03}.tar", "train-{:03}.tar.gz"])
def test_shards_are_one_set_labelled_by_their_samples(named, kind, name, tmp_path):
    folder = shards(tmp_path / "wds", kind=kind, name=name)
    spec = folder if named == "folder" else folder / name.replace("{:03}", "{000..002}")
    pack = open_dataset(str(spec))
    assert (pack.classes, pack.labels.tolist()) == (("0", "5"), [0, 1, 0, 1, 0, 1])
    assert pack.images[:, 0, 0, 0].tolist() == list(range(6))
    assert pack.card.notes == ("left out: 6 .txt", "shards: 3")
    assert (pack.card.source.kind, pack.card.label) == ("shards", "wds-train" if named == "range" else "wds")


def test_a_range_takes_what_it_says_and_a_changed_shard_is_imported_again(tmp_path):
    folder = shards(tmp_path / "wds")
    spec = f"{folder}/train-{{001..002}}.tar"
    before = open_dataset(spec)
    assert before.images[:, 0, 0, 0].tolist() == [2, 3, 4, 5]
    as_tar(folder / "train-001.tar", sample(90, 1) | sample(91, 1))
    after = open_dataset(spec)
    assert (after.images[:2, 0, 0, 0].tolist(), after.classes) == ([90, 91], ("0", "1", "5"))


def test_shards_that_are_only_numbered_are_called_as_their_folder(tmp_path):
    shards(tmp_path / "wds", 2, name="{:05}.tar")
    assert open_dataset(f"{tmp_path}/wds/{{00000..00001}}.tar").card.label == "wds"


def test_one_archive_of_samples_is_labelled_too(tmp_path):
    folder = shards(tmp_path / "wds", 1)
    assert open_dataset(str(folder / "train-000.tar")).labels.tolist() == [0, 1]


def test_equal_names_in_two_shards_are_two_samples(tmp_path):
    (tmp_path / "wds").mkdir()
    for shard, label in ((0, 3), (1, 4)):
        as_tar(tmp_path / "wds" / f"s{shard}.tar", sample(7, label))
    pack = open_dataset(str(tmp_path / "wds"))
    assert (pack.classes, pack.labels.tolist()) == (("3", "4"), [0, 1])


def test_masks_of_samples_are_no_images(tmp_path):
    files = {**sample(1, 0), "000001.seg.png": png(), **sample(2, 1)}
    pack = open_dataset(str(as_tar(tmp_path / "x.tar", files)))
    assert (len(pack), pack.card.notes) == (2, ("left out: 2 .txt, 1 .seg.png",))


def test_folders_in_shards_are_classes_where_no_file_says_labels_and_archives_are_not(tmp_path):
    (tmp_path / "wds").mkdir()
    for shard in range(2):
        as_tar(tmp_path / "wds" / f"s{shard}.tar", {f"{name}/{shard}.png": png() for name in ("cat", "dog")})
    assert open_dataset(str(tmp_path / "wds")).classes == ("cat", "dog")
    assert open_dataset(f"{tmp_path}/wds?class_level=0").classes == ()
    for shard in range(2):
        as_tar(tmp_path / "wds" / f"s{shard}.tar", {f"{shard}.png": png(), f"{shard}.json": b'{"caption": "a cat"}'})
    pack = open_dataset(str(tmp_path / "wds"))
    assert (pack.classes, pack.card.notes[0]) == ((), "left out: 2 .json")


@pytest.mark.parametrize(
    ("change", "spec", "said"),
    [
        (lambda f: (f / "train-001.tar").unlink(), "wds/train-{000..002}.tar", r"1 of 3 shards are missing: train-001"),
        (lambda f: None, "wds/val-{000..002}.tar", r"none of the 3 shards is there; expected val-000\.tar"),
        (lambda f: None, "wds/train-{002..000}.tar", "the smaller number first"),
        (lambda f: None, "wds/train-{0..999999}.tar", "at most 100,000 shards"),
        (lambda f: cut(f / "train-001.tar", 1000), "wds", r"train-001\.tar is no whole tar archive"),
        (lambda f: cut(f / "train-001.tar", 4096), "wds", r"train-001\.tar is no whole tar archive"),
        (lambda f: as_tar(f / "val-000.tar", sample(9, 0)), "wds", r"of different names, such as .*val-000\.tar"),
        (lambda f: as_tar(f / "train-001.tar", {"1.png": png()}), "wds", r"labels for 4 of 5 images, none for train"),
        (lambda f: as_tar(f / "train-001.tar", sample(9, "cat")), "wds", r"000009\.cls holds b'cat\\n', expected"),
        (lambda f: as_tar(f / "train-001.tar", sample(9, -1)), "wds", r"000009\.cls: the label is -1"),
        (lambda f: (f / "notes.md").write_text("x"), "wds", r"no images among 4 files \(3 \.tar, 1 \.md\).*name-\{000"),
    ],
)  # fmt: skip
def test_shards_that_do_not_fit_are_one_line_and_code_3(change, spec, said, tmp_path):
    change(shards(tmp_path / "wds"))
    with pytest.raises(ArtifactError, match=said):
        open_dataset(spec)
    shown = driftkit("data", spec)
    assert (shown.exit_code, len(shown.stderr.splitlines()), shown.stdout) == (3, 1, "")
    assert not (tmp_path / "data").exists()


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("document", [b"{", b'{"label": [0, 1]}', b'{"cls": 1.5}'])
def test_a_json_that_holds_no_label_to_use_is_named(document, tmp_path):
    as_tar(tmp_path / "x.tar", {"000001.png": png(), "000001.json": document})
    with pytest.raises(ArtifactError, match=r"x\.tar: 000001\.json"):
        open_dataset("x.tar")


def test_files_are_read_one_at_a_time(tmp_path):
    (tmp_path / "wds").mkdir()
    noise = np.random.default_rng(0)
    for shard in range(4):
        files = {f"{i}.png": encoded(noise.integers(0, 256, (128, 128, 3), dtype=np.uint8)) for i in range(10)}
        as_tar(tmp_path / "wds" / f"s{shard}.tar", files)
    container = Shards(tmp_path / "wds")
    names = set(container.names())
    tracemalloc.start()
    count = sum(len(data) > 40_000 for _, data in container.contents(names))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == len(names) == 40
    assert peak < 10 * 50_000  # of 2 MB


def test_shards_without_a_wanted_file_are_not_decoded(tmp_path):
    folder = shards(tmp_path / "wds")
    wanted = {"train-001.tar/000003.cls"}
    assert dict(Shards(folder).contents(wanted)) == {"train-001.tar/000003.cls": b"5\n"}
    assert dict(Tar(folder / "train-001.tar").contents({"000003.cls"})) == {"000003.cls": b"5\n"}
