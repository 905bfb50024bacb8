"""New training from the weights of a run: what is taken, what is refused, and what is recorded of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from driftkit.comparison.run_summary import summarise
from driftkit.config.export_config import ExportConfig
from driftkit.encoders.autoencoder import load_autoencoder
from driftkit.encoders.lineage import Lineage, lineage_of_run, training_encoders_of
from driftkit.errors import NotFoundError
from driftkit.models.conditioning import ConditionEmbedding
from driftkit.models.unet import UNetConfig
from driftkit.stages.export import export
from driftkit.stages.model_card import to_markdown
from driftkit.storage.files import read_tensors, state_digest, write_tensors
from driftkit.storage.records import RunManifest, WeightsOrigin
from driftkit.storage.run_folder import Run
from driftkit.training.initialisation import initialise
from tests.comparison.comparing import compare_runs
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, replace_weights, train_tiny
from tests.encoders.tiny_autoencoder import tiny_autoencoder
from tests.on_ranks import start_ranks
from tests.training.test_ranks import train_part

CONDITIONAL = ["--class-conditional"]


@pytest.fixture
def source(tmp_path):
    """A drifting run of four steps whose checkpoints of steps 2 and 4 are kept."""
    keeps = ["--checkpoint-every", 2, "--set", "trainer.keep_every=2", "--set", "trainer.learning_rate=0.01"]
    train_tiny(tmp_path / "source", "drift", *keeps, steps=4)
    return Run.open(tmp_path / "source")


def refused(output, *more, objective="ddpm", steps=2):
    line = ["train", "--objective", objective, *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", steps, "-o", output]
    result = driftkit(*line, *more)
    assert result.exit_code != 0, result.output
    return result


@pytest.mark.parametrize(("suffix", "weights"), [("", "ema"), ("@raw", "raw"), ("@average:2", "average:2")])
def test_another_objective_starts_from_the_weights_as_they_are(suffix, weights, source, tmp_path):
    result = train_tiny(tmp_path / "new", "ddpm", "--init-from", f"{source.path}{suffix}", steps=0)
    assert f"initialised from {source.path}{suffix} ({weights} weights of step 4, drift)" in result.stderr
    expected = source.weights(weights)[0]
    for name in ("raw", "ema"):
        held = Run(tmp_path / "new").weights(name)[0]
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[key], tensor) for key, tensor in expected.items())
    origin = Run(tmp_path / "new").manifest().initialised_from
    assert (origin.path, origin.weights, origin.step, origin.method) == (str(source.path), weights, 4, "drift")
    assert (origin.run, origin.digest) == (source.manifest().id, state_digest(expected))
    assert (origin.steps, origin.images_seen) == (4, 16)
    assert origin.train_seconds == source.checkpoint().state().train_seconds


def test_an_exported_file_is_taken_and_knows_what_it_comes_from(source, tmp_path):
    made = export(source, ExportConfig(format="safetensors", weights="raw"))
    train_tiny(tmp_path / "new", "flow", "--init-from", made.model, steps=0)
    origin = Run(tmp_path / "new").manifest().initialised_from
    assert (origin.path, origin.weights, origin.run, origin.steps) == (str(made.model), "raw", source.manifest().id, 4)
    assert all(torch.equal(v, source.weights("raw")[0][k]) for k, v in Run(tmp_path / "new").weights("raw")[0].items())
    assert training_encoders_of(Run(tmp_path / "new").manifest()) == training_encoders_of(source.manifest())
    assert "leave @raw out" in refused(tmp_path / "x", "--init-from", f"{made.model}@raw").stderr
    weights, header = read_tensors(made.model)
    write_tensors(tmp_path / "changed.safetensors", {k: v + 1 for k, v in weights.items()}, header=header)
    result = refused(tmp_path / "x", "--init-from", tmp_path / "changed.safetensors")
    assert (result.exit_code, "is damaged" in result.stderr) == (3, True)
    del header["origin"]
    write_tensors(tmp_path / "unknown.safetensors", weights, header=header)
    train_tiny(tmp_path / "unknown", "ddpm", "--init-from", tmp_path / "unknown.safetensors", steps=0)
    assert training_encoders_of(Run(tmp_path / "unknown").manifest()) == [None]
    assert summarise(Run(tmp_path / "unknown"), label="u").cost_at(0, "seconds") is None
    assert not (tmp_path / "x").exists()


def test_conditions_may_differ_and_everything_else_must_fit(source, tmp_path):
    result = train_tiny(tmp_path / "classes", "ddpm", "--init-from", source.path, *CONDITIONAL, steps=0)
    assert f"freshly initialised, since {source.path} has no such conditions: condition_embedding" in result.stderr
    held, before = Run(tmp_path / "classes").weights("raw")[0], source.weights("ema")[0]
    assert all(torch.equal(held[key], tensor) for key, tensor in before.items())
    assert all(key.startswith("condition_embedding.labels.") for key in held.keys() - before.keys())
    # and back: the source's conditions are left out
    result = train_tiny(tmp_path / "back", "ddpm", "--init-from", tmp_path / "classes", steps=0)
    assert "not taken, since this network has no such conditions: condition_embedding" in result.stderr
    assert Run(tmp_path / "back").weights("raw")[0].keys() == before.keys()
    result = train_tiny(tmp_path / "heads", "ddpm", "--init-from", source.path, "--set", "model.num_heads=1", steps=0)
    assert "model.num_heads was 2 where the weights come from, and is 1 now" in result.stderr
    result = refused(tmp_path / "wide", "--init-from", source.path, "--set", "model.base_channels=16")
    assert result.exit_code == 2
    assert "does not hold this network: it" in result.stderr
    assert "more; give the model settings" in result.stderr
    assert not (tmp_path / "wide").exists()


LABELS, STYLE = "condition_embedding.labels.weight", "condition_embedding.style.weight"


def initialised(tmp_path, tensor, key=LABELS, *, classes=(), origin, **config):
    """A condition embedding's parameter before and after it is initialised from an exported file, and the notes."""
    config, network = UNetConfig(**config), nn.Module()
    network.condition_embedding = ConditionEmbedding(config, channels=4, width=3)
    parameter = network.state_dict()[key]
    own, file = parameter.clone(), str(tmp_path / "w.safetensors")
    document = {"path": "p", "weights": "ema", "digest": state_digest({key: tensor}), **origin}
    write_tensors(tmp_path / "w.safetensors", {key: tensor}, header={"driftkit": "export", "origin": document})
    notes = initialise(network, config, file, classes=classes).notes
    return own, parameter, [note.replace(file, "FILE") for note in notes]


