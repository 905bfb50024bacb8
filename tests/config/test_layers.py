"""Merging of config layers and what their errors say."""

import codecs

import pytest

from driftkit.config.layers import flatten, load_preset, merge, parse_assignments, preset_names, read_toml
from driftkit.errors import UsageError
from driftkit.methods.registry import METHODS
from driftkit.training.train_config import load_config, resolve_config


def test_later_layers_win_and_origins_are_kept():
    values, origins = merge([("a", {"x": {"y": 1, "z": 2}}), ("b", {"x": {"y": 3}})])
    assert values == {"x": {"y": 3, "z": 2}}
    assert origins == {"x.y": "b", "x.z": "a"}


def test_assignments_are_toml_values_or_plain_strings():
    values = parse_assignments(["a.b=3", "a.c=[1, 2]", "d=true", "e=outputs/mae", 'f="3"', "g=1e-3"])
    assert values == {"a": {"b": 3, "c": [1, 2]}, "d": True, "e": "outputs/mae", "f": "3", "g": 1e-3}


def test_a_byte_order_mark_before_toml_is_no_part_of_it(tmp_path):
    content = codecs.BOM_UTF8 + "name = 'Überlagerung'\n[a]\nb = 1\n".encode()
    (tmp_path / "a.toml").write_bytes(content)
    assert read_toml(tmp_path / "a.toml") == {"name": "Überlagerung", "a": {"b": 1}}
    (tmp_path / "a.toml").write_bytes(codecs.BOM_UTF8 + content)
    with pytest.raises(UsageError, match="not valid TOML"):
        read_toml(tmp_path / "a.toml")


def test_defaults_are_the_full_size_run():
    config, _ = resolve_config()
    assert config.objective.taus == (0.02, 0.05, 0.2)
    assert config.objective.scale_over == "location"
    assert (config.trainer.learning_rate, config.trainer.gradient_clip, config.trainer.ema_decay) == (
        2e-4,
        2.0,
        (0.9999,),
    )


def test_a_saved_config_reads_back_the_same():
    for objective in METHODS:
        config, _ = resolve_config(objective=objective)
        assert load_config(config.model_dump(mode="json")) == config


ONLY = {
    "mae-cpu": ["mae"], "mae-gpu": ["mae"], "cifar10-dinov2-last": ["drift"], "cifar10-paper": ["drift", "mae"],
    "cpu-conditional": ["drift"], "cifar10-efficientnet": ["drift"], "imagenet256-ablation": ["drift"],
}  # fmt: skip


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("objective", list(METHODS))
def test_every_preset_fits_the_objectives_it_is_for(preset, objective):
    if objective not in ONLY.get(preset, METHODS):
        with pytest.raises(UsageError, match=f"is for {' and '.join(ONLY[preset])}, not for {objective}"):
            resolve_config(objective=objective, preset=preset)
        return
    config, origins = resolve_config(objective=objective, preset=preset)
    assert load_preset(preset, objective, METHODS[objective].network_role)
    assert f"preset {preset}" in origins.values()
    assert set(origins) <= set(flatten(config.model_dump(mode="json")))


def test_the_full_size_baseline_is_trained_as_the_ddpm_paper_did():
    """Warm-up, clipping and learning rate of its CIFAR-10 runs; the drifting run keeps its own."""
    trainers = {
        name: resolve_config(objective=name, preset="cifar10-multires")[0].trainer for name in ("ddpm", "drift")
    }
    found = {name: (t.learning_rate, t.warmup_steps, t.gradient_clip) for name, t in trainers.items()}
    assert found == {"ddpm": (2e-4, 5000, 1.0), "drift": (2e-4, 0, 2.0)}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("trainer.batchsize=3", "did you mean trainer.batch_size"),
        ("objective.tau=0.1", "unknown config key objective.tau"),
        ("trainer.batch_size=none", "trainer.batch_size"),
        ("model.num_heads=3", "num_heads 3 does not divide"),
        ("trainer=3", "trainer"),
        ("=3", "section.key=value"),
        ("objective.taus=[]", "objective.taus"),
        ("objective.name=ddpm", "follows from"),
        ("objective=ddpm", "choose the method by"),
        ("model=unet", "expected a section"),
    ],
)
def test_values_that_do_not_fit_are_named(assignment, words):
    with pytest.raises(ValueError, match=words):
        resolve_config(assignments=[assignment])
