"""Forms of samples: the same pixels in each, never half of them, never over something else, and on where it stopped."""

import json
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from driftkit.config.sampling_config import SamplingConfig
from driftkit.errors import ArtifactError, UsageError
from driftkit.runtime.signals import StoppedError
from driftkit.scoring.image_set import ScoringExecution, open_target
from driftkit.stages.verify import verify
from driftkit.storage import images as image_files
from driftkit.storage import unfinished_samples
from driftkit.storage.records import SampleRecord
from driftkit.storage.sample_forms import file_names, sample_form
from driftkit.storage.unfinished_samples import UnfinishedSamples
from tests.conftest import driftkit, train_tiny

SHAPES = ["--data", "shapes?image_size=8&count=300&classes=3"]
SAMPLE = ["--nfe", "2", "--batch-size", "4", "--device", "cpu"]
OUTPUTS = {"safetensors": "s.safetensors", "png": "p", "npz": "n.npz", "zip": "z.zip"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A DDPM of three classes and one without."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRIFTKIT_DATA_DIR", str(folder / "data"))
        rate = ["--set", "trainer.learning_rate=0.01"]  # an output layer of zeros would make all images grey
        train_tiny(folder / "classes", "ddpm", *SHAPES, "--class-conditional", *rate)
        train_tiny(folder / "plain", "ddpm", *rate)
    return folder


def sample(run, output=None, *words, count=10):
    return driftkit("sample", run, "-n", count, *SAMPLE, *(["--output", output] if output else []), *words)


