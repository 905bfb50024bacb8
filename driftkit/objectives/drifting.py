"""Drifting: the generator regresses onto its own output, moved along the field in an encoder's feature space."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from driftkit.drift import drift_loss
from driftkit.drift.sampler import generate_one_step
from driftkit.encoders.cache import FeatureCache
from driftkit.encoders.features import FeatureGroup, feature_set, field_calls
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import DriftkitError, NonFiniteError
from driftkit.protocols import Batch, Execution, StepLoss
from driftkit.runtime.distributed import Ranks
from driftkit.runtime.random import image_noise, seed_global_generators


class DriftingConfig(BaseModel):
    """The drifting objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["drift"] = "drift"
    encoder: str = Field(
        "dinov2-multires", description="row of the encoder table, timm:MODEL, or the folder of a MAE run"
    )
    taps: tuple[str, ...] | None = Field(
        None, min_length=1, description="layers whose maps are used, for example block6; None: those of the table"
    )
    encoder_weights: str | None = Field(None, description="local file of encoder weights; None: cache, then hub")
    random_weights: bool = Field(False, description="leave the encoder untrained (shapes, speed and tests only)")
    input_size: int | None = Field(None, ge=8, description="side in pixels the encoder sees; None: its own")
    feature_set: str | None = Field(
        None, description="multires, paper, last, global or locations; None: the encoder's own"
    )
    cache_features: bool = Field(
        False, description="compute the features of real images once and map them from disk, in bfloat16"
    )
    taus: tuple[float, ...] = Field((0.02, 0.05, 0.2), min_length=1, description="temperatures over the mean distance")
    scale_over: Literal["map", "location"] = Field("location", description="who shares feature and drift scales")
    affinity_floor: float = Field(
        0.0, ge=0, lt=1, description="lower bound of the affinities; the authors' release: 1e-3"
    )


