"""Groups of a step: which classes and images they get, the guidance of each, and the field of several groups."""

import collections
from dataclasses import replace

import pytest
import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.pixel import PixelEncoder
from driftkit.errors import NonFiniteStepError, UsageError
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.grouping import (
    GroupImages,
    Groups,
    guidance_scales,
    read_positives,
    step_groups,
    unconditional_weight,
)
from driftkit.methods.drifting.objective import Drifting
from driftkit.models.unet import UNet, UNetConfig
from driftkit.protocols import Batch, Execution
from driftkit.runtime.random import shuffled_indices
from driftkit.runtime.ranks import Ranks
from tests.methods.drifting.literal import literal_drift

LABELS = torch.tensor([0, 1, 2, 3, 4, 5] * 8 + [0] * 5)  # 6 classes of 8 images, one of them with 5 more
INDICES = torch.arange(len(LABELS)) * 3  # of the images in their pack


def label_of(indices):
    return LABELS[indices // 3]


def test_every_class_has_a_group_once_per_epoch_of_classes():
    images = GroupImages(Groups(2, 4, 4, 0), INDICES, LABELS, num_classes=6)
    for epoch in range(4):
        drawn = torch.cat([images.classes(1, 3 * epoch + turn) for turn in range(3)])
        assert sorted(drawn.tolist()) == list(range(6))
    assert len({tuple(images.classes(1, step).tolist()) for step in range(12)}) > 3


def test_positives_are_of_the_class_and_do_not_repeat_before_the_class_is_through():
    images = GroupImages(Groups(3, 4, 4, 0), INDICES, LABELS, num_classes=6)
    seen = collections.defaultdict(list)
    for step in range(8):  # every class has four groups of four: two epochs of its eight images
        chosen = images.choose(1, step, rank=0, world_size=1).indices.view(3, 4)
        for label, positives in zip(images.classes(1, step).tolist(), chosen, strict=True):
            assert label_of(positives).tolist() == [label] * 4
            seen[label] += positives.tolist()
    for label in range(1, 6):
        first, second = seen[label][:8], seen[label][8:]
        assert len(set(first)) == len(set(second)) == 8
        assert first != second


@pytest.mark.parametrize("labels", [LABELS, None])
def test_ranks_share_the_groups_of_one_process(labels):
    images = GroupImages(Groups(6 if labels is not None else 4, 4, 4, 2), INDICES, labels, num_classes=6)
    whole = images.choose(1, 5, rank=0, world_size=1)
    halves = [images.choose(1, 5, rank=rank, world_size=2) for rank in range(2)]
    split = images.groups.share(2)
    counts = [split.count * split.positives, split.count * split.unconditional]
    for part, numbers in (("indices", False), ("numbers", True)):
        pieces = [torch.as_tensor(getattr(half, part)).split(counts) for half in halves]
        joined = torch.cat([piece[side] for side in (0, 1) for piece in pieces])
        assert joined.tolist() == torch.as_tensor(getattr(whole, part)).tolist()
        assert not numbers or len(set(joined.tolist())) == len(joined)


def test_ranks_share_a_single_group_image_by_image():
    images = GroupImages(Groups(1, 8, 4, 2), INDICES, LABELS, num_classes=6)
    whole = images.choose(1, 5, rank=0, world_size=1)
    halves = [images.choose(1, 5, rank=rank, world_size=2) for rank in range(2)]
    joined = torch.cat([half.indices[side] for side in (slice(2), slice(2, 3)) for half in halves])
    assert torch.equal(joined, whole.indices)


def test_a_queue_holds_the_last_images_of_its_class():
    groups = Groups(2, 3, 3, 0, queue=7)
    images = GroupImages(groups, INDICES, LABELS, num_classes=6)
    stream = [i for epoch in range(9) for i in INDICES[shuffled_indices(1, epoch, len(INDICES))].tolist()]
    queues = collections.defaultdict(lambda: collections.deque(maxlen=7))
    read = iter(stream)
    for _ in range(len(INDICES)):
        first = next(read)
        queues[int(label_of(torch.tensor(first)))].append(first)
    used = set()
    for step in range(25):
        for _ in range(groups.count * groups.positives):
            pushed = next(read)
            queues[int(label_of(torch.tensor(pushed)))].append(pushed)
        chosen = images.choose(1, step, rank=0, world_size=1).indices.view(2, 3)
        for label, positives in zip(images.classes(1, step).tolist(), chosen.tolist(), strict=True):
            assert set(positives) <= set(queues[label])
            used |= set(positives)
    assert len(used) > 30


def test_guidance_follows_its_density():
    config = DriftingConfig(class_conditional=True, unconditional=2, guidance_max=4, guidance_power=3)
    drawn = guidance_scales(config, 0, 0, range(4000))
    assert drawn.min() >= 1
    assert drawn.max() <= 4
    grid = torch.linspace(1, 4, 30_001, dtype=torch.float64)
    density = grid**-3
    for below in (1.2, 1.7, 2.5):
        share = float(density[grid <= below].sum() / density.sum())
        assert float((drawn <= below).double().mean()) == pytest.approx(share, abs=0.025)
    flat = guidance_scales(config.model_copy(update={"guidance_power": 1.0}), 0, 0, range(4000))
    assert float((flat <= 2).double().mean()) == pytest.approx(0.5, abs=0.025)  # log alpha is uniform
    some = guidance_scales(config.model_copy(update={"guidance_at_one": 0.5}), 0, 0, range(4000))
    assert float((some == 1).double().mean()) == pytest.approx(0.5, abs=0.025)


def test_unconditional_images_are_their_share_of_the_negatives():
    alpha = torch.tensor([1.0, 2.0, 4.0])
    pushed = unconditional_weight(alpha, generated=9, unconditional=5) * 5
    assert torch.allclose(pushed / (pushed + 8), (alpha - 1) / alpha)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [(None, (None, None)), ("64", (64, None)), ("queue:128", (None, 128)), ("64,queue:128", (64, 128))],
)
def test_positives_are_read(text, numbers):
    assert read_positives(DriftingConfig(positives=text).positives) == numbers