def pixels(path):
    """Images [N, H, W, 3] of a file or folder, read as anybody would."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)["images"].permute(0, 2, 3, 1).numpy()
    if path.suffix == ".npz":
        return np.load(path)["arr_0"]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            return np.stack([np.array(Image.open(archive.open(name))) for name in names])
    return np.stack([np.array(Image.open(file)) for file in sorted(path.glob("*.png"))])


def listing(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and "data" not in p.parts}


def test_every_form_holds_the_same_pixels_and_labels(trained):
    for name, output in OUTPUTS.items():
        done = sample(trained / "classes", output, "--class", "all")
        assert done.exit_code == 0, done.output
        stem = Path(output).with_suffix("")
        record = SampleRecord.read(stem.with_suffix(".json"))
        assert (record.format, record.num_images, record.asked_classes) == (name, 10, ("all",))
        assert stem.with_suffix(".png").is_file()
    held = {name: pixels(Path(output)) for name, output in OUTPUTS.items()}
    assert held["safetensors"].std() > 0
    for array in held.values():
        assert (array.dtype, array.shape) == (np.uint8, (10, 8, 8, 3))
        assert np.array_equal(array, held["safetensors"])
    labels = [number % 3 for number in range(10)]
    listed = {"labels": [[f"{number:06d}.png", label] for number, label in enumerate(labels)]}
    assert safetensors.torch.load_file("s.safetensors")["labels"].tolist() == labels
    with np.load("n.npz") as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        assert (arrays["arr_1"].dtype, arrays["arr_1"].tolist()) == (np.int64, labels)
    assert json.loads(Path("p/dataset.json").read_text()) == listed
    with zipfile.ZipFile("z.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == listed
        assert archive.namelist() == [*file_names(10), "dataset.json"]
        assert {(i.compress_type, i.date_time) for i in archive.infolist()} == {(0, (1980, 1, 1, 0, 0, 0))}
    found = verify([Path()])
    assert (found.problems, found.checked["samples"]) == ([], 4)
    assert not [note for note in found.notes if "data" not in Path(note.path).parts]
    assert verify([Path("p")]).notes == []
    Path("p/000003.png").write_bytes(Path("p/000004.png").read_bytes())
    assert [Path(problem.path).name for problem in verify([Path()]).problems] == ["p"]


def test_equal_images_are_equal_files_without_labels_where_there_are_none(trained):
    for name, output in OUTPUTS.items():
        for where in ("one", "two"):
            Path(where).mkdir(exist_ok=True)
            words = ["--format", name] if where == "two" else []
            assert sample(trained / "plain", f"{where}/{output}", *words).exit_code == 0
    contents = [{p.relative_to(where): c for p, c in listing(where).items()} for where in ("one", "two")]
    assert contents[0] == contents[1]
    assert list(np.load("one/n.npz")) == ["arr_0"]
    assert sorted(p.name for p in Path("one/p").iterdir()) == file_names(10)
    with zipfile.ZipFile("one/z.zip") as archive:
        assert archive.namelist() == file_names(10)


def test_an_evaluator_reads_the_folder(trained):
    datasets = pytest.importorskip("torch_fidelity.datasets")
    utils = pytest.importorskip("torch_fidelity.utils")
    assert sample(trained / "classes", "p").exit_code == 0
    files = utils.glob_samples_paths("p", samples_find_deep=True, samples_find_ext="png,jpg,jpeg", verbose=False)
    read = torch.stack(list(datasets.ImagesPathDataset(sorted(files))))
    assert np.array_equal(read.permute(0, 2, 3, 1).numpy(), pixels(Path("p")))


def stop_after(monkeypatch, count):
    """A signal comes once so many images are made and kept."""
    real = UnfinishedSamples.add

    def add(self, images):
        real(self, images)
        if self.count >= count:
            raise StoppedError(signal.SIGTERM)

    monkeypatch.setattr(unfinished_samples, "KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(UnfinishedSamples, "add", add)


@pytest.mark.parametrize("name", ["png", "npz", None])
def test_a_stopped_sampling_goes_on_where_it_was(trained, name, tmp_path):
    run, output = trained / "plain", OUTPUTS.get(name)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 8)
        stopped = sample(run, output, "--seed", 3, "--set", "eta=0.5")
    assert stopped.exit_code == 143
    assert "8 of 10 images (weights of step 2) are kept" in stopped.stderr
    if output:
        assert [p.name for p in Path().iterdir() if p.name != "data"] == [f".{output}.unfinished"]
        other = sample(run, output, "--seed", 4, "--set", "eta=0.5")
        assert other.exit_code == 2
        assert "--seed was 3 and is 4 now" in other.stderr
        assert "another --output to start over" in other.stderr
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnfinishedSamples, "add", lambda self, images: made.append(images) or self._new.append(images))
        done = sample(run, output, "--seed", 3, "--set", "eta=0.5", "--json")
    assert done.exit_code == 0, done.output
    assert "8 of 10 images are there" in done.stderr
    assert sum(map(len, made)) == 2
    whole = sample(run, "whole.safetensors", "--seed", 3, "--set", "eta=0.5")
    assert whole.exit_code == 0
    assert np.array_equal(pixels(Path(json.loads(done.stdout)["samples"])), pixels(Path("whole.safetensors")))
    assert not list(tmp_path.rglob(".*.unfinished")) + list(run.rglob(".*.unfinished"))


@pytest.mark.parametrize("name", ["png", "npz"])
def test_a_sampling_that_ends_before_its_record_is_made_whole(trained, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "save_grid", lambda *_, **__: (_ for _ in ()).throw(StoppedError(signal.SIGTERM)))
        assert sample(trained / "plain", OUTPUTS[name]).exit_code == 143
    assert not Path(OUTPUTS[name]).with_suffix(".json").exists()
    assert [note.kind for note in verify([Path()]).notes if "unfinished" in note.path] == ["unfinished"]
    assert sample(trained / "plain", OUTPUTS[name]).exit_code == 0
    assert SampleRecord.read(Path(OUTPUTS[name]).with_suffix(".json")).format == name


@pytest.mark.parametrize(("name", "says"), [("png", "10 images were there already"), ("npz", "10 images (ddim")])
def test_a_sampling_that_ends_behind_its_record_is_finished(trained, name, says):
    def stop(self):
        raise StoppedError(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnfinishedSamples, "finish", stop)
        assert sample(trained / "plain", OUTPUTS[name]).exit_code == 143
    done = sample(trained / "plain", OUTPUTS[name])
    assert (done.exit_code, says in done.stdout) == (0, True), done.output
    assert not list(Path().glob(".*.unfinished"))


def test_an_unfinished_sampling_does_not_take_the_record_of_another(trained):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 8)
        assert sample(trained / "plain", "s.npz").exit_code == 143
    assert sample(trained / "plain", "s.safetensors").exit_code == 0
    refused = sample(trained / "plain", "s.npz")
    assert (refused.exit_code, "s.json is of samples as safetensors" in refused.stderr) == (2, True)


def test_a_finished_folder_is_kept_as_it_is(trained, monkeypatch):
    assert sample(trained / "plain", "p").exit_code == 0
    before = listing(".")
    monkeypatch.setattr("driftkit.training.sampling.generate", lambda *_, **__: pytest.fail("made again"))
    again = sample(trained / "plain", "p")
    assert (again.exit_code, "10 images were there already" in again.stdout) == (0, True)
    for words, says in ((["--seed", 1], "--seed was 0 and is 1 now"), (["-n", 3], "--num-images was 10 and is 3 now")):
        refused = sample(trained / "plain", "p", *words)
        assert refused.exit_code == 2
        assert says in refused.stderr
    assert listing(".") == before


@pytest.mark.parametrize("name", ["notes.txt", "000000.png"])
def test_a_folder_with_other_things_is_refused_and_left(trained, name):
    Path("p").mkdir()
    Path("p", name).write_text("mine")
    refused = sample(trained / "plain", "p")
    assert refused.exit_code == 2
    assert "--output p: expected a new or empty folder, got one with other files" in refused.stderr
    assert list(listing(".")) == [Path("p", name)]
    Path("p", name).unlink()
    assert sample(trained / "plain", "p", count=2).exit_code == 0


def test_what_is_added_to_finished_samples_is_not_deleted(trained):
    assert sample(trained / "plain", "p", count=2).exit_code == 0
    Path("p/notes.txt").write_text("mine")
    assert sample(trained / "plain", "p", count=2).exit_code == 2
    assert Path("p/notes.txt").read_text() == "mine"


def test_one_name_is_of_one_form(trained):
    assert sample(trained / "plain", "s.safetensors", count=2).exit_code == 0
    before = listing(".")
    for output in ("s.npz", "s.zip", "s"):
        refused = sample(trained / "plain", output, count=2)
        assert refused.exit_code == 2
        assert "s.json is of samples as safetensors" in refused.stderr
    assert listing(".") == before


@pytest.mark.parametrize(
    ("output", "name", "want"),
    [
        (None, None, "safetensors"),
        (None, "png", "png"),
        ("a.safetensors", None, "safetensors"),
        ("a.npz", None, "npz"),
        ("a.zip", "zip", "zip"),
        ("a", None, "png"),
        ("v1.5", "png", "png"),
        ("a.png", None, "ends in .safetensors, .npz, .zip, or none for a folder of PNGs"),
        ("a.npz", "zip", "ends in .zip for `format` zip"),
        ("a", "npz", "ends in .npz"),
    ],
)
def test_the_form_follows_from_name_or_suffix(output, name, want):
    path = None if output is None else Path(output)
    if " " not in want:
        assert sample_form(path, name).name == want
    else:
        with pytest.raises(UsageError, match=want):
            sample_form(path, name)


def test_numbers_of_many_files_sort_as_words(monkeypatch):
    assert file_names(3) == ["000000.png", "000001.png", "000002.png"]
    monkeypatch.setattr("driftkit.storage.sample_forms.MIN_DIGITS", 1)
    assert file_names(11) == [f"{number:02d}.png" for number in range(11)]


def test_a_smaller_sampling_leaves_what_a_larger_one_keeps(trained):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 8)
        assert sample(trained / "plain").exit_code == 143
    kept = list((trained / "plain").rglob("*.unfinished/*.safetensors"))
    assert sample(trained / "plain", count=2).exit_code == 0
    assert kept
    assert list((trained / "plain").rglob("*.unfinished/*.safetensors")) == kept


def test_images_that_another_batch_size_goes_on_behind_are_all_kept(tmp_path):
    request = {"seed": 0}
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 3, 2, 2).contiguous()
    first = UnfinishedSamples(tmp_path / "s.npz", request)
    first.begin(0)
    for part in images[:10].split(5):
        first.add(part)
        first.save()
    again = UnfinishedSamples(tmp_path / "s.npz", request)
    assert again.count == 10
    again.begin(8)
    again.add(images[8:12])
    again.save()
    assert torch.equal(UnfinishedSamples(tmp_path / "s.npz", request).images(), images)


def test_damaged_unfinished_images_are_refused(tmp_path):
    unfinished = UnfinishedSamples(tmp_path / "s.npz", {})
    unfinished.begin(0)
    unfinished.add(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    unfinished.save()
    (part,) = unfinished.folder.glob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-1] + b"\1")
    with pytest.raises(ArtifactError, match="is damaged; remove"):
        UnfinishedSamples(tmp_path / "s.npz", {})


def test_a_picture_where_the_grid_goes_is_left(trained):
    Path("figure.png").write_text("mine")
    refused = sample(trained / "plain", "figure.npz")
    assert (refused.exit_code, "figure.png" in refused.stderr) == (2, True)
    assert Path("figure.png").read_text() == "mine"


@pytest.mark.parametrize("output", [".", "/"])
def test_an_output_without_a_name_is_refused(trained, output):
    refused = sample(trained / "plain", output)
    assert refused.exit_code == 2
    assert "bug" not in refused.stderr


@pytest.mark.parametrize("name", ["png", "npz", "zip"])
def test_images_of_every_form_are_scored_with_their_record(trained, name):
    assert sample(trained / "classes", OUTPUTS[name], "--class", "all").exit_code == 0
    assert sample(trained / "classes", "s.safetensors", "--class", "all").exit_code == 0
    target, plain = (
        open_target(Path(path), SamplingConfig(), ScoringExecution()) for path in (OUTPUTS[name], "s.safetensors")
    )
    assert target.run is not None
    assert target.sampling == plain.sampling
    assert (target.classes, target.labels.tolist()) == (plain.classes, plain.labels.tolist())
    assert torch.equal(target.images, plain.images)
