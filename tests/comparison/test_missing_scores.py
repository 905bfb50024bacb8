"""What `compare --evaluate` makes, and what it leaves alone."""

import pytest
from PIL import Image

from driftkit.comparison.compare_config import CompareConfig
from driftkit.comparison.missing_scores import SamplerSetup, setups_of
from driftkit.comparison.run_summary import open_runs
from driftkit.errors import ArtifactError
from driftkit.scoring import evaluator
from driftkit.stages.compare import compare
from driftkit.storage.files import read_json
from driftkit.storage.run_folder import Run
from tests.comparison.comparing import compare_runs
from tests.conftest import driftkit, train_tiny
from tests.scoring.fakes import tiny_extractor

REFERENCE = "shapes?image_size=8&count=64&split=test"


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(evaluator, "load_extractor", lambda *_, **__: tiny_extractor())
    return {"evaluate": True, "reference": REFERENCE, "extractor": "encoder:tiny", "num_images": 12, "nfe": "1,2",
            "allow_collapsed": True}  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    train_tiny(tmp_path / "drift", "drift", "--set", "trainer.checkpoint_every=1", "--set", "trainer.keep_every=1")
    train_tiny(tmp_path / "ddpm", "ddpm")
    return [tmp_path / "ddpm", tmp_path / "drift"]


@pytest.mark.slow
def test_every_sampler_of_the_cost_curve_is_scored_once(runs, missing, tmp_path):
    result = compare_runs(runs, tmp_path / "out", **missing)
    (table,) = result.record.score_tables
    setups = {(r.run, r.sampler, r.nfe) for r in table.rows}
    assert setups == {("drift", "one-step", 1), *(("ddpm", s, n) for s in ("ddim", "dpm-solver") for n in (1, 2))}
    files = {p: p.stat().st_mtime_ns for run in runs for p in (run / "evaluations").glob("*.json")}
    assert len(files) == 5
    compare_runs(runs, tmp_path / "out", **missing)
    assert files == {p: p.stat().st_mtime_ns for run in runs for p in (run / "evaluations").glob("*.json")}


@pytest.mark.slow
def test_a_run_scored_by_another_evaluator_is_scored_again(runs, missing, tmp_path, monkeypatch):
    compare_runs(runs, tmp_path / "out", **missing)
    monkeypatch.setattr(evaluator, "load_extractor", lambda *_, **__: tiny_extractor(digest="ef" * 32))
    assert len(compare_runs(runs, tmp_path / "out", **missing).record.score_tables) == 2


def test_weights_are_scored_by_name_and_shown_apart(missing, tmp_path):
    train_tiny(tmp_path / "two", "drift", "--set", "trainer.ema_decay=[0.5,0.9]")
    train_tiny(tmp_path / "one", "drift", "--seed", 1)
    runs = [tmp_path / "two", tmp_path / "one"]
    result = compare_runs(runs, tmp_path / "out", **missing, weights="ema-0.9")
    assert any("one was not scored" in note and "it has ema, raw" in note for note in result.record.notes)
    result = compare_runs(runs, tmp_path / "out", **missing)
    (table,) = result.record.score_tables
    files = [set((run / "evaluations").glob("*.json")) for run in runs]
    compare_runs(runs, tmp_path / "out", **missing, weights="ema-0.5")  # another name of the first average of one
    assert files[0] == set((runs[0] / "evaluations").glob("*.json"))
    rows = {(row.run, row.weights): "ema-0.9 weights" in row.badges for row in table.rows}
    assert rows == {("two", "ema-0.9"): True, ("two", "ema"): False, ("one", "ema"): False}


def test_all_kept_checkpoints_are_scored_when_asked_for(runs):
    (run,) = open_runs([runs[1]]).generators
    assert [c.step for c in run.folder.checkpoints()] == [1, 2]
    assert setups_of(run) == [SamplerSetup("one-step", 1, 2)]
    assert setups_of(run, all_checkpoints=True) == [SamplerSetup("one-step", 1, 2), SamplerSetup("one-step", 1, 1)]


def test_what_cannot_be_scored_is_noted_and_the_others_go_on(runs, missing, tmp_path):
    checkpoint = Run.open(runs[1]).checkpoints()
    for saved in checkpoint:
        (saved.path / "ema.safetensors").write_bytes(b"cut")
    result = compare_runs(runs, tmp_path / "out", **missing)
    assert any("drift was not scored (one-step at 1 NFE, step 2)" in note for note in result.record.notes)
    assert {r.run for r in result.record.score_tables[0].rows} == {"ddpm"}


def test_an_absent_reference_is_an_error_before_anything_is_sampled(runs, missing, tmp_path):
    with pytest.raises(ArtifactError):
        compare_runs(runs, tmp_path / "out", **{**missing, "reference": "no/such/folder"})
    assert not (tmp_path / "out").exists()


def test_scored_setups_are_timed_with_equal_settings(runs, missing, tmp_path):
    record = compare_runs(runs, tmp_path / "out", **missing, speed=True, speed_batch=2, speed_seconds=0.2).record
    timed = {(s.run, s.sampler, s.nfe) for s in record.speed.results}
    assert {("drift", "one-step", 1), ("ddpm", "dpm-solver", 2), ("ddpm", "ddim", 50)} <= timed
    assert next(r for r in record.records if r["run"] == "drift")["images_per_second"] > 0
    assert read_json(tmp_path / "out" / "compare.json")["speed"]["settings"]["batch_size"] == 2


def test_what_is_about_to_be_sampled_is_said_with_its_count(runs, missing, tmp_path):
    lines, done = [], []
    config = CompareConfig.model_validate({**missing, "speed": False, "neighbours": False, "num_images": 70})
    config = config.model_copy(update={"output": tmp_path / "out"})

    def report(title, count, total, unit="images"):
        done.extend([(count, total)] if title == "scores" and count else [])

    compare(runs, config, notify=lines.append, report=report)
    assert any("5 scores to make, of 70 images each, more than the 64 of the reference" in line for line in lines)
    # Ten evaluations take ten times as long as one, so that the time left is right from the first score on.
    assert sorted(count for count, _ in done) == [1, 1, 1, 2, 2]
    assert {total for _, total in done} == {7}
    again = []
    compare(runs, config, notify=again.append)
    assert not any("to make" in line for line in again)


def test_a_reference_of_mixed_sizes_is_resized_as_the_training_images_were(missing, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(24):
        size = (20 + number, 30)
        Image.effect_noise(size, 60).convert("RGB").save(photos / f"{number}.png")
    train_tiny(tmp_path / "run", "drift", "--data", photos, "--image-size", 8)
    result = compare_runs([tmp_path / "run"], tmp_path / "out", **{**missing, "reference": str(photos)})
    (table,) = result.record.score_tables
    assert [row.run for row in table.rows] == ["run"]
    assert not any("was not scored" in note for note in result.record.notes)
    words = ("-r", photos, "--extractor", "pixels", "-n", 12, "--allow-collapsed", "--device", "cpu")
    scored = driftkit("fid", tmp_path / "run", *words)
    assert scored.exit_code == 0, scored.output
    # Of images that were trained on as they are, another size stays a refusal.
    train_tiny(tmp_path / "as-they-are", "drift")
    assert driftkit("fid", tmp_path / "as-they-are", *words).exit_code == 3
    assert Run.open(tmp_path / "as-they-are").resized_to is None
