"""Drifting: the generator regresses onto its own output, moved along the field in an encoder's feature space."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import FeatureGroup, FieldCall, field_calls
from driftkit.errors import NonFiniteError, NonFiniteStepError
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.field import AggregatedDrift, aggregated_drift
from driftkit.methods.drifting.loss import drift_loss
from driftkit.methods.drifting.samplers import generate_one_step
from driftkit.methods.drifting.sharing import SharedFeatures, share_features
from driftkit.protocols import UNCONDITIONAL, Batch, Condition, Execution, StepLoss
from driftkit.runtime.random import image_noise, seed_global_generators
from driftkit.runtime.ranks import Ranks

FIELD_STATS = ("drift_scale", "effective_points", "logit_range")  # of a field, by temperature
# Of real features. Where some of a map's vectors are the same in all images, as at black borders, the others count.
SMALLEST_VARIANCE = 1e-24


class Drifting:
    """Loss of a one-step generator in the feature space of frozen encoders.

    Generated and real features of all ranks are gathered, so that the field sees the global batch.

    Args:
        encoders: give the feature groups of images.
        compiled: whether everything from images to feature groups is one compiled function.

    Source: arXiv 2602.04770, Algorithm 1 and Appendix A.5, A.6. Differs: unconditional, one real image per generated;
    and by default each location has its own feature and drift scale, where paper and authors' release share them over a
    map (`scale_over`), and affinities have no lower bound, where the release has 1e-3 (`affinity_floor`).
    """

    def __init__(
        self,
        config: DriftingConfig,
        encoders: EncoderUnion,
        *,
        ranks: Ranks,
        compiled: bool = False,
    ):
        self.config = config
        self.encoders = encoders
        self.ranks = ranks
        self._compared: set[tuple[torch.Size, torch.Size]] = set()
        self._features: Callable[[torch.Tensor], list[FeatureGroup]] = encoders.groups
        if compiled:  # batches have one or two sizes: a program for each is faster than one for any
            self._features = torch.compile(encoders.groups, dynamic=False)

    needs_labels = False

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """`prior`, the standard normal noise that images are generated from."""
        return {"prior": image_noise(seed, "prior", slots, image_shape, step=step)}

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
        execution.clock.mark("data")
        positives = self._positives(batch, execution)
        if len(chunks) == 1:
            only = self._generate(model, noise, chunks[0], batch, execution)
            parts = [only[1]]
        else:
            only = None
            with torch.no_grad():
                parts = [self._generate(model, noise, chunk, batch, execution)[1] for chunk in chunks]
        outcome, gradients = self._field(_joined(parts), positives, step=batch.step)
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
            groups = self._features(images)
            execution.clock.mark("encoder")
        return images, groups

    def _positives(self, batch: Batch, execution: Execution) -> list[FeatureGroup]:
        if self.encoders.is_cached:
            assert batch.indices is not None
            assert batch.flips is not None
            groups = self.encoders.cached(batch.indices, batch.flips, device=batch.images.device)
            execution.clock.mark("data")
            return groups
        with torch.no_grad(), execution.autocast():
            groups = _joined([self._features(batch.images[chunk]) for chunk in execution.chunks(len(batch.slots))])
        execution.clock.mark("encoder")
        return groups

    def _field(
        self, generated: list[FeatureGroup], positives: list[FeatureGroup], *, step: int
    ) -> tuple[StepLoss, dict[str, torch.Tensor]]:
        """The loss, and its gradient at every group's features [L, N, C], by name."""
        terms: dict[str, torch.Tensor] = {}
        stats: list[tuple[FeatureGroup, torch.Tensor]] = []  # of each group the FIELD_STATS, [3, T]
        gradients: dict[str, torch.Tensor] = {}
        variances: list[tuple[torch.Tensor, torch.Tensor]] = []  # of generated and real features of each group
        for gen, x, y_pos, shared in _one_ahead(self._shared(generated, positives)):
            drift = self._one_call(gen, x, y_pos, shared, step=step)
            sizes = [group.values.shape[0] for group in gen.groups]
            both = zip(_variance(x.detach()).split(sizes), _variance(y_pos).split(sizes), strict=True)
            variances += [(ours.mean(), real.mean()) for ours, real in both]
            per_field = drift_loss(x, drift)
            per_tau = torch.stack([getattr(drift, name) for name in FIELD_STATS]).split(sizes, dim=2)
            for group, loss, values in zip(gen.groups, per_field.split(sizes), per_tau, strict=True):
                terms[group.name] = loss.mean()
                stats.append((group, values.mean(dim=2)))
            torch.stack([terms[group.name] for group in gen.groups]).sum().backward()
            assert x.grad is not None
            gradients |= {g.name: grad for g, grad in zip(gen.groups, x.grad.split(sizes), strict=True)}
        terms = {name: term.detach() for name, term in terms.items()}
        health = self._health(stats)
        spreads = [(ours / real.clamp(min=SMALLEST_VARIANCE)).sqrt() for ours, real in variances]
        health["spread"] = self.ranks.mean(torch.stack(spreads).mean())
        generated_sum, real_sum = (torch.stack(values).sum() for values in zip(*variances, strict=True))
        sources = {"real features": real_sum, "generated features": generated_sum}
        return StepLoss(torch.stack(list(terms.values())).sum(), terms, health, sources), gradients

    def _shared(
        self, generated: list[FeatureGroup], positives: list[FeatureGroup]
    ) -> Iterator[tuple[FieldCall, torch.Tensor, torch.Tensor, SharedFeatures]]:
        """Every field call with its features, x a leaf of its own graph, whose exchange among ranks has begun."""
        for gen, pos in zip(field_calls(generated), field_calls(positives), strict=True):
            x, y_pos = gen.values().detach().requires_grad_(), pos.values()
            shapes = (x.shape, y_pos.shape)
            compare = shapes not in self._compared  # shapes are constants of a run, and equal on all ranks
            self._compared.add(shapes)
            yield gen, x, y_pos, share_features(x, y_pos, ranks=self.ranks, compare=compare)

    def _one_call(
        self,
        gen: FieldCall,
        x: torch.Tensor,
        y_pos: torch.Tensor,
        shared: SharedFeatures,
        *,
        step: int,
    ) -> AggregatedDrift:
        config, membership = self.config, gen.membership()
        try:
            return aggregated_drift(
                x,
                y_pos,
                taus=config.taus,
                scale_over=membership if config.scale_over == "map" else "location",
                affinity_floor=config.affinity_floor,
                kernel=config.kernel,
                normalisation=config.normalisation,
                chunk_bytes=config.field_chunk_mib * 2**20 if config.field_chunk_mib else None,
                ranks=self.ranks,
                shared=shared,
            )
        except NonFiniteError as error:
            points = shared.points()
            names = []
            for side, (which, *_) in (("generated", (points.x,)), ("real", points.others)):
                broken = (~torch.isfinite(which)).flatten(1).any(dim=1).tolist()
                found = {gen.groups[membership[field]].name for field in error.fields if broken[field]}
                names += [f"{side} features {name}" for name in sorted(found)]
            raise NonFiniteStepError(names, step) from None

    def _health(self, stats: Sequence[tuple[FeatureGroup, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Means over the fields of each map, over maps, and over both by temperature."""
        by_map: dict[str, list[torch.Tensor]] = {}
        for group, values in stats:
            by_map.setdefault(group.map, []).append(values[0].mean())
        norms = {f"drift_norm/{name}": torch.stack(scales).mean() for name, scales in by_map.items()}
        health = {"drift_norm": torch.stack(list(norms.values())).mean(), **norms}
        for t, tau in enumerate(self.config.taus):
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
    """Mean square distance to the mean, per field: [G, N, C] -> [G]."""
    return features.var(dim=1, unbiased=False).mean(dim=-1)