def test_label_embeddings_are_taken_by_the_names_of_classes(tmp_path):
    rows, origin = torch.arange(12.0).reshape(4, 3), {"classes": ["a", "b", "c"]}
    given = {"classes": ("c", "x", "a"), "origin": origin, "num_classes": 3}
    own, held, notes = initialised(tmp_path, rows, **given)
    assert torch.equal(held, torch.stack([rows[2], own[1], rows[0], rows[3]]))
    assert notes == [
        "freshly initialised, since FILE has no such classes: x",
        "not taken, since this run has no such classes: b",
    ]
    own, held, notes = initialised(tmp_path, rows, classes=("b",), origin=origin, num_classes=1)
    assert torch.equal(held, rows[[1, 3]])
    own, held, notes = initialised(tmp_path, rows, classes=tuple("abc"), origin=origin, num_classes=3)
    assert (torch.equal(held, rows), notes) == (True, [])
    own, held, notes = initialised(tmp_path, rows, **{**given, "origin": {}})
    assert torch.equal(held, own)
    assert notes == [f"freshly initialised, since FILE does not say which classes they are of: {LABELS}"]


@pytest.mark.parametrize(("tokens", "codes", "why"), [(8, 4, None), (4, 8, "other"), (4, 4, "other")])
def test_style_codes_are_taken_where_they_mean_the_same(tokens, codes, why, tmp_path):
    rows, origin = torch.arange(96.0).reshape(32, 3), {"model": {"style_tokens": 8, "style_codes": 4}}
    own, held, notes = initialised(tmp_path, rows, STYLE, origin=origin, style_tokens=tokens, style_codes=codes)
    assert torch.equal(held, own if why else rows)
    said = f"freshly initialised, since FILE has other style_tokens or style_codes: {STYLE}"
    assert notes == ([said] if why else [])


def test_a_class_conditional_run_starts_from_the_classes_that_it_shares(source, tmp_path):
    train_tiny(tmp_path / "classes", "ddpm", *CONDITIONAL)
    names = [known.name for known in Run(tmp_path / "classes").manifest().classes]
    train_tiny(tmp_path / "same", "flow", *CONDITIONAL, "--init-from", tmp_path / "classes", steps=0)
    before, held = (Run(tmp_path / name).weights(which)[0] for name, which in (("classes", "ema"), ("same", "raw")))
    assert torch.equal(before[LABELS], held[LABELS])
    origin = Run(tmp_path / "same").manifest().initialised_from
    assert (list(origin.classes), origin.autoencoder) == (names, "pixels")
    made = export(Run(tmp_path / "classes"), ExportConfig(format="safetensors")).model
    train_tiny(tmp_path / "file", "flow", *CONDITIONAL, "--init-from", made, steps=0)
    assert torch.equal(Run(tmp_path / "file").weights("raw")[0][LABELS], before[LABELS])


