"""What samples are conditioned on, and guidance: a literal float64 reference, and evaluations that are counted."""

import math
import re

import pytest
import torch
from torch import nn

from driftkit.config.sampling_config import SamplingConfig
from driftkit.errors import ArtifactError, UsageError
from driftkit.methods.registry import METHODS, build_sampler
from driftkit.models.registry import build_network
from driftkit.protocols import Condition, SampleRequest
from driftkit.runtime.random import style_codes
from driftkit.storage.records import ClassCount
from driftkit.training.conditions import (
    class_counts,
    conditions_file_label,
    conditions_label,
    grid_conditions,
    proportional_labels,
    sample_conditions,
)
from driftkit.training.sampling import draw_images, guided_prediction, guided_sampler
from driftkit.training.train_config import resolve_config
from tests.conftest import TINY_UNET
from tests.scoring.fakes import make_pack, random_images

CPU = torch.device("cpu")
PETS = tuple(ClassCount(name=name, images=images) for name, images in (("cat", 30), ("dog", 20), ("newt", 10)))


def config_of(objective="ddpm", *more, **network):
    """A tiny config with a network completed as the training completes it."""
    completed = {"num_classes": 3, "guided": False, **network}
    words = [word for word in TINY_UNET if word != "--set"]
    words += ["objective.class_conditional=true"] if completed["num_classes"] else []
    config, _ = resolve_config(objective=objective, assignments=[*words, "data.image_size=8", *more])
    return config.model_copy(update={"model": config.model.model_copy(update=completed)})


def asked(config, known=PETS, **more):
    return sample_conditions(config.objective, config.model, known, **more)


def test_any_prefix_has_classes_nearly_in_proportion():
    counts = [500, 300, 150, 50]
    labels = proportional_labels(torch.arange(20_000), counts)
    for size in (1, 7, 64, 1000, 20_000):
        held = torch.bincount(labels[:size], minlength=4)
        assert all(abs(int(n) - size * count / 1000) <= 3 for n, count in zip(held, counts, strict=True))
    ten = proportional_labels(torch.arange(50_000), [5000] * 10)
    assert max(torch.bincount(ten)) - min(torch.bincount(ten)) <= 6
    assert torch.bincount(ten[:64]).tolist() == pytest.approx([6.4] * 10, abs=1.6)


def test_a_label_is_a_function_of_the_number_alone():
    whole = proportional_labels(torch.arange(100), [3, 2, 1])
    numbers = torch.tensor([2**31 + 5, 7, 99, 2**40])
    assert torch.equal(proportional_labels(numbers[1:3], [3, 2, 1]), whole[[7, 99]])
    share = math.modf((2**31 + 5) * 2_654_435_769 % 2**32 / 2**32)[0]
    assert int(proportional_labels(numbers, [3, 2, 1])[0]) == (share >= 1 / 2) + (share >= 5 / 6)


def test_classes_are_asked_for_by_name_by_number_or_all_in_turn():
    config = config_of()
    assert asked(config, classes=("all",)).labels(range(5)).tolist() == [0, 1, 2, 0, 1]
    some = asked(config, classes=("newt", "0"))
    assert some.labels(range(3, 6)).tolist() == [0, 2, 0]
    assert some.asked_classes == ("newt", "cat")
    numbers = tuple(ClassCount(name=name, images=1) for name in ("2", "0", "1"))
    assert asked(config, numbers, classes=("2",)).labels([0]).tolist() == [0]  # a name before a number
    assert asked(config).asked_classes is None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"classes": ("dgo",)}, r"`classes` dgo: expected all, .* cat, dog, newt \(did you mean dog\?\)"),
        ({"classes": ("3",)}, "a number below 3"),
        ({"classes": ("9" * 5000,)}, "`classes` 9{80}: expected all, a number below 3"),
        ({"classes": ("\u0661",)}, "a number below 3"),  # 1 in Arabic-Indic digits
        ({"classes": ("cat", "all")}, "`classes` all"),
        ({"guidance": -1.0}, "at least 0"),
        ({"guidance": math.nan}, "finite"),
    ],
)
def test_what_a_run_does_not_know_is_refused(more, says):
    with pytest.raises(UsageError, match=says):
        asked(config_of(), **more)


