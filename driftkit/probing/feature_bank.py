"""Features of many images, of as many vectors of each group as a probe can look at."""

from dataclasses import dataclass

import torch

from driftkit.encoders.features import FeatureGroup, FeatureSet
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import DriftkitError
from driftkit.runtime.progress import Report
from driftkit.runtime.random import generator_for
from driftkit.storage.images import to_float

Bank = dict[str, torch.Tensor]
"""Group name -> its picked vectors, [L, N, C] float32."""

FIELD_VECTORS = 16  # of a group, in the field: a 4x4 grid whole, a drawn part of larger ones
CHUNK_PIXELS = 2**19  # that go through the encoder at a time: its activations stay below a few hundred MB


@dataclass(frozen=True)
class GroupShape:
    """One feature group, and which of its vectors are looked at."""

    name: str
    map: str
    kind: str
    vectors: int
    channels: int
    picks: torch.Tensor  # int64


class EncodedImages:
    """Features of uint8 images, some at a time; which vectors are kept is drawn once, with the first images."""

    def __init__(self, encoder: FrozenEncoder, feature_set: FeatureSet, seed: int, report: Report, *, total: int):
        self.encoder = encoder
        self.feature_set = feature_set
        self.seed = seed
        self.report = report
        self.total = total
        self.groups: dict[str, GroupShape] = {}
        self.chunk = max(2, min(256, CHUNK_PIXELS // encoder.input_size**2))
        buffers = [*encoder.parameters(), *encoder.buffers()]
        self.device = buffers[0].device if buffers else torch.device("cpu")

    def __call__(self, images: torch.Tensor, limit: int = FIELD_VECTORS) -> Bank:
        """The first `limit` picked vectors of uint8 images [N, 3, H, W].

        Raises:
            DriftkitError: features that are not finite.
        """
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self.groups}
        with torch.no_grad():  # not inference mode: `picks` made in it could not take part in a gradient later
            for part in images.split(self.chunk) if len(images) else ():
                inputs = to_float(part).to(self.device)
                for group in self.groups_of(inputs):
                    values = group.values[:limit].float()
                    if not bool(torch.isfinite(values).all()):
                        raise DriftkitError(
                            f"features {group.name} of {self.encoder.name} are not finite on real images; "
                            "expected numbers: its weights are broken, or the input does not fit it"
                        )
                    parts.setdefault(group.name, []).append(values)
                self.report("features", len(part), self.total)
        return {
            name: torch.cat(values, dim=1) if values else torch.empty(min(limit, len(shape.picks)), 0, shape.channels)
            for (name, values), shape in zip(parts.items(), self.groups.values(), strict=True)
        }

    def groups_of(self, inputs: torch.Tensor) -> list[FeatureGroup]:
        """The picked vectors of float images [N, 3, H, W] in [-1, 1], with gradient to them."""
        groups = self.feature_set(self.encoder.maps(inputs), inputs)
        picks = [self._shape(g).picks.to(g.values.device) for g in groups]
        return [FeatureGroup(g.map, g.kind, g.values[p]) for g, p in zip(groups, picks, strict=True)]

    def _shape(self, group: FeatureGroup) -> GroupShape:
        if group.name not in self.groups:
            vectors, _, channels = group.values.shape
            # Drawn, since every so-many-th place of a square map would be one of its columns.
            picks = torch.randperm(vectors, generator=generator_for(self.seed, f"probe-vectors/{group.name}"))
            kept = picks[:FIELD_VECTORS]
            self.groups[group.name] = GroupShape(group.name, group.map, group.kind, vectors, channels, kept)
        return self.groups[group.name]
