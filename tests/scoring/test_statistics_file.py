"""Statistics on disk: what they hold, when they are refused, and several writers at once."""

import errno
import json
import os

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from driftkit.errors import ArtifactError, RefusedError, UsageError
from driftkit.metrics.moments import Moments
from driftkit.metrics.registry import Floor
from driftkit.scoring.evaluator import evaluate, open_evaluator
from driftkit.scoring.extraction import extract
from driftkit.scoring.image_set import ImageSet, ScoringExecution
from driftkit.scoring.statistics_file import (
    ImagesInfo,
    StatisticsRecord,
    cached_figures,
    cached_path,
    find_cached,
    is_statistics_file,
    open_statistics_file,
    read_statistics,
    write_statistics,
)
from driftkit.storage.files import read_tensors, state_digest, write_tensors
from driftkit.storage.images import write_samples
from tests.scoring.fakes import make_pack, random_images, score, tiny_extractor

IMAGES = ImagesInfo(spec="real", digest="cd" * 32, count=40, image_size=8)


def stats_of(seed=1):
    return extract(tiny_extractor(), ImageSet.of_tensor(random_images(40, seed)), ScoringExecution())


def record_of(extractor=None, **changes):
    images = IMAGES.model_copy(update=changes)
    return StatisticsRecord(images=images, extractor=(extractor or tiny_extractor()).info)


def test_statistics_come_back_as_they_were(tmp_path):
    stats, record, path = stats_of(), record_of(), tmp_path / "real.safetensors"
    written = write_statistics(path, stats, record)
    read = read_statistics(path)
    assert read.record == written.record
    assert read.record.model_copy(update={"sha256": ""}) == record
    assert torch.equal(read.stats.rows, stats.rows)
    assert torch.equal(read.stats.moments.scatter, stats.moments.scatter)
    assert read.stats.moments.count == 40
    assert read.stats.survey.shared_with(stats.survey) == 40
    assert StatisticsRecord.read(path.with_suffix(".json")) == read.record
    assert len(read.record.sha256) == 64
    assert is_statistics_file(path)


def test_cache_is_found_by_content_and_by_nothing_else():
    lines = []
    assert find_cached(record_of(), lines.append) is None
    write_statistics(cached_path(record_of()), stats_of(), record_of())
    assert find_cached(record_of(spec="the same by another name"), lines.append) is not None
    for other in (
        record_of(digest="00" * 32),
        record_of(count=41),
        record_of(image_size=16),
        record_of(tiny_extractor(digest="00" * 32)),
        record_of(tiny_extractor(name="encoder:other")),
    ):
        assert find_cached(other, lines.append) is None
    assert lines == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def changed(path):
    tensors, header = read_tensors(path)
    tensors = {name: t.clone() for name, t in tensors.items()}
    tensors["rows"][3, 2] += 1
    write_tensors(path, tensors, header=header)


def exchanged(path):
    write_statistics(path, stats_of(seed=2), record_of(digest="ee" * 32))


def of_a_later_format(path):
    tensors, header = read_tensors(path)
    record = {**json.loads(header["record"]), "format_version": 99}
    write_tensors(path, dict(tensors), header={**header, "record": json.dumps(record)})


@pytest.mark.parametrize("damage", [cut, changed, exchanged, of_a_later_format])
def test_damaged_cache_is_reported_and_made_again(tmp_path, damage):
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1))
    write_samples(tmp_path / "made.safetensors", random_images(20, 2), {"num_images": 20})
    first = score(tmp_path / "made.safetensors", str(pack.path)).record
    (path,) = (tmp_path / "cache" / "statistics").glob("*.safetensors")
    damage(path)
    for figures in path.parent.glob("*.floor*.json"):
        figures.unlink()
    lines = []
    again = score(tmp_path / "made.safetensors", str(pack.path), execution=ScoringExecution(notify=lines.append)).record
    assert again.metrics == first.metrics
    assert len(lines) == 1
    assert "computed again" in lines[0]
    assert read_statistics(path).record.images.digest == pack.digest


