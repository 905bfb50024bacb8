"""What `compare --evaluate` makes, and what it leaves alone."""

import pytest
import torch

from driftkit.comparison.missing_scores import MissingScores, Way, ways_of
from driftkit.comparison.speed import SpeedSettings
from driftkit.errors import ArtifactError
from driftkit.scoring import evaluator as fid
from driftkit.stages.compare import collect, compare
from driftkit.storage.files import read_json
from driftkit.storage.run_folder import Run
from tests.conftest import train_tiny
from tests.scoring.fakes import tiny_extractor

REFERENCE = "shapes?image_size=8&count=64&split=test"


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(fid, "load_extractor", lambda *_, **__: tiny_extractor())
    return MissingScores(REFERENCE, ("encoder:tiny",), num_images=12, nfe=(1, 2), allow_collapsed=True)


@pytest.fixture
def runs(tmp_path):
    train_tiny(tmp_path / "drift", "drift", "--set", "trainer.checkpoint_every=1", "--set", "trainer.keep_every=1")
    train_tiny(tmp_path / "ddpm", "ddpm")
    return [tmp_path / "ddpm", tmp_path / "drift"]


def test_every_sampler_of_the_cost_curve_is_scored_once(runs, missing, tmp_path):
    made = compare(runs, tmp_path / "out", missing=missing)
    (table,) = made.tables
    ways = {(r.run, r.sampler, r.nfe) for r in table.rows}
    assert ways == {("drift", "one-step", 1), *(("ddpm", s, n) for s in ("ddim", "dpm-solver") for n in (1, 2))}
    files = {p: p.stat().st_mtime_ns for run in runs for p in (run / "evaluations").glob("*.json")}
    assert len(files) == 5
    compare(runs, tmp_path / "out", missing=missing)
    assert files == {p: p.stat().st_mtime_ns for run in runs for p in (run / "evaluations").glob("*.json")}


def test_a_run_scored_by_another_judge_is_scored_again(runs, missing, tmp_path, monkeypatch):
    compare(runs, tmp_path / "out", missing=missing)
    monkeypatch.setattr(fid, "load_extractor", lambda *_, **__: tiny_extractor(digest="ef" * 32))
    assert len(compare(runs, tmp_path / "out", missing=missing).tables) == 2


def test_all_kept_checkpoints_are_scored_when_asked_for(runs):
    steps = [c.step for c in Run.open(runs[1]).checkpoints()]
    assert steps == [1, 2]
    assert ways_of(Run.open(runs[1]), MissingScores(REFERENCE)) == [Way("one-step", 1, 2)]
    ways = ways_of(Run.open(runs[1]), MissingScores(REFERENCE, all_checkpoints=True))
    assert ways == [Way("one-step", 1, 2), Way("one-step", 1, 1)]


def test_what_cannot_be_scored_is_noted_and_the_others_go_on(runs, missing, tmp_path):
    checkpoint = Run.open(runs[1]).checkpoints()
    for saved in checkpoint:
        (saved.path / "ema.safetensors").write_bytes(b"cut")
    made = compare(runs, tmp_path / "out", missing=missing)
    assert any("drift was not scored (one-step at 1 NFE, step 2)" in note for note in made.document["notes"])
    assert {r.run for r in made.tables[0].rows} == {"ddpm"}


def test_an_absent_reference_is_an_error_before_anything_is_sampled(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(fid, "load_extractor", lambda *_, **__: tiny_extractor())
    with pytest.raises(ArtifactError):
        compare(runs, tmp_path / "out", missing=MissingScores("no/such/folder"))
    assert not (tmp_path / "out").exists()


def test_scored_ways_are_timed_with_equal_settings(runs, missing, tmp_path):
    settings = SpeedSettings(torch.device("cpu"), torch.float32, batch_size=2, repeats=1, budget_seconds=0.2)
    made = compare(runs, tmp_path / "out", missing=missing, speed=settings)
    timed = {(s.run, s.sampler, s.nfe) for s in made.speeds}
    assert {("drift", "one-step", 1), ("ddpm", "dpm-solver", 2), ("ddpm", "ddim", 50)} <= timed
    record = next(r for r in made.document["records"] if r["run"] == "drift")
    assert record["images_per_second"] > 0
    assert read_json(tmp_path / "out" / "compare.json")["speed"]["settings"]["batch_size"] == 2


def test_folders_that_are_no_runs_are_told_apart(runs, tmp_path):
    found = collect([*runs, tmp_path])
    assert [summary.label for _, summary in found.generators] == ["ddpm", "drift"]
    assert len(found.skipped) == 1
