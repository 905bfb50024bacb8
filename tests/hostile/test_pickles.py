"""A file that would run a command when it is unpickled, given wherever driftkit takes a file: nothing in it runs."""

import os
import pickle
import zipfile

import pytest
import torch

from driftkit.storage.checksums import write_checksums
from driftkit.storage.files import write_json
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit
from tests.scoring.fakes import make_pack, make_run, random_images


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it-ran"


@pytest.fixture(params=["torch zip", "torch legacy", "plain pickle", "renamed zip"])
def payload(request, tmp_path, mark):
    """The malicious file in the forms in which weights come."""
    path = tmp_path / "weights.pth"
    document = {"state_dict": {"conv1.weight": Payload(mark)}}
    if request.param == "plain pickle":
        path.write_bytes(pickle.dumps(document))
    elif request.param == "renamed zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(document))
    else:
        torch.save(document, path, _use_new_zipfile_serialization=request.param == "torch zip")
    return path


def test_the_payload_is_one(mark):
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


def refused(result, mark, *, codes=(2, 3)):
    assert result.exit_code in codes, result.output
    assert result.output.count("error: ") == 1
    assert "Traceback" not in result.output
    assert "a bug" not in result.output
    assert not mark.exists()


def test_weights_of_an_encoder(payload, mark):
    refused(driftkit("probe-encoder", "resnet18", "--encoder-weights", payload), mark)


def test_weights_of_a_training(payload, mark, tmp_path):
    words = ["train", "--encoder", "resnet18", "--encoder-weights", payload, *TINY_DATA, *TINY_UNET, *TINY_LOOP]
    refused(driftkit(*words, "--steps", 1, "--output", tmp_path / "run"), mark)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("judge", ["inception", "dinov2", "timm:resnet18.tv_in1k"])
def test_weights_of_a_judge(payload, mark, tmp_path, judge, monkeypatch):
    monkeypatch.setattr("driftkit.scoring.extractors.INCEPTION_DIGEST_PREFIX", "")
    make_pack(tmp_path / "p.safetensors", random_images(12))
    words = ("fid", tmp_path / "p.safetensors", "--reference", tmp_path / "p.safetensors", "--extractor", judge)
    refused(driftkit(*words, "--extractor-weights", payload), mark)


def test_a_file_that_says_it_is_safetensors(payload, mark, tmp_path):
    named = payload.rename(payload.with_suffix(".safetensors"))
    write_json(named.with_suffix(".json"), {"kind": "samples", "num_images": 1})
    pack = make_pack(tmp_path / "p.safetensors", random_images(12)).path
    for words in (
        ("probe-encoder", "resnet18", "--encoder-weights", named),
        ("probe-encoder", named),
        ("data", named),
        ("fid", named, "--reference", pack),
        ("fid", pack, "--reference", named),
    ):
        refused(driftkit(*words), mark)


def test_statistics_of_others(payload, mark, tmp_path):
    import numpy as np

    np.savez(tmp_path / "s.npz", mu=np.array([Payload(mark)], dtype=object), sigma=np.eye(1))
    pack = make_pack(tmp_path / "p.safetensors", random_images(12)).path
    run = make_run(tmp_path / "mae", "mae").path
    for file in (tmp_path / "s.npz", payload.rename(tmp_path / "t.npz")):
        from driftkit.errors import ArtifactError
        from driftkit.scoring.statistics_file import open_statistics_file
        from tests.scoring.fakes import tiny_extractor

        with pytest.raises(ArtifactError, match=r"expected an \.npz"):
            open_statistics_file(file, tiny_extractor())
        refused(driftkit("fid", pack, "--reference", file, "--extractor", f"encoder:{run}"), mark)


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".npy", ".parquet"])
def test_arrays_of_images(payload, mark, tmp_path, suffix):
    refused(driftkit("data", payload.rename(payload.with_suffix(suffix))), mark)


def test_arrays_of_objects(mark, tmp_path):
    import numpy as np

    np.save(tmp_path / "a.npy", np.array([Payload(mark)], dtype=object))
    np.savez(tmp_path / "a.npz", arr_0=np.array([Payload(mark)], dtype=object))
    np.savez(tmp_path / "b.npz", np.zeros((1, 8, 8, 3), np.uint8), np.array([Payload(mark)], dtype=object))
    for name in ("a.npy", "a.npz", "b.npz"):
        refused(driftkit("data", tmp_path / name), mark)


def test_a_batch_of_cifar10(mark, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {b"labels": [1, 2], b"data": bytes(6144), b"more": Payload(mark)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    refused(driftkit("data", folder), mark)


def test_checkpoints_of_a_run(payload, mark, tmp_path):
    run = make_run(tmp_path / "run", "ddpm")
    place = run.path / "checkpoints" / "step-00000030"
    place.mkdir(parents=True)
    for name in ("ema.safetensors", "raw.safetensors", "optimizer.safetensors"):
        (place / name).write_bytes(payload.read_bytes())
    write_json(place / "state.json", {"step": 30})
    write_checksums(place)
    for words in (("sample", run.path), ("export", run.path)):
        refused(driftkit(*words), mark)