def with_tensors(tensors, header, changed):
    """Change tensors and the checksum of them; None removes one."""
    tensors.update(changed)
    for name in [name for name, tensor in changed.items() if tensor is None]:
        del tensors[name]
    header["record"] = json.dumps({**json.loads(header["record"]), "sha256": state_digest(tensors)})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda tensors, header: header.pop("driftkit"), "holds no statistics of driftkit"),
        (lambda tensors, header: header.update(record="[1,"), "its record is unreadable"),
        (
            lambda *parts: with_tensors(*parts, {"steps": None}),
            r"steps, expected torch.float64 \[40, 2\], got no such tensor",
        ),
        (
            lambda *parts: with_tensors(*parts, {"labels": torch.zeros(40)}),
            r"labels, expected torch.int64 \[40\], got torch.float32 \[40\]",
        ),
    ],
    ids=["another-kind", "record", "tensor-missing", "type"],
)
def test_statistics_whose_parts_do_not_fit_are_refused(tmp_path, edit, says):
    path = tmp_path / "real.safetensors"
    write_statistics(path, stats_of(), record_of())
    tensors, header = map(dict, read_tensors(path))
    edit(tensors, header)
    write_tensors(path, tensors, header=header)
    with pytest.raises(ArtifactError, match=says):
        read_statistics(path)


def test_a_record_that_a_kill_kept_from_the_cache_is_written_when_it_is_found():
    path = cached_path(record_of())
    write_statistics(path, stats_of(), record_of())
    path.with_suffix(".json").unlink()
    found = find_cached(record_of(), pytest.fail)
    assert StatisticsRecord.read(path.with_suffix(".json")) == found.record


FIGURES = Floor(10, 0, {"fid": 1.5})


def test_damaged_figures_are_computed_again():
    statistics = write_statistics(cached_path(record_of()), stats_of(), record_of())
    calls = []

    def compute():
        calls.append(1)
        return FIGURES

    assert [cached_figures(statistics, "floor-10", Floor, compute) for _ in range(2)] == [FIGURES] * 2
    assert len(calls) == 1
    (path,) = statistics.path.parent.glob("*.floor-10.json")
    path.write_text(path.read_text()[:-20])
    assert cached_figures(statistics, "floor-10", Floor, compute) == FIGURES
    assert len(calls) == 2
    assert cached_figures(statistics, "floor-10", Floor, compute, use=False) == FIGURES
    assert len(calls) == 3


def test_a_full_cache_costs_time_and_not_the_figures(monkeypatch):
    statistics = write_statistics(cached_path(record_of()), stats_of(), record_of())

    def full(*_: object):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert cached_figures(statistics, "floor-10", Floor, lambda: FIGURES) == FIGURES
    assert not list(statistics.path.parent.glob("*.floor-10.json"))


def write_again_and_again(number, folder):
    os.environ["DRIFTKIT_CACHE"] = folder
    torch.set_num_threads(1)
    stats, record = stats_of(), record_of()
    for _ in range(15):
        write_statistics(cached_path(record), stats, record)
        lines = []
        cached = find_cached(record, lines.append)
        assert cached is not None, lines
        assert torch.equal(cached.stats.rows, stats.rows)


@pytest.mark.slow
def test_two_writers_at_once_never_show_a_reader_half_a_file(tmp_path):
    folder = str(tmp_path / "shared")
    mp.start_processes(write_again_and_again, args=(folder,), nprocs=2, start_method="spawn")
    names = sorted(p.suffix for p in (tmp_path / "shared" / "statistics").iterdir())
    assert names == [".json", ".safetensors"]


