"""Statistics on disk: what they hold, when they are refused, and several writers at once."""

import errno
import json
import os

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from driftkit.scoring.reference_statistics import (
    cached_figures,
    cached_path,
    describe_contract,
    find_cached,
    is_statistics_file,
    open_statistics_file,
    read_statistics,
    write_statistics,
)

from driftkit.errors import ArtifactError, RefusedError
from driftkit.metrics.moments import Moments
from driftkit.scoring.evaluator import evaluate, evaluate_with, open_judge
from driftkit.scoring.extraction import Share, extract
from driftkit.storage.files import read_tensors, write_tensors
from driftkit.storage.images import write_samples
from tests.scoring.fakes import make_pack, random_images, tiny_extractor

DATA = {"spec": "real", "digest": "cd" * 32, "count": 40, "image_size": 8, "classes": [], "formats": {}}


def made(seed=1, **data):
    features = extract(tiny_extractor(), random_images(40, seed), Share(0, 40, 40))
    return features, describe_contract({**DATA, **data}, tiny_extractor())


def test_statistics_come_back_as_they_were(tmp_path):
    features, contract = made()
    path = tmp_path / "real.safetensors"
    write_statistics(path, features, contract)
    found = read_statistics(path)
    assert found.contract == contract
    assert torch.equal(found.features.rows, features.rows)
    assert torch.equal(found.features.moments.scatter, features.moments.scatter)
    assert found.features.moments.count == 40
    assert found.features.survey.shared_with(features.survey) == 40
    beside = json.loads(path.with_suffix(".json").read_text())
    assert beside["data"] == contract["data"]
    assert beside["extractor"] == tiny_extractor().describe()
    assert len(beside["sha256"]) == 64
    assert is_statistics_file(path)


def test_cache_is_found_by_content_and_by_nothing_else():
    told = []
    features, contract = made()
    assert find_cached(contract, told.append) is None
    write_statistics(cached_path(contract), features, contract)
    assert find_cached(made(spec="the same by another name")[1], told.append) is not None
    for other in (
        made(digest="00" * 32)[1],
        made(count=41)[1],
        made(image_size=16)[1],
        describe_contract(DATA, tiny_extractor(digest="00" * 32)),
        describe_contract(DATA, tiny_extractor(name="encoder:other")),
    ):
        assert find_cached(other, told.append) is None
    assert told == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def changed(path):
    tensors, header = read_tensors(path)
    tensors = {name: t.clone() for name, t in tensors.items()}
    tensors["rows"][3, 2] += 1
    write_tensors(path, tensors, header=header)


def exchanged(path):
    features, contract = made(seed=2, digest="ee" * 32)
    write_statistics(path, features, contract)


def of_a_later_format(path):
    tensors, header = read_tensors(path)
    contract = {**json.loads(header["contract"]), "format": 99}
    write_tensors(path, dict(tensors), header={**header, "contract": json.dumps(contract)})


@pytest.mark.parametrize("damage", [cut, changed, exchanged, of_a_later_format])
def test_damaged_cache_is_told_and_made_anew(tmp_path, damage):
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1))
    write_samples(tmp_path / "made.safetensors", random_images(20, 2), {"num_images": 20})
    told = []
    first = evaluate(tmp_path / "made.safetensors", str(pack.path), features=tiny_extractor()).document
    (path,) = (tmp_path / "cache" / "statistics").glob("*.safetensors")
    damage(path)
    for figures in path.parent.glob("*.floor*.json"):
        figures.unlink()
    again = evaluate(tmp_path / "made.safetensors", str(pack.path), features=tiny_extractor(), tell=told.append)
    assert again.document["metrics"] == first["metrics"]
    assert len(told) == 1
    assert "computed anew" in told[0]
    assert read_statistics(path).contract["data"]["digest"] == pack.digest


def test_damaged_figures_are_computed_anew():
    features, contract = made()
    statistics = write_statistics(cached_path(contract), features, contract)
    asked = []

    def compute():
        asked.append(1)
        return {"fid": 1.5}

    assert [cached_figures(statistics, "floor-10", compute) for _ in range(2)] == [{"fid": 1.5}] * 2
    assert len(asked) == 1
    (path,) = statistics.path.parent.glob("*.floor-10.json")
    path.write_text(path.read_text()[:-20])
    assert cached_figures(statistics, "floor-10", compute) == {"fid": 1.5}
    assert len(asked) == 2
    assert cached_figures(statistics, "floor-10", compute, use=False) == {"fid": 1.5}
    assert len(asked) == 3


