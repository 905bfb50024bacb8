"""What is read of runs: summaries, labels, costs at a step, differences of their configs."""

import pytest

from driftkit.comparison.run_summary import differences, equality_notes, open_runs, summarise, thin, unique_labels
from driftkit.errors import ArtifactError
from tests.scoring.fakes import make_run


def test_summary_of_a_drifting_run(tmp_path):
    summary = summarise(make_run(tmp_path / "drift"), label="drift")
    assert (summary.method, summary.encoder, summary.steps, summary.images_seen) == ("drift", "mae", 30, 120)
    assert summary.signals["drift_norm"] == pytest.approx(1 / 30)
    assert [p["step"] for p in summary.curve] == [10, 20, 30]
    assert summary.warnings == []


def test_a_manifest_with_odd_values_is_refused_and_odd_metrics_are_passed_over(tmp_path):
    run = make_run(tmp_path / "bare")
    run.metrics_path.write_text('{"step": "x", "loss": null, "health": 3}\n')
    assert summarise(run, label="bare").signals["loss"] is None
    run.update(config={"objective": {"name": 3}})
    with pytest.raises(ArtifactError, match=r"config\.objective\.name"):
        summarise(run, label="bare")


def test_folders_that_are_no_runs_are_skipped_with_a_reason(tmp_path):
    for name, method in (("drift", "drift"), ("ddpm", "ddpm"), ("mae", "mae"), ("other", "other")):
        make_run(tmp_path / name, method)
    (tmp_path / "notes").mkdir()
    opened = open_runs(sorted(tmp_path.iterdir()))
    assert [run.label for run in opened.generators] == ["ddpm", "drift"]
    assert [run.label for run in opened.encoders] == ["mae"]
    assert [(tmp_path / "notes").samefile(entry["path"]) for entry in opened.skipped] == [True, False]
    assert "unknown method 'other'" in opened.skipped[1]["reason"]


def test_random_weights_and_unfinished_training_are_warned_about(tmp_path):
    run = make_run(tmp_path / "drift", encoder={"name": "mocov2", "random_weights": True}, state="interrupted")
    summary = summarise(run, label="drift")
    assert summary.random_weights
    assert "random weights" in summary.warnings[0]
    assert "interrupted" in summary.warnings[1]


def test_scores_on_the_way_are_read_with_what_made_them(tmp_path):
    run = make_run(tmp_path / "drift")
    assert summarise(run, label="drift").scored_by is None
    config = run.manifest().config
    how = {"every": 10, "extractor": "inception", "num_images": 500, "reference": "photos.zip"}
    run.update(config={**config, "evaluation": how})
    run.append_metrics({"step": 40, "health": {"fid@500": 3.5}})
    summary = summarise(run, label="drift")
    assert summary.scored_by == "fid@500 by inception against photos.zip"
    assert [p["score"] for p in summary.curve] == [None, None, None, 3.5]


def test_curves_are_thinned_by_averaging():
    points = thin([{"step": i, "loss": float(i), "health": {"a": 2}} for i in range(1, 1001)], ["loss", "a"], limit=100)
    assert len(points) == 100
    assert points[0] == {
        "step": 10.0, "images": None, "seconds": None, "loss": 5.5, "a": 2.0, "score": None
    }  # fmt: skip


def test_labels_are_told_apart_by_as_many_parents_as_it_takes(tmp_path):
    paths = [tmp_path / "a" / "drift", tmp_path / "b" / "drift", tmp_path / "ddpm"]
    assert unique_labels(paths) == ["a/drift", "b/drift", "ddpm"]


def test_cost_at_a_step_is_read_off_the_metrics(tmp_path):
    summary = summarise(make_run(tmp_path / "drift"), label="drift")
    assert summary.cost_at(0, "seconds") == 0.0
    assert summary.cost_at(15, "step") == 15.0
    assert summary.cost_at(15, "seconds") == pytest.approx(6.0)  # between the records at 10 and at 20
    assert summary.cost_at(5, "images") == pytest.approx(20.0)
    assert summary.cost_at(30, "seconds") == 12.5  # the manifest's own total
    assert summary.cost_at(31, "seconds") is None


def test_config_keys_that_differ_are_listed_run_by_run(tmp_path):
    first = summarise(make_run(tmp_path / "a"), label="a")
    second = summarise(make_run(tmp_path / "b", "ddpm", steps=20), label="b")
    assert differences([first, second]) == {
        "objective.name": ["drift", "ddpm"],
        "objective.encoder": ["outputs/mae", None],
        "trainer.steps": [30, 20],
    }
    assert differences([first]) == {}


def latent_run(path, place, digest):
    """A run in the latents of the autoencoder of that digest, at that place."""
    run = make_run(path)
    manifest = run.manifest()
    config = {**manifest.config, "data": {**manifest.config["data"], "autoencoder": place}}
    run.update(config=config, inputs={**manifest.inputs, "autoencoder": {"spec": place, "digest": digest}})
    return summarise(run, label=path.name)


def test_autoencoders_are_told_apart_by_their_content(tmp_path):
    first, moved, retrained = (
        latent_run(tmp_path / name, place, digest)
        for name, place, digest in (("a", "vae", "aa"), ("b", "elsewhere/vae", "aa"), ("c", "vae", "bb"))
    )
    assert first.group == moved.group != retrained.group
    assert not any("autoencoders" in note for note in equality_notes([first, moved]))
    assert any("different autoencoders" in note for note in equality_notes([first, retrained]))
    plain = summarise(make_run(tmp_path / "plain"), label="plain")
    assert any("different autoencoders" in note for note in equality_notes([first, plain]))


def test_inequalities_are_sentences(tmp_path):
    runs = [summarise(make_run(tmp_path / name, **more), label=name) for name, more in (
        ("a", {}), ("b", {"parameters": 5}), ("c", {"device": "H100"}))]  # fmt: skip
    text = " ".join(equality_notes(runs))
    assert "sizes of network" in text
    assert "training times are those of different machines" in text
    assert "image sizes" not in text
    assert equality_notes(runs[:1]) == []
