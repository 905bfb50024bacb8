"""Drifting: the generator regresses onto its own output, moved along the field in an encoder's feature space."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from driftkit.drift import drift_loss
from driftkit.drift.sampler import generate_one_step
from driftkit.encoders.features import FieldCall, feature_set, field_calls
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import DriftkitError, NonFiniteError
from driftkit.protocols import Batch, StepLoss
from driftkit.runtime.distributed import Ranks
from driftkit.runtime.random import image_noise


class DriftingConfig(BaseModel):
    """The drifting objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["drift"] = "drift"
    encoder: str = Field("dinov2-multires", description="row of the encoder table, or the folder of a MAE run")
    encoder_weights: str | None = Field(None, description="local file of encoder weights; None: cache, then hub")
    random_weights: bool = Field(False, description="leave the encoder untrained (shapes, speed and tests only)")
    input_size: int | None = Field(None, ge=8, description="side in pixels the encoder sees; None: its own")
    feature_set: str | None = Field(None, description="multires, paper or locations; None: the encoder's own")
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

    def __init__(self, config: DriftingConfig, encoder: FrozenEncoder, *, ranks: Ranks):
        self.config = config
        self.encoder = encoder
        self.ranks = ranks
        self.features = feature_set(config.feature_set or encoder.feature_set)

    def loss(self, model: nn.Module, batch: Batch) -> StepLoss:
        shape = batch.images.shape[1:]
        noise = image_noise(batch.seed, "prior", batch.slots, shape, step=batch.step).to(batch.images)
        generated = generate_one_step(model, noise)
        with torch.no_grad():
            positive_calls = self._features(batch.images)
        terms: dict[str, torch.Tensor] = {}
        norms: dict[str, list[torch.Tensor]] = {}
        spreads = []
        total = noise.new_zeros((), dtype=torch.float32)
        for gen, pos in zip(self._features(generated), positive_calls, strict=True):
            x, y_pos = gen.values(), pos.values()
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
                    f"features are not finite at step {batch.step}: {', '.join(named)}; nothing was updated"
                ) from None
            spreads.append(_spread(x.detach()) / _spread(y_pos).clamp(min=1e-12))
            for number, group in enumerate(gen.groups):
                members = membership == number
                term = result.per_field[members].mean()
                total = total + term
                terms[group.name] = term.detach()
                norms.setdefault(group.map, []).append(result.drift_norm[members].mean())
        health = {f"drift_norm/{name}": torch.stack(values).mean() for name, values in norms.items()}
        health = {"drift_norm": torch.stack(list(health.values())).mean(), **health}
        health["spread"] = self.ranks.mean(torch.cat(spreads).mean())
        return StepLoss(total, terms, health)

    def _features(self, images: torch.Tensor) -> list[FieldCall]:
        return field_calls(self.features(self.encoder.maps(images), images))

    def preview(self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return generate_one_step(model, noise)


def _spread(features: torch.Tensor) -> torch.Tensor:
    """Root mean square distance to the mean, per field: [G, N, C] -> [G]."""
    return features.var(dim=1, unbiased=False).mean(dim=-1).sqrt()
