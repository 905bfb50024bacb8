"""Drifting: the generator regresses onto its own output, moved along the field in an encoder's feature space."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import FeatureGroup, FieldCall, field_calls
from driftkit.errors import NonFiniteError, NonFiniteStepError
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.field import AggregatedDrift, aggregated_drift
from driftkit.methods.drifting.grouping import GroupImages, guidance_scales, unconditional_weight
from driftkit.methods.drifting.loss import drift_loss
from driftkit.methods.drifting.samplers import generate_one_step
from driftkit.methods.drifting.sharing import SharedFeatures, share_features
from driftkit.methods.drifting.workspace import ScaleOver
from driftkit.models.contract import GeneratorNetworkConfig
from driftkit.protocols import UNCONDITIONAL, Batch, ChosenImages, Condition, Execution, StepLoss
from driftkit.runtime.device import copy_to
from driftkit.runtime.random import generator_for, image_noise, seed_global_generators, style_codes
from driftkit.runtime.ranks import Ranks

FIELD_STATS = ("drift_scale", "effective_points", "logit_range")  # of a field, by temperature
RATIO_EVERY = 100  # steps between measurements of `drift_ratio`, which cost two more fields
# Of real features. Where some of a map's vectors are the same in all images, as at black borders, the others count.
SMALLEST_VARIANCE = 1e-24


class Drifting:
    """Loss of a one-step generator in the feature space of frozen encoders.

    A step has one or more groups (`grouping`), each with a field of its own. Where ranks hold whole groups, only scales
    are exchanged. Features of a single group of all ranks are gathered, so that its field sees the global batch.

    Args:
        encoders: give the feature groups of images.
        network: config of the generator, which says what it is conditioned on; None: nothing.
        images: which real images the groups get; None: one unconditional group of all slots, with a positive for each.
        compiled: whether everything from images to feature groups is one compiled function.

    Source: arXiv 2602.04770, Algorithm 1 and Appendix A.2, A.5 to A.7. Differs: by default each location has its own
    feature and drift scale, where paper and authors' release share them over a map (`scale_over`), affinities have no
    lower bound, where the release has 1e-3 (`affinity_floor`), and generated images are clipped (`clip`).
    """

    def __init__(
        self,
        config: DriftingConfig,
        encoders: EncoderUnion,
        *,
        ranks: Ranks,
        network: GeneratorNetworkConfig | None = None,
        images: GroupImages | None = None,
        compiled: bool = False,
    ):
        self.config, self.network, self.images = config, network or GeneratorNetworkConfig(), images
        self.own = None if images is None else images.groups.share(ranks.world_size)  # groups of this rank
        self.own_groups = 1 if self.own is None else self.own.count
        # Whole groups need no features of other ranks; a single one is spread over all.
        whole = images is not None and self.own_groups * ranks.world_size == images.groups.count
        self.field_ranks, self.scale_ranks = (Ranks(), ranks) if whole else (ranks, Ranks())
        self.encoders = encoders
        self.ranks = ranks
        self._compared: set[tuple[torch.Size, torch.Size]] = set()
        self._features: Callable[[torch.Tensor], list[FeatureGroup]] = encoders.groups
        if compiled:  # batches have a few sizes: a program for each is faster than one for any
            self._features = torch.compile(encoders.groups, dynamic=False)

    needs_labels = False  # labels follow from the groups

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """`prior`, the standard normal noise that images are generated from; `labels`, `guidance`, `style` if taken."""
        draws = {"prior": image_noise(seed, "prior", slots, image_shape, step=step)}
        if self.images is not None and self.images.by_class:
            group = torch.tensor(slots) // self.images.groups.generated
            draws["labels"] = self.images.classes(seed, step)[group]
            if self.config.trains_guidance:
                draws["guidance"] = guidance_scales(self.config, seed, step, range(self.images.groups.count))[group]
        if self.network.style_tokens:
            tokens, codes = self.network.style_tokens, self.network.style_codes
            draws["style"] = style_codes(seed, "prior", slots, tokens=tokens, codes=codes, step=step)
        return draws

    def choose(self, seed: int, step: int, slots: range) -> ChosenImages | None:
        """The positives of the groups of these slots, then their unconditional images."""
        if self.images is None:
            return None
        ranks = self.images.groups.count * self.images.groups.generated // len(slots)
        return self.images.choose(seed, step, slots.start // len(slots), ranks)

    def accumulate(self, model: nn.Module, batch: Batch, execution: Execution) -> StepLoss:
        """Gradient of the field of the whole batch, whatever the chunks.

        With several chunks the features are first computed without a graph. Then the field gives their gradient, every
        chunk is generated again with the same dropout, and backpropagates its share. Averaging the losses of chunks,
        each with its own field, would be another and worse method. Dropout draws masks per chunk, so another chunk
        size draws other masks. torch's global generators are seeded here.
        """
        chunks = execution.chunks(len(batch.slots))
        batch = batch.drawn(self)
        assert batch.draws is not None
        noise = batch.draws["prior"].to(batch.images)
        batch = replace(batch, condition=Condition(*(batch.draws.get(part) for part in Condition._fields)))
        execution.clock.mark("data")
        real = self._real(batch, execution)
        if len(chunks) == 1:
            only = self._generate(model, noise, chunks[0], batch, execution)
            parts = [only[1]]
        else:
            only = None
            with torch.no_grad():
                parts = [self._generate(model, noise, chunk, batch, execution)[1] for chunk in chunks]
        outcome, gradients = self._field(_joined(parts), real, batch.condition.guidance, step=batch.step)
        execution.clock.mark("field")
        for chunk in chunks:
            images, groups = only or self._generate(model, noise, chunk, batch, execution)
            if images.requires_grad:
                images.register_hook(lambda _: execution.clock.mark("encoder"))
            with execution.backward_of(chunk, len(batch.slots)):
                torch.autograd.backward([g.values for g in groups], [gradients[g.name][:, chunk] for g in groups])
            execution.clock.mark("generator")
        return outcome

    def _generate(
        self, model: nn.Module, noise: torch.Tensor, chunk: slice, batch: Batch, execution: Execution
    ) -> tuple[torch.Tensor, list[FeatureGroup]]:
        """Generated images of one chunk and their features."""
        seed_global_generators(batch.seed, batch.step, self.ranks.rank, chunk.start)  # the same dropout each time
        with execution.autocast():
            images = generate_one_step(model, noise[chunk], batch.condition.part(chunk))
            execution.clock.mark("generator")
            if self.config.clip:
                images = images.clamp(-1, 1)
            groups = self._drawn(self._features(images), batch)
            execution.clock.mark("encoder")
        return images, groups

    def _drawn(self, groups: list[FeatureGroup], batch: Batch) -> list[FeatureGroup]:
        """The groups, of each at most `vectors_per_group` vectors, which are others in every step."""
        limit = self.config.vectors_per_group
        if limit is None:
            return groups
        drawn = []
        for group in groups:
            values, count = group.values, group.values.shape[0]
            if count > limit:
                generator = generator_for(batch.seed, "vectors", batch.step, group.name)
                values = values[copy_to(torch.randperm(count, generator=generator)[:limit], values.device)]
            drawn.append(FeatureGroup(group.map, group.kind, values))
        return drawn

    def _real(self, batch: Batch, execution: Execution) -> list[FeatureGroup]:
        """Features of the real images, as `choose` has ordered them."""
        if self.encoders.is_cached:
            assert batch.indices is not None
            assert batch.flips is not None
            groups = self.encoders.cached(batch.indices, batch.flips, device=batch.images.device)
            execution.clock.mark("data")
            return self._drawn(groups, batch)
        chunks = execution.chunks(len(batch.images))
        with torch.no_grad(), execution.autocast():
            groups = _joined([self._drawn(self._features(batch.images[chunk]), batch) for chunk in chunks])
        execution.clock.mark("encoder")
        return groups

    def _field(
        self, generated: list[FeatureGroup], real: list[FeatureGroup], guidance: torch.Tensor | None, *, step: int
    ) -> tuple[StepLoss, dict[str, torch.Tensor]]:
        """The loss, and its gradient at the features [L, N, C] of every map and kind, by name."""
        terms: dict[str, torch.Tensor] = {}
        stats: list[tuple[FeatureGroup, torch.Tensor]] = []  # of each group the FIELD_STATS, [3, T]
        gradients: dict[str, torch.Tensor] = {}
        variances: list[tuple[torch.Tensor, torch.Tensor]] = []  # of generated and real features of each group
        ratios: list[torch.Tensor] = []  # drift scales of generated and of real features, [2] for each group
        for gen, x, y_pos, shared in _one_ahead(self._shared(generated, real, guidance)):
            drift = self._one_call(gen, x, y_pos, shared, step=step)
            sizes = [group.values.shape[0] * self.own_groups for group in gen.groups]
            both = zip(_variance(x.detach()).split(sizes), _variance(y_pos).split(sizes), strict=True)
            variances += [(ours.mean(), real.mean()) for ours, real in both]
            if (step + 1) % RATIO_EVERY == 0 and y_pos.shape[1] > 3:  # two of each side, and positives
                ratios += self._scales_next_to_real(gen, x.detach(), y_pos, step=step)
            per_field = drift_loss(x, drift)
            per_tau = torch.stack([getattr(drift, name) for name in FIELD_STATS]).split(sizes, dim=2)
            for group, loss, values in zip(gen.groups, per_field.split(sizes), per_tau, strict=True):
                terms[group.name] = loss.mean()
                stats.append((group, values.mean(dim=2)))
            torch.stack([terms[group.name] for group in gen.groups]).sum().backward()
            assert x.grad is not None
            for group, grad in zip(gen.groups, x.grad.split(sizes), strict=True):
                gradients[group.name] = grad.unflatten(0, (-1, self.own_groups)).flatten(1, 2)
        terms = {name: term.detach() for name, term in terms.items()}
        health = self._health(stats, self.config.taus_at(step))
        if y_pos.shape[1] > 1:  # a single image has no spread
            spreads = [(ours / real.clamp(min=SMALLEST_VARIANCE)).sqrt() for ours, real in variances]
            health["spread"] = self.ranks.mean(torch.stack(spreads).mean())
        if ratios:
            ours, theirs = self.ranks.mean(torch.stack(ratios).mean(dim=0))
            health["drift_ratio"] = ours / theirs.clamp(min=SMALLEST_VARIANCE)  # 0 where real images are all alike
        generated_sum, real_sum = (torch.stack(values).sum() for values in zip(*variances, strict=True))
        sources = {"real features": real_sum, "generated features": generated_sum}
        return StepLoss(torch.stack(list(terms.values())).sum(), terms, health, sources), gradients

    def _shared(
        self, generated: list[FeatureGroup], real: list[FeatureGroup], guidance: torch.Tensor | None
    ) -> Iterator[tuple[FieldCall, torch.Tensor, torch.Tensor, SharedFeatures]]:
        """Every field call with its features, x a leaf of its own graph, whose exchange among ranks has begun."""
        for gen, pos in zip(field_calls(generated), field_calls(real), strict=True):
            x = self._by_group(gen.values().detach()).requires_grad_()
            y_pos, negatives, weight = pos.values(), None, None
            if guidance is not None:
                assert self.images is not None
                assert self.own is not None
                whole, own = self.images.groups, self.own
                y_pos, unconditional = y_pos.split([own.count * own.positives, own.count * own.unconditional], dim=1)
                negatives = self._by_group(unconditional)
                alpha = guidance.view(own.count, own.generated)[:, 0]
                weight = unconditional_weight(alpha, generated=whole.generated, unconditional=whole.unconditional)
                weight = weight.repeat(gen.vectors)[:, None].expand(-1, own.unconditional)
            y_pos = self._by_group(y_pos)
            shapes = (x.shape, y_pos.shape)
            compare = shapes not in self._compared  # shapes are constants of a run, and equal on all ranks
            self._compared.add(shapes)
            ranks = self.field_ranks
            shared = share_features(x, y_pos, negatives, negative_weight=weight, ranks=ranks, compare=compare)
            yield gen, x, y_pos, shared

    def _by_group(self, features: torch.Tensor) -> torch.Tensor:
        """Every group's images in a field of their own: [L, groups * N, C] -> [L * groups, N, C]."""
        separate: torch.Tensor = features.unflatten(1, (self.own_groups, -1))  # type: ignore[no-untyped-call]
        return separate.flatten(0, 1)

    def _one_call(
        self,
        gen: FieldCall,
        x: torch.Tensor,
        y_pos: torch.Tensor,
        shared: SharedFeatures,
        *,
        step: int,
    ) -> AggregatedDrift:
        config, by_map = self.config, gen.membership()
        membership = tuple(number for number in by_map for _ in range(self.own_groups))  # of every field
        sharing: ScaleOver = membership
        if config.scale_over == "location":  # whose groups share its scales
            sharing = tuple(location for location in range(len(by_map)) for _ in range(self.own_groups))
        try:
            return aggregated_drift(
                x,
                y_pos,
                taus=config.taus_at(step),
                scale_over=sharing,
                affinity_floor=config.affinity_floor,
                kernel=config.kernel,
                normalisation=config.normalisation,
                chunk_bytes=config.field_chunk_mib * 2**20 if config.field_chunk_mib else None,
                ranks=self.field_ranks,
                scale_ranks=self.scale_ranks,
                shared=shared,
            )
        except NonFiniteError as error:
            points = shared.points()
            names = [] if error.fields else ["features of another rank"]
            for side, parts in (("generated", (points.x,)), ("real", points.others)):
                bad = torch.stack([(~torch.isfinite(part)).flatten(1).any(dim=1) for part in parts])
                broken = bad.any(dim=0).tolist()
                found = {gen.groups[membership[field]].name for field in error.fields if broken[field]}
                names += [f"{side} features {name}" for name in sorted(found)]
            raise NonFiniteStepError(names, step) from None

    def _scales_next_to_real(
        self, gen: FieldCall, x: torch.Tensor, y_pos: torch.Tensor, *, step: int
    ) -> list[torch.Tensor]:
        """Drift scales [2] of each map and kind: of generated images among the others, and of as many real ones.

        Real images have a drift, too, by the chance of who is in a group. Where generated ones have hardly more, a step
        shows chance, and groups have to be larger to show what is left to learn.
        """
        count = min(x.shape[1], y_pos.shape[1] // 2)
        real, others = y_pos.split([count, y_pos.shape[1] - count], dim=1)
        sizes = [group.values.shape[0] * self.own_groups for group in gen.groups]
        scales = []
        for points in (x[:, :count], real):
            shared = share_features(points, others, ranks=self.field_ranks, compare=False)
            drift = self._one_call(gen, points, others, shared, step=step)
            scales.append(torch.stack([part.mean() for part in drift.drift_scale.split(sizes, dim=1)]))
        return list(torch.stack(scales, dim=1))

    def _health(
        self, stats: Sequence[tuple[FeatureGroup, torch.Tensor]], taus: Sequence[float]
    ) -> dict[str, torch.Tensor]:
        """Means over the fields of each map, over maps, and over both by temperature, of all ranks."""
        shared = self.scale_ranks.mean(torch.stack([values for _, values in stats]))
        stats = [(group, values) for (group, _), values in zip(stats, shared, strict=True)]
        by_map: dict[str, list[torch.Tensor]] = {}
        for group, values in stats:
            by_map.setdefault(group.map, []).append(values[0].mean())
        norms = {f"drift_norm/{name}": torch.stack(scales).mean() for name, scales in by_map.items()}
        health = {"drift_norm": torch.stack(list(norms.values())).mean(), **norms}
        for t, tau in enumerate(taus):
            for row, name in enumerate(FIELD_STATS):
                health[f"{name}/tau {tau:g}"] = torch.stack([values[row, t] for _, values in stats]).mean()
        return health

    def measure(self, model: nn.Module) -> dict[str, float]:
        return {}

    def preview(
        self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        return generate_one_step(model, noise, condition)


Item = TypeVar("Item")


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each requested while the one before is in use: its all-gather overlaps with the current field."""
    waiting = next(items, None)
    while waiting is not None:
        current, waiting = waiting, next(items, None)
        yield current


def _joined(parts: list[list[FeatureGroup]]) -> list[FeatureGroup]:
    """The groups of consecutive chunks of images as those of all of them."""
    if len(parts) == 1:
        return parts[0]
    return [
        FeatureGroup(same[0].map, same[0].kind, torch.cat([group.values for group in same], dim=1))
        for same in zip(*parts, strict=True)
    ]


def _variance(features: torch.Tensor) -> torch.Tensor:
    """Estimated mean square distance to the mean, per field: [G, N, C] -> [G]; 0 for a single image."""
    return features.var(dim=1, correction=min(1, features.shape[1] - 1)).mean(dim=-1)
