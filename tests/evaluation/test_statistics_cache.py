"""Kept statistics of a reference: taken when they fit, computed anew when anything differs."""

import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from driftkit.evaluation import statistics_cache
from driftkit.evaluation.moments import Moments
from driftkit.evaluation.statistics_cache import ReferenceStatistics, cache_path, contract, reference_statistics
from tests.evaluation.fakes import tiny_extractor

COUNT, DIM = 30, 12


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(COUNT, DIM, generator=torch.Generator().manual_seed(seed))


def agreed(**changes):
    wanted = {"digest": "cd" * 32, "count": COUNT, "image_size": 8, **changes}
    return contract(tiny_extractor(), **wanted)


def refuse():
    raise AssertionError("the features were computed although they are kept")


@pytest.fixture
def lines():
    return []


def test_kept_statistics_are_those_that_were_computed(lines):
    first = reference_statistics(agreed(), features, notice=lines.append)
    assert not first.cached
    assert lines == []
    second = reference_statistics(agreed(), refuse, notice=lines.append)
    assert second.cached
    assert torch.equal(second.features, features())
    moments = Moments.of(features())
    assert second.moments.count == COUNT
    assert torch.equal(second.moments.mean, moments.mean)
    assert torch.equal(second.moments.covariance(), moments.covariance())
    assert len(lines) == 1
    assert str(cache_path(agreed())) in lines[0]


@pytest.mark.parametrize("change", [{"digest": "00" * 32}, {"image_size": 16}])
def test_other_data_is_computed(change, lines):
    reference_statistics(agreed(), features, notice=lines.append)
    assert not reference_statistics(agreed(**change), lambda: features(1), notice=lines.append).cached


@pytest.mark.parametrize("change", [{"version": "2"}, {"weights_digest": "00" * 32}, {"resize": "8x8"}, {"name": "x"}])
def test_other_judges_are_computed(change, lines):
    reference_statistics(agreed(), features, notice=lines.append)
    other = contract(replace(tiny_extractor(), **change), digest="cd" * 32, count=COUNT, image_size=8)
    assert not reference_statistics(other, features, notice=lines.append).cached


def test_without_cache_nothing_is_read_or_written(lines):
    reference_statistics(agreed(), features, use_cache=False, notice=lines.append)
    assert not cache_path(agreed()).exists()
    reference_statistics(agreed(), features, notice=lines.append)
    other = reference_statistics(agreed(), lambda: features(1), use_cache=False, notice=lines.append)
    assert torch.equal(other.features, features(1))
    assert lines == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _exchange(path: Path) -> None:
    other = agreed(digest="00" * 32)
    reference_statistics(other, lambda: features(1), notice=lambda line: None)
    shutil.copy(cache_path(other), path)


@pytest.mark.parametrize(
    ("damage", "says"), [(_truncate, "not a readable"), (_flip, "damaged"), (_exchange, "something else")]
)
def test_a_file_that_does_not_fit_is_replaced_with_one_warning(damage, says, lines):
    reference_statistics(agreed(), features, notice=lines.append)
    damage(cache_path(agreed()))
    made = reference_statistics(agreed(), features, notice=lines.append)
    assert not made.cached
    assert torch.equal(made.features, features())
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")
    assert says in lines[0]
    assert reference_statistics(agreed(), refuse, notice=lines.append).cached


def test_random_weights_and_features_above_the_bound_are_not_kept(lines, monkeypatch):
    unknown = contract(tiny_extractor(digest="random"), digest="cd" * 32, count=COUNT, image_size=8)
    reference_statistics(unknown, features, notice=lines.append)
    assert not cache_path(unknown).exists()
    monkeypatch.setattr(statistics_cache, "MAX_FEATURE_BYTES", COUNT * DIM * 4 - 1)
    reference_statistics(agreed(), features, notice=lines.append)
    assert not cache_path(agreed()).exists()


def test_a_folder_that_cannot_be_written_costs_a_warning_only(lines, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DRIFTKIT_CACHE", str(tmp_path / "file"))
    made = reference_statistics(agreed(), features, notice=lines.append)
    assert torch.equal(made.features, features())
    assert len(lines) == 1
    assert "could not be kept" in lines[0]


def _write_often(barrier) -> None:
    barrier.wait()
    made = ReferenceStatistics(features(), Moments.of(features()), cached=False)
    lines = []
    for _ in range(20):
        statistics_cache._write(cache_path(agreed()), agreed(), made, lines.append)
        assert reference_statistics(agreed(), refuse, notice=lines.append).cached
    assert not any(line.startswith("warning") for line in lines), lines


def test_two_processes_that_write_at_once_leave_a_whole_file(lines):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_write_often, args=(barrier,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert torch.equal(reference_statistics(agreed(), refuse, notice=lines.append).features, features())
    assert [path.name for path in cache_path(agreed()).parent.iterdir()] == [cache_path(agreed()).name]