def test_unconditional_runs_take_neither_class_nor_scale():
    plain = config_of(num_classes=0)
    assert asked(plain, ()).of(range(3), seed=0, stream="sample", device=CPU) == Condition()
    for more in ({"classes": ("all",)}, {"guidance": 1.0}):
        with pytest.raises(UsageError, match="the run is unconditional"):
            asked(plain, (), **more)
    with pytest.raises(ArtifactError, match="takes 3 classes and the manifest names 2"):
        asked(config_of(), PETS[:2])


def test_a_network_that_always_saw_the_class_cannot_be_guided():
    config = config_of("ddpm", "objective.label_dropout=0")
    assert asked(config, guidance=1.0).guidance == 1
    for unguided in (config, config_of("drift")):
        with pytest.raises(UsageError, match=r"nor without classes \(`objective\.label_dropout`\)"):
            asked(unguided, guidance=2.0)


def guided_config(**network):
    scales = ("objective.guidance_max=4", "objective.unconditional=2")
    return config_of("drift", *scales, guided=True, **network)


def test_a_scale_that_the_network_is_trained_with_is_its_input_and_within_the_trained_range():
    config = guided_config(style_tokens=2, style_codes=5)
    conditions = asked(config, guidance=3.0)
    assert not conditions.guides_sampler
    condition = conditions.of(range(2, 6), seed=7, stream="sample", device=CPU)
    assert condition.guidance.tolist() == [3.0] * 4
    assert torch.equal(condition.style, style_codes(7, "sample", range(2, 6), tokens=2, codes=5))
    assert asked(config).of([0], seed=0, stream="sample", device=CPU).guidance.tolist() == [1.0]
    for scale in (0.5, 4.5):
        with pytest.raises(UsageError, match="scales of 1 to 4"):
            asked(config, guidance=scale)


def test_labels_of_samples_are_short_and_tell_scales_apart():
    assert conditions_label(None, None) == conditions_label(None, 1.0) == ""
    assert conditions_label(("cat", "dog"), 2.0) == " guidance=2 class=cat,dog"
    many = [tuple(f"c{i}" for i in range(n)) for n in (8, 9)]
    assert conditions_label(many[0], None) == " class=c0,c1,c2,c3,4 more"
    assert conditions_file_label(many[0], 1.5) != conditions_file_label(many[1], 1.5)


def test_names_of_files_tell_classes_apart_whatever_these_are_called():
    assert conditions_file_label(("cat", "dog"), 2.0) == "-guidance2-classcat-dog"
    asked_for = [("猫",), ("犬",), ("猫", "犬"), ("a b",), ("a_b",), ("a", "b"), ("a-b",), ("a=b",), ("ab",), ("a/b",)]
    labels = [conditions_file_label(classes, None) for classes in asked_for]
    assert len(set(labels)) == len(asked_for)
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", label) for label in labels)


def test_images_of_a_class_are_those_trained_on(tmp_path):
    labels = torch.tensor([0, 0, 0, 1, 1])
    pack = make_pack(tmp_path / "pack.safetensors", random_images(5), labels, ("a", "b"))
    assert [known.images for known in class_counts(pack)] == [3, 2]
    assert [known.images for known in class_counts(pack, torch.tensor([0, 2, 4]))] == [2, 1]
    with pytest.raises(UsageError, match="no image to train on is of the class b"):
        class_counts(pack, torch.tensor([0, 1]))


def test_a_scale_that_no_objective_trained_is_of_a_damaged_manifest():
    with pytest.raises(ArtifactError, match="its objective trains with none"):
        asked(config_of("ddpm", guided=True), guidance=2.0)


@pytest.mark.parametrize(("sampler", "spacing"), [("ddim", "trailing"), ("dpm-solver", "leading")])
def test_a_refused_nfe_of_a_guided_sampler_is_named_as_it_was_asked_for(sampler, spacing):
    config = config_of("ddpm", "objective.num_steps=10")
    with pytest.raises(UsageError, match=r"`nfe` 22: with `guidance` .* makes 11 steps; .* from 1 to 10 .* got 11"):
        drawn(config, asked(config, guidance=2.0), sampler=sampler, nfe=22, options={"spacing": spacing})
    with pytest.raises(UsageError, match=r"^nfe: .* got 22"):
        drawn(config, asked(config), sampler=sampler, nfe=22, options={"spacing": spacing})