def test_weights_of_latents_are_for_the_same_autoencoder_only(source, tmp_path):
    first, other = (tiny_autoencoder(tmp_path / f"vae{n}", seed=n, latent_channels=3) for n in (0, 1))
    line = ["--data", "shapes?image_size=16&count=24", "--set", "model.attention_resolutions=[4]"]
    train_tiny(tmp_path / "latents", "ddpm", *line, "--autoencoder", first, steps=0)
    begun = [*line, "--init-from", tmp_path / "latents"]
    train_tiny(tmp_path / "same", "ddpm", *begun, "--autoencoder", first, steps=0)
    digest = load_autoencoder(str(first)).digest
    assert Run(tmp_path / "same").manifest().initialised_from.autoencoder == digest
    result = refused(tmp_path / "x", *begun, "--autoencoder", other)
    assert (result.exit_code, f"works on latents of the autoencoder {digest[:12]}, this one on" in result.stderr) == (
        2,
        True,
    )
    assert "this one on pixels; expected the same --autoencoder" in refused(tmp_path / "x", *begun).stderr
    result = refused(tmp_path / "x", *line, "--init-from", source.path, "--autoencoder", first)
    assert "works on pixels, this one on latents of" in result.stderr
    assert not (tmp_path / "x").exists()


def test_weights_that_are_not_finite_are_refused(source, tmp_path):
    weights = {key: tensor * torch.nan for key, tensor in source.weights("ema")[0].items()}
    replace_weights(source.path, "ema", weights)
    result = refused(tmp_path / "new", "--init-from", source.path)
    assert (result.exit_code, "--init-from" in result.stderr, (tmp_path / "new").exists()) == (5, True, False)


def test_after_its_first_checkpoint_a_run_needs_its_source_no_more(source, tmp_path):
    begun = ["--init-from", source.path, "--sample-every", 0]
    train_tiny(tmp_path / "whole", "ddpm", *begun, steps=4)
    train_tiny(tmp_path / "new", "ddpm", *begun, steps=2)
    moved = source.path.rename(tmp_path / "moved")
    assert "--init-from was" in refused(tmp_path / "new", steps=4).stderr, "without it the config is another one"
    result = train_tiny(tmp_path / "new", "ddpm", "--init-from", moved, "--sample-every", 0, steps=3)
    assert f"is {moved} now, with the same content" in result.stderr
    other = shutil.copytree(moved, tmp_path / "other")
    replace_weights(other, "ema", {key: tensor + 1 for key, tensor in Run(other).weights("ema")[0].items()})
    assert "initialised from other weights" in refused(tmp_path / "new", "--init-from", other, steps=4).stderr
    assert "no such run folder" in refused(tmp_path / "new", "--init-from", tmp_path / "no", steps=4).stderr
    shutil.rmtree(moved)
    train_tiny(tmp_path / "new", "ddpm", "--init-from", moved, "--sample-every", 0, steps=4)
    whole, parts = (Run(tmp_path / name).weights("raw")[0] for name in ("whole", "new"))
    assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())


def test_a_trained_run_does_not_read_an_unchanged_source(source, tmp_path):
    begun = ["--init-from", source.path, "--sample-every", 0]
    train_tiny(tmp_path / "new", "ddpm", *begun, steps=2)
    origin = Run(tmp_path / "new").manifest().initialised_from
    source.manifest_path.write_text("damaged")
    train_tiny(tmp_path / "new", "ddpm", *begun, steps=3)
    assert Run(tmp_path / "new").manifest().initialised_from == origin
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    assert refused(tmp_path / "new", *begun, steps=3).exit_code == 3, "an untrained one needs it"


def test_a_run_without_a_checkpoint_is_begun_with_the_weights_it_recorded(source, tmp_path):
    train_tiny(tmp_path / "new", "ddpm", "--init-from", source.path, steps=0)
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    train_tiny(source.path, "drift", "--set", "trainer.learning_rate=0.01", "--set", "trainer.keep_every=2", steps=5)
    train_tiny(tmp_path / "new", "ddpm", "--init-from", source.path, steps=0)
    held = Run(tmp_path / "new").weights("raw")[0]
    assert all(torch.equal(held[key], tensor) for key, tensor in source.weights("ema", 4)[0].items())
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    shutil.rmtree(source.path)
    result = refused(tmp_path / "new", "--init-from", source.path)
    assert (result.exit_code, "no such run folder" in result.stderr) == (3, True)