def test_statistics_stand_in_for_the_images(tmp_path):
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1))
    write_samples(tmp_path / "made.safetensors", random_images(20, 2), {"num_images": 20})
    evaluator = open_evaluator(str(pack.path), extractor=tiny_extractor())
    evaluator.write_statistics(tmp_path / "statistics.safetensors")
    direct = evaluate([evaluator], tmp_path / "made.safetensors")[0].record
    by_file = score(tmp_path / "made.safetensors", str(tmp_path / "statistics.safetensors")).record
    assert by_file.metrics.items() <= direct.metrics.items()
    assert by_file.floor == direct.floor
    assert by_file.reference.digest == pack.digest
    assert any("statistics alone" in w for w in by_file.warnings)


def test_statistics_of_another_extractor_are_refused(tmp_path):
    write_statistics(tmp_path / "s.safetensors", stats_of(), record_of())
    with pytest.raises(RefusedError, match="weights_digest is abab"):
        open_statistics_file(tmp_path / "s.safetensors", tiny_extractor(digest="01" * 32))
    cut(tmp_path / "s.safetensors")
    with pytest.raises(ArtifactError, match="safetensors"):
        open_statistics_file(tmp_path / "s.safetensors", tiny_extractor())


def test_statistics_of_another_program_give_the_distance_alone(tmp_path):
    moments = Moments.of(stats_of().rows)
    np.savez(tmp_path / "theirs.npz", mu=moments.mean.numpy(), sigma=moments.covariance().numpy())
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1))
    write_samples(tmp_path / "made.safetensors", random_images(20, 2), {"num_images": 20})
    own = score(tmp_path / "made.safetensors", str(pack.path)).record
    output = tmp_path / "foreign.json"
    foreign = score(tmp_path / "made.safetensors", str(tmp_path / "theirs.npz"), output=output).record
    assert foreign.metrics == {"fid": pytest.approx(own.metrics["fid"], rel=1e-9)}
    assert foreign.reference.count is None
    assert foreign.floor is None
    reason, missing = foreign.warnings[:2]
    assert "another program: nobody can check which extractor, images and resizing they are from" in reason
    for name in ("KID", "MMD", "precision, recall", "memorization", "the real-vs-real floor: not computed"):
        assert name in missing
    assert not any("too small" in w or "got 0" in w for w in foreign.warnings)
    with pytest.raises(UsageError, match="another program; copy it"):
        open_evaluator(str(tmp_path / "theirs.npz"), extractor=tiny_extractor()).write_statistics(tmp_path / "own")
    with pytest.raises(RefusedError, match="of 12 features"):
        open_statistics_file(tmp_path / "theirs.npz", tiny_extractor(dim=5))


def test_npz_is_statistics_where_it_holds_them_and_no_images(tmp_path):
    images, statistics = {"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, {"mu": np.zeros(3), "sigma": np.eye(3)}
    of_others = {"mu_s": np.zeros(3), "sigma_s": np.eye(3), "pool_3": np.zeros((9, 3))}
    for arrays, expected in (
        (statistics, True),
        (statistics | of_others, True),
        (images | statistics, False),
        (images, False),
        (of_others, False),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        assert is_statistics_file(tmp_path / "x.npz") is expected
    (tmp_path / "x.npz").write_bytes(b"")
    assert not is_statistics_file(tmp_path / "x.npz")


@pytest.mark.parametrize("arrays", [{"mu": np.zeros(3)}, {"mu": np.zeros(3), "sigma": np.eye(4)}, {}])
def test_npz_of_something_else_is_missing(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ArtifactError, match="mu"):
        open_statistics_file(tmp_path / "x.npz", tiny_extractor(dim=3))


def test_statistics_that_are_not_finite_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.array([np.nan]), sigma=np.eye(1))
    with pytest.raises(RefusedError, match="mu or sigma is not finite"):
        open_statistics_file(tmp_path / "x.npz", tiny_extractor(dim=1))


def test_npz_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(1))
    with pytest.raises(ArtifactError, match="mu and sigma"):
        open_statistics_file(tmp_path / "x.npz", tiny_extractor(dim=1))