def test_a_grid_has_a_row_per_class():
    conditions, count = grid_conditions(config_of().model, PETS)
    assert count == 24
    assert conditions.labels(range(count)).tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert grid_conditions(config_of(num_classes=0).model, ())[1] == 64
    many = tuple(ClassCount(name=str(i), images=1) for i in range(12))
    assert grid_conditions(config_of(num_classes=12).model, many)[1] == 80


class Labelled(nn.Module):
    """A made-up network in float64 that depends on all of its inputs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, condition):
        self.calls.append(len(x))
        shift = (condition.labels + 2).double().view(-1, 1, 1, 1)
        return torch.sin(shift * x) + t.double().view(-1, 1, 1, 1) / shift


def test_a_guided_prediction_is_the_formula():
    """Literally: without class + W (with class - without class)."""
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    t, labels = torch.arange(5), torch.tensor([0, 2, 1, 0, 1])
    network = Labelled()
    guided = guided_prediction(network, 2.5)(x, t, Condition(labels=labels))
    for row in range(5):
        with_class = torch.sin((labels[row] + 2).double() * x[row]) + t[row] / (labels[row] + 2)
        without = torch.sin(x[row]) + t[row]
        assert torch.allclose(guided[row].double(), without + 2.5 * (with_class - without), atol=1e-5)
    assert network.calls == [10]  # both halves in one batch
    alone = guided_prediction(network, 1.0)(x, t, Condition(labels=labels))
    assert torch.allclose(alone.double(), network(x, t, Condition(labels=labels)), atol=1e-5)


@pytest.mark.parametrize(("method", "sampler"), [(m, s) for m in ("ddpm", "flow") for s in METHODS[m].samplers])
def test_nfe_counts_every_evaluation_of_a_guided_sampler(method, sampler):
    config = config_of(method, *(["objective.num_steps=60"] if method == "ddpm" else []))
    noise, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    spec, draw = build_sampler(config.objective, sampler)
    for nfe in (2, 6, None):
        network = Labelled()
        request = SampleRequest(nfe, lambda step: torch.zeros_like(noise), condition=Condition(labels=labels))
        _, counted = guided_sampler(draw, 2.0)(network, noise, request)
        assert sum(network.calls) == counted * len(noise)
        assert counted == (2 * spec.default_nfe(config.objective) if nfe is None else nfe)
    with pytest.raises(UsageError, match=r"`nfe` 5: .* must be even; take 6"):
        guided_sampler(draw, 2.0)(Labelled(), noise, SampleRequest(5, lambda step: noise))


def drawn(config, conditions, numbers=range(6), options=None, batch_size=250, **sampling):
    torch.manual_seed(0)
    network = build_network(config.model, image_size=8).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return draw_images(
        network, config, numbers, SamplingConfig(**sampling), conditions=conditions, options=options,
        batch_size=batch_size, device=CPU,
    )  # fmt: skip


def test_images_follow_from_seed_number_label_and_scale_alone():
    config = config_of("flow")
    guided = drawn(config, asked(config, guidance=3.0), nfe=4)
    assert guided.nfe == 4
    parts = drawn(config, asked(config, guidance=3.0), nfe=4, batch_size=4)
    assert (guided.images.int() - parts.images.int()).abs().max() <= 1
    plain = drawn(config, asked(config, guidance=1.0), nfe=4)
    assert torch.equal(plain.images, drawn(config, asked(config), nfe=4).images)
    assert not torch.equal(plain.images, guided.images)


def test_one_step_generators_take_label_scale_and_style_with_one_evaluation():
    config = guided_config(style_tokens=2, style_codes=5)
    first = drawn(config, asked(config, classes=("cat",)))
    assert first.nfe == 1
    for more in ({"classes": ("dog",)}, {"classes": ("cat",), "guidance": 3.0}):
        assert not torch.equal(drawn(config, asked(config, **more)).images, first.images)
    assert not torch.equal(drawn(config, asked(config, classes=("cat",)), seed=1).images, first.images)
