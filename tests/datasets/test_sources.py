"""Specs: what they name, that an import happens once, and that peers neither race nor hang."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from driftkit.datasets import sources
from driftkit.datasets.packs import open_pack
from driftkit.datasets.sources import open_dataset, parse_spec
from driftkit.datasets.spec import FORMATS
from driftkit.errors import ArtifactError, UsageError
from driftkit.runtime.ranks import Ranks
from tests.conftest import driftkit

SMALL = "shapes?count=20&image_size=8"


def test_every_kind_of_source_is_in_the_help_text_and_in_the_readme():
    assert FORMATS.keys() == sources.SOURCES.keys()
    table = (Path(sources.__file__).parent / "README.md").read_text()
    named = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    shown = driftkit("data", "--help").stdout
    for row in (row for rows in FORMATS.values() for row in rows):
        assert row.looks in named
        assert row.looks in shown


def test_second_open_reuses_the_pack(monkeypatch):
    first = open_dataset(SMALL)
    monkeypatch.setattr(sources, "import_source", None)
    again = open_dataset(SMALL)
    assert (again.path, again.digest) == (first.path, first.digest)


def test_order_and_spelling_of_options_do_not_matter():
    specs = ("shapes:test?count=20&image_size=8", "shapes?image_size=8&split=test&count=20&seed=0")
    assert len({open_dataset(spec).path for spec in specs}) == 1
    assert open_dataset("shapes:test?count=20", image_size=8).path == open_dataset(specs[0]).path


def test_image_size_gives_a_pack_of_its_own():
    assert open_dataset("shapes?count=20", image_size=16).image_size == 16
    assert open_dataset("shapes?count=20").image_size == 32


def test_limit_takes_a_balanced_part():
    assert open_dataset(SMALL, limit=10).labels.tolist() == list(range(10))
    with pytest.raises(UsageError, match="`limit` 0"):
        open_dataset(SMALL, limit=0)


def test_pack_is_opened_with_and_without_suffix(tmp_path):
    path = open_dataset(SMALL).path
    assert open_dataset(str(path)).digest == open_dataset(str(path.with_suffix(""))).digest
    with pytest.raises(ArtifactError, match=r"8x8 px, expected 16x16; .*--image-size 16 --output"):
        open_dataset(str(path), image_size=16)
    with pytest.raises(ArtifactError, match="not there"):
        open_dataset(str(tmp_path / "none.safetensors"))


def test_unfinished_import_is_done_again():
    path = open_dataset(SMALL).path
    path.with_suffix(".json").unlink()
    assert len(open_dataset(SMALL)) == 20


def test_data_folder_argument_goes_before_the_variable(tmp_path, monkeypatch):
    assert open_dataset(SMALL, data_dir=tmp_path / "mine").path.parent == tmp_path / "mine"
    monkeypatch.delenv("DRIFTKIT_DATA_DIR")
    assert str(open_dataset(SMALL).path.parent) == "data"


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("shapes?cuont=3", UsageError, "did you mean count"),
        ("shapes?count=many", UsageError, "count is many"),
        ("shapes?count=3&count=4", UsageError, "twice"),
        ("shapes?count", UsageError, "key=value"),
        ("shapes:val", UsageError, "split is val"),
        ("shapes:test?split=train", UsageError, "twice"),
        ("cifar10?splt=test", UsageError, "did you mean split"),
        ("", UsageError, "empty"),
        ("shape", ArtifactError, "did you mean shapes"),
        ("no/such/folder", ArtifactError, "a folder of images"),
        ("https://host/images.zip", ArtifactError, "no such file"),
    ],
)
def test_what_does_not_fit_is_explained(spec, error, said):
    with pytest.raises(error, match=said):
        open_dataset(spec, allow_download=False)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"expected a folder, \.zip"):
        open_dataset(str(tmp_path / "notes.txt"))


def test_a_split_behind_a_path_is_taken_apart_unless_the_file_is_called_so(tmp_path):
    (tmp_path / "photos").mkdir()
    assert parse_spec("photos:test").query == parse_spec("photos?split=test").query == {"split": "test"}
    (tmp_path / "photos:test").mkdir()
    assert parse_spec("photos:test").target == "photos:test"
    assert parse_spec("nothing:test").query == {}


def test_option_that_contradicts_the_spec_is_refused():
    with pytest.raises(UsageError, match="another image size"):
        open_dataset(SMALL, image_size=16)


def test_question_mark_in_a_real_name_is_part_of_it(tmp_path):
    (tmp_path / "why?").mkdir()
    assert parse_spec(str(tmp_path / "why?")).query == {}


@dataclass(frozen=True)
class FakeRanks(Ranks):
    """A rank whose barriers are counted and do something."""

    waited: list[int] = field(default_factory=list)
    meanwhile: object = None

    def barrier(self):
        self.waited.append(self.rank)
        if callable(self.meanwhile):
            self.meanwhile()


def test_other_ranks_wait_for_the_first_and_import_nothing(monkeypatch):
    real = sources.import_source
    monkeypatch.setattr(sources, "import_source", None)
    first = sources.resolve(SMALL)
    other = FakeRanks(rank=1, world_size=2, meanwhile=lambda: real(first, sources.import_path(first)))
    assert len(open_dataset(SMALL, ranks=other)) == 20
    assert other.waited == [1]


def test_failure_of_the_first_rank_reaches_all(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"junk")
    for rank in (0, 1):
        ranks = FakeRanks(rank=rank, world_size=2)
        with pytest.raises(ArtifactError, match="not an image" if rank == 0 else "the first rank left no pack"):
            open_dataset(str(tmp_path / "bad"), ranks=ranks)
        assert ranks.waited == [rank]


@pytest.mark.slow
def test_two_processes_that_import_at_once_end_with_one_pack(tmp_path):
    code = (
        "from driftkit.datasets.sources import open_dataset; open_dataset('shapes?count=3000&image_size=16').verify()"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    (path,) = (tmp_path / "data").glob("*.safetensors")
    open_pack(path).verify()
    assert len(list((tmp_path / "data").glob("[!.]*"))) == 2


def test_batches_can_be_picked_from_the_mapped_images():
    pack = open_dataset(SMALL)
    picked = pack.images[torch.tensor([3, 1])]
    assert picked.shape == (2, 3, 8, 8)