@pytest.mark.parametrize(
    ("settings", "batch", "words"),
    [
        ({"class_conditional": True, "groups": 7}, 28, "6 classes"),
        ({"class_conditional": True}, 20, "multiple of 6"),
        ({"groups": 5}, 5, "at least 2"),
        ({"positives": "9,queue:8"}, 12, "queue of 8"),
    ],
)
def test_groups_that_cannot_be_made_are_refused(settings, batch, words):
    with pytest.raises(UsageError, match=words):
        step_groups(DriftingConfig(**settings), global_batch=batch, num_classes=6)


def test_a_class_with_too_few_images_is_refused():
    with pytest.raises(UsageError, match="one has 8"):
        GroupImages(Groups(6, 4, 9, 0), INDICES, LABELS, num_classes=6)


def test_a_class_of_which_no_image_is_trained_on_is_refused():
    with pytest.raises(UsageError, match="one has 0"):
        GroupImages(Groups(7, 4, 4, 0), INDICES, LABELS, num_classes=7)


@pytest.mark.parametrize(("groups", "words"), [((1, 4, 54, 0), "there are 53"), ((1, 4, 4, 54), "only 53")])
def test_more_images_than_there_are_is_refused(groups, words):
    with pytest.raises(UsageError, match=words):
        GroupImages(Groups(*groups), INDICES, None)


def test_a_single_positive_has_no_spread():
    objective = conditional_objective(groups=Groups(3, 4, 1, 2))
    loss = objective.accumulate(random_unet(), batch_of(objective), Execution())
    assert "spread" not in loss.health
    assert any("not watched" in sentence for sentence in Groups(3, 4, 1, 2).advice(by_class=True))


@pytest.mark.parametrize(("row", "named"), [(0, "real"), (20, "real")])
def test_real_features_that_are_not_finite_are_named(row, named):
    objective = conditional_objective()
    batch = batch_of(objective)
    images = batch.images.clone()
    images[row] = torch.nan
    with pytest.raises(NonFiniteStepError, match=f"{named} features"):
        objective.accumulate(random_unet(), replace(batch, images=images), Execution())


def test_ranks_that_cannot_share_groups_are_refused():
    with pytest.raises(UsageError, match="multiple of 4"):
        Groups(6, 4, 4, 0).share(4)
    with pytest.raises(UsageError, match="evenly"):
        Groups(1, 8, 6, 0).share(4)