def test_a_full_cache_costs_time_and_not_the_figures(monkeypatch):
    features, contract = made()
    statistics = write_statistics(cached_path(contract), features, contract)

    def full(*_: object):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert cached_figures(statistics, "floor-10", lambda: {"fid": 1.5}) == {"fid": 1.5}
    assert not list(statistics.path.parent.glob("*.floor-10.json"))


def write_again_and_again(number, folder):
    os.environ["DRIFTKIT_CACHE"] = folder
    torch.set_num_threads(1)
    features, contract = made()
    for _ in range(15):
        write_statistics(cached_path(contract), features, contract)
        told = []
        found = find_cached(contract, told.append)
        assert found is not None, told
        assert torch.equal(found.features.rows, features.rows)


def test_two_writers_at_once_never_show_a_reader_half_a_file(tmp_path):
    folder = str(tmp_path / "shared")
    mp.start_processes(write_again_and_again, args=(folder,), nprocs=2, start_method="spawn")
    names = sorted(p.suffix for p in (tmp_path / "shared" / "statistics").iterdir())
    assert names == [".json", ".safetensors"]


def test_statistics_stand_in_for_the_images(tmp_path):
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1))
    write_samples(tmp_path / "made.safetensors", random_images(20, 2), {"num_images": 20})
    judge = open_judge(str(pack.path), features=tiny_extractor())
    judge.write_statistics(tmp_path / "statistics.safetensors")
    direct = evaluate_with([judge], tmp_path / "made.safetensors")[0].document
    by_file = evaluate(
        tmp_path / "made.safetensors", str(tmp_path / "statistics.safetensors"), features=tiny_extractor()
    ).document
    for key, value in by_file["metrics"].items():
        assert direct["metrics"][key] == value
    assert by_file["floor"] == direct["floor"]
    assert by_file["reference"]["digest"] == pack.digest
    assert any("statistics alone" in w for w in by_file["warnings"])


def test_statistics_of_another_extractor_are_refused(tmp_path):
    write_statistics(tmp_path / "s.safetensors", *made())
    with pytest.raises(RefusedError, match="weights_digest is abab"):
        open_statistics_file(tmp_path / "s.safetensors", tiny_extractor(digest="01" * 32))
    cut(tmp_path / "s.safetensors")
    with pytest.raises(ArtifactError, match="safetensors"):
        open_statistics_file(tmp_path / "s.safetensors", tiny_extractor())


def test_foreign_statistics_give_the_distance_alone_and_are_named_so(tmp_path):
    rows = extract(tiny_extractor(), random_images(40, 1), Share(0, 40, 40)).rows
    moments = Moments.of(rows)
    np.savez(tmp_path / "theirs.npz", mu=moments.mean.numpy(), sigma=moments.covariance().numpy())
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1))
    write_samples(tmp_path / "made.safetensors", random_images(20, 2), {"num_images": 20})
    ours = evaluate(tmp_path / "made.safetensors", str(pack.path), features=tiny_extractor()).document
    theirs = evaluate(
        tmp_path / "made.safetensors", str(tmp_path / "theirs.npz"), features=tiny_extractor(),
        output=tmp_path / "foreign.json",
    ).document  # fmt: skip
    assert theirs["metrics"] == {"fid": pytest.approx(ours["metrics"]["fid"], rel=1e-9)}
    assert theirs["reference"]["count"] is None
    assert theirs["floor"] is None
    assert any("foreign statistics" in w for w in theirs["warnings"])
    with pytest.raises(RefusedError, match="of 12 features"):
        open_statistics_file(tmp_path / "theirs.npz", tiny_extractor(dim=5))


@pytest.mark.parametrize("arrays", [{"mu": np.zeros(3)}, {"mu": np.zeros(3), "sigma": np.eye(4)}, {}])
def test_npz_of_something_else_is_missing(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ArtifactError, match="mu"):
        open_statistics_file(tmp_path / "x.npz", tiny_extractor(dim=3))


def test_npz_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(1))
    with pytest.raises(ArtifactError, match="mu and sigma"):
        open_statistics_file(tmp_path / "x.npz", tiny_extractor(dim=1))