def test_the_encoder_that_taught_the_source_taught_the_new_run_too(source, tmp_path):
    scores = ["--eval-every", 2, "--set", "evaluation.extractor=pixels", "--set", "evaluation.num_images=10"]
    result = train_tiny(tmp_path / "new", "ddpm", "--init-from", source.path, *scores)
    assert "pixels is no independent evaluator of this run" in result.stderr
    assert Run(tmp_path / "new").manifest().scored_on_the_way["degree"] == "kin"
    train_tiny(tmp_path / "next", "flow", "--init-from", tmp_path / "new", steps=2)
    taught = training_encoders_of(source.manifest())
    assert [training_encoders_of(Run(tmp_path / name).manifest()) for name in ("new", "next")] == [taught, taught]
    assert Run(tmp_path / "next").manifest().initialised_from.steps == 6, "what came before counts"
    line = ["fid", tmp_path / "next", "-r", TINY_DATA[1], "-n", 16, "--extractor", "pixels", "--allow-collapsed",
            "--device", "cpu", "--json"]  # fmt: skip
    assert '"degree": "kin"' in driftkit(*line).stdout


def test_an_encoder_comes_from_the_images_and_labels_of_what_it_was_initialised_from():
    config = {"objective": {"name": "mae"}, "model": {"kind": "mae_resnet", "num_classes": None}}
    before = Lineage("c0", "mae_resnet", "mae_resnet", ("images aa",), True)
    fields = {"id": "r", "created": "now", "config": config, "inputs": {"data": {"digest": "bb"}}}

    def lineage(document):
        origin = WeightsOrigin(path="p", weights="ema", digest="d", lineage=document)
        return lineage_of_run(RunManifest(initialised_from=origin, **fields), "c1")

    assert (lineage(before.describe()).data, lineage(before.describe()).labels) == (("images bb", "images aa"), True)
    assert lineage(None).data is None


def test_comparisons_and_cards_tell_and_count_what_came_before(source, tmp_path):
    train_tiny(tmp_path / "new", "ddpm", "--init-from", source.path)
    summary = summarise(Run(tmp_path / "new"), label="new")
    spent = source.checkpoint().state()
    assert summary.cost_at(2, "step") == 6
    assert summary.cost_at(2, "images") == 8 + spent.images_seen
    assert summary.cost_at(2, "seconds") == pytest.approx(summary.train_seconds + spent.train_seconds)
    compared = compare_runs([source.path, tmp_path / "new"], tmp_path / "report")
    told = f"initialised from the ema weights of {source.path}"
    assert any(told in note for note in compared.record.notes)
    assert told in compared.report.read_text()
    card = to_markdown(export(Run(tmp_path / "new"), ExportConfig(format="safetensors")).document)
    assert f"| initialised from | `{source.path}`, `ema` weights" in card


def test_runs_from_the_same_weights_in_two_places_are_one_group(source, tmp_path):
    shutil.copytree(source.path, tmp_path / "copy")
    groups = {}
    for name, start in (("a", source.path), ("b", tmp_path / "copy"), ("c", f"{source.path}@raw"), ("d", None)):
        train_tiny(tmp_path / name, "ddpm", *(["--init-from", start] if start else []), steps=0)
        groups[name] = summarise(Run(tmp_path / name), label=name).group
    assert groups["a"] == groups["b"]
    assert len(set(groups.values())) == 3


def test_a_stage_of_a_pipeline_runs_again_where_its_source_is_another(source, tmp_path):
    from driftkit.stages.run import _content

    before = [_content(f"{source.path}{suffix}", evaluations=False) for suffix in ("", "@raw")]
    assert before[0] == before[1] != "absent"
    replace_weights(source.path, "raw", {k: v + 1 for k, v in source.weights("raw")[0].items()})
    assert _content(f"{source.path}@raw", evaluations=False) != before[0]


@pytest.mark.slow
def test_ranks_start_from_the_same_weights(source, tmp_path):
    sets = ["--init-from", str(source.path)]
    start_ranks(train_part, 2, tmp_path / "new", sets)
    run = Run(tmp_path / "new")
    assert (run.manifest().state, run.manifest().world_size) == ("done", 2)
    assert run.manifest().initialised_from.digest == state_digest(source.weights("ema")[0])


def test_weights_that_a_run_does_not_have_are_refused_by_name(source, tmp_path):
    result = refused(tmp_path / "new", "--init-from", f"{source.path}@ema-0.5")
    assert (result.exit_code, "no weights ema-0.5; it has ema, raw" in result.stderr) == (3, True)
    with pytest.raises(NotFoundError):
        Run.open(Path(f"{source.path}@best"))
    assert "@best: no such run folder" in refused(tmp_path / "new", "--init-from", f"{source.path}@best").stderr
    assert not (tmp_path / "new").exists()
    assert json.loads((source.path / "manifest.json").read_text())["initialised_from"] is None