class Drifting:
    """Loss of a one-step generator in the feature space of a frozen encoder.

    Generated and real features of all ranks are gathered, so that the field sees the global batch.

    Source: arXiv 2602.04770, Algorithm 1 and Appendix A.5, A.6. Differs: unconditional, one real image per generated.
    """

    def __init__(
        self, config: DriftingConfig, encoder: FrozenEncoder, *, ranks: Ranks, cache: FeatureCache | None = None
    ):
        self.config = config
        self.cache = cache
        self.encoder = encoder
        self.ranks = ranks
        self.features = feature_set(config.feature_set or encoder.feature_set)

    def accumulate(self, model: nn.Module, batch: Batch, how: Execution) -> StepLoss:
        """Gradient of the field of the whole batch, whatever the chunks.

        With several chunks the features are first made without a graph; once the field has given their gradient,
        every chunk is generated again, with the same dropout, and takes its share of it. Averaging the losses of
        chunks, each with its own field, would be another and worse method. Dropout draws per chunk, so that another
        chunk size is another, equally valid, draw of its masks. torch's global generators are seeded here.
        """
        chunks = how.chunks(len(batch.slots))
        noise = image_noise(batch.seed, "prior", batch.slots, batch.images.shape[1:], step=batch.step).to(batch.images)
        how.clock.mark("data")
        positives = self._positives(batch, how)
        if len(chunks) == 1:
            parts = [self._generate(model, noise, chunks[0], batch, how)]
        else:
            with torch.no_grad():
                parts = [self._generate(model, noise, which, batch, how).detached() for which in chunks]
        outcome, gradients = self._field(_joined([p.groups for p in parts]), positives, step=batch.step)
        how.clock.mark("field")
        for which in chunks:
            part = parts[0] if len(chunks) == 1 else self._generate(model, noise, which, batch, how)
            if part.images.requires_grad:
                part.images.register_hook(lambda _: how.clock.mark("encoder"))
            torch.autograd.backward([g.values for g in part.groups], [gradients[g.name][:, which] for g in part.groups])
            how.clock.mark("generator")
        return outcome

    def _generate(
        self, model: nn.Module, noise: torch.Tensor, which: slice, batch: Batch, how: Execution
    ) -> "_Generated":
        seed_global_generators(batch.seed, batch.step, self.ranks.rank, which.start)  # the same dropout each time
        with how.autocast():
            images = generate_one_step(model, noise[which])
            how.clock.mark("generator")
            groups = self._features(images)
            how.clock.mark("encoder")
        return _Generated(images, groups)

    def _positives(self, batch: Batch, how: Execution) -> list[FeatureGroup]:
        if self.cache is not None:
            assert batch.indices is not None
            assert batch.flips is not None
            groups = self.cache.groups(batch.indices, batch.flips, device=batch.images.device)
            how.clock.mark("data")
            return groups
        with torch.no_grad(), how.autocast():
            groups = _joined([self._features(batch.images[which]) for which in how.chunks(len(batch.slots))])
        how.clock.mark("encoder")
        return groups

    def _field(
        self, generated: list[FeatureGroup], positives: list[FeatureGroup], *, step: int
    ) -> tuple[StepLoss, dict[str, torch.Tensor]]:
        """The loss, and its gradient at every group's features [L, N, C], by name."""
        terms: dict[str, torch.Tensor] = {}
        norms: dict[str, list[torch.Tensor]] = {}
        gradients: dict[str, torch.Tensor] = {}
        spreads = []
        for gen, pos in zip(field_calls(generated), field_calls(positives), strict=True):
            x, y_pos = gen.values().detach().requires_grad_(), pos.values()
            membership = gen.membership(x.device)
            try:
                result = drift_loss(
                    x,
                    y_pos,
                    taus=self.config.taus,
                    scale_over=membership if self.config.scale_over == "map" else "location",
                    affinity_floor=self.config.affinity_floor,
                    ranks=self.ranks,
                )
            except NonFiniteError as error:
                named = sorted({gen.groups[int(membership[field])].name for field in error.fields})
                raise DriftkitError(
                    f"features are not finite at step {step}: {', '.join(named)}; nothing was updated"
                ) from None
            spreads.append(_spread(x.detach()) / _spread(y_pos).clamp(min=1e-12))
            sizes = [group.values.shape[0] for group in gen.groups]
            losses, drift_norms = result.per_field.split(sizes), result.drift_norm.split(sizes)
            for group, loss, norm in zip(gen.groups, losses, drift_norms, strict=True):
                terms[group.name] = loss.mean()
                norms.setdefault(group.map, []).append(norm.mean())
            torch.stack([terms[group.name] for group in gen.groups]).sum().backward()
            assert x.grad is not None
            gradients |= {g.name: grad for g, grad in zip(gen.groups, x.grad.split(sizes), strict=True)}
        terms = {name: term.detach() for name, term in terms.items()}
        health = {f"drift_norm/{name}": torch.stack(values).mean() for name, values in norms.items()}
        health = {"drift_norm": torch.stack(list(health.values())).mean(), **health}
        health["spread"] = self.ranks.mean(torch.cat(spreads).mean())
        return StepLoss(torch.stack(list(terms.values())).sum(), terms, health), gradients

    def _features(self, images: torch.Tensor) -> list[FeatureGroup]:
        return self.features(self.encoder.maps(images), images)

    def measure(self, model: nn.Module) -> dict[str, float]:
        return {}

    def preview(self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return generate_one_step(model, noise)


@dataclass(frozen=True)
class _Generated:
    """Generated images of one chunk and their features."""

    images: torch.Tensor
    groups: list[FeatureGroup]

    def detached(self) -> "_Generated":
        """Without the images, which are not needed to compute the field."""
        return _Generated(self.images[:0], self.groups)


def _joined(parts: list[list[FeatureGroup]]) -> list[FeatureGroup]:
    """The groups of consecutive chunks of images as those of all of them."""
    if len(parts) == 1:
        return parts[0]
    return [
        FeatureGroup(same[0].map, same[0].kind, torch.cat([group.values for group in same], dim=1))
        for same in zip(*parts, strict=True)
    ]


def _spread(features: torch.Tensor) -> torch.Tensor:
    """Root mean square distance to the mean, per field: [G, N, C] -> [G]."""
    return features.var(dim=1, unbiased=False).mean(dim=-1).sqrt()