NETWORK = UNetConfig(
    base_channels=8, channel_multipliers=(1,), num_res_blocks=1, num_heads=2, attention_resolutions=(), dropout=0,
    num_classes=6, guided=True, style_tokens=2, style_codes=4,
)  # fmt: skip
CONDITIONAL = DriftingConfig(
    encoder="pixel", feature_set="paper", class_conditional=True, unconditional=2, guidance_max=4, taus=(0.1, 0.4)
)
IMAGES = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1


def conditional_objective(config=CONDITIONAL, groups=None, **more):
    groups = groups or Groups(3, 4, 5, 2)
    return Drifting(
        config, EncoderUnion.of(PixelEncoder(input_size=4), config.feature_set), ranks=Ranks(), network=NETWORK,
        images=GroupImages(groups, INDICES, LABELS, num_classes=6), **more,
    )  # fmt: skip


def batch_of(objective, step=7):
    slots = range(objective.images.groups.count * objective.images.groups.generated)
    chosen = objective.choose(0, step, slots)
    return Batch(IMAGES[chosen.indices], None, slots, seed=0, step=step, indices=chosen.indices)


def random_unet():
    torch.manual_seed(3)
    network = UNet(NETWORK, image_size=4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("scale_over", ["map", "location"])
def test_every_group_has_its_own_field_and_all_share_the_scales(scale_over):
    """The loss of every feature vector is that of literal fields of the groups, whose scales are means over groups."""
    objective = conditional_objective(CONDITIONAL.model_copy(update={"scale_over": scale_over}))
    batch, network = batch_of(objective), random_unet()
    loss = objective.accumulate(network, batch, Execution())
    draws = batch.drawn(objective).draws
    from driftkit.methods.drifting.samplers import generate_one_step
    from driftkit.protocols import Condition

    condition = Condition(draws["labels"], draws["guidance"], draws["style"])
    assert draws["labels"].view(3, 4).unique(dim=1).shape == (3, 1)
    assert draws["guidance"].view(3, 4).unique(dim=1).shape == (3, 1)
    with torch.no_grad():
        fake = objective._features(generate_one_step(network, draws["prior"], condition))
        real = objective._features(batch.images)
    for gen, pos in zip(fake, real, strict=True):
        vectors = range(len(gen.values))
        alpha = draws["guidance"].view(3, 4)[:, 0].double()
        sets = []
        for place in [vectors] if scale_over == "map" else [[v] for v in vectors]:
            x = torch.cat([gen.values[v].view(3, 4, -1) for v in place])
            y_pos = torch.cat([pos.values[v][:15].view(3, 5, -1) for v in place])
            y_neg = torch.cat([pos.values[v][15:].view(3, 2, -1) for v in place])
            weight = ((alpha - 1) * 3 / 2).repeat(len(place))[:, None].expand(-1, 2).tolist()
            weight = torch.tensor(weight, dtype=torch.float64)
            v, _, _ = literal_drift(x, y_pos, y_neg, taus=CONDITIONAL.taus, weight=weight, scale_over="map")
            sets.append(v.square().mean(dim=(1, 2)))
        assert float(loss.terms[gen.name]) == pytest.approx(float(torch.cat(sets).mean()), rel=2e-4)


def test_micro_batches_have_the_gradient_of_all_groups():
    gradients = []
    for micro_batch in (None, 5):
        objective, network = conditional_objective(), random_unet()
        objective.accumulate(network, batch_of(objective), Execution(micro_batch=micro_batch))
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert "condition_embedding.labels.weight" in gradients[0]
    assert "condition_embedding.style.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-6), name


def test_unconditional_groups_are_fields_of_their_own():
    config = DriftingConfig(encoder="pixel", feature_set="multires")
    together = Drifting(
        config,
        EncoderUnion.of(PixelEncoder(input_size=4), config.feature_set),
        ranks=Ranks(),
        images=GroupImages(Groups(2, 4, 4, 0), INDICES, None),
    )
    batch, network = batch_of(together), random_unet()
    loss = together.accumulate(network, batch, Execution())
    assert torch.isfinite(loss.total)
    assert together.draws(0, 7, range(8), (3, 4, 4)).keys() == {"prior"}
