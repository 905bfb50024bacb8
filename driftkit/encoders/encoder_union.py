"""The encoders of a run as one: their feature groups one after another, computed or cached.

Several encoders are several terms of one loss. The maps of each have its short name before theirs; vectors of the image
itself, which feature sets add, are there once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from driftkit.encoders.encoder_config import EncoderConfig, EncodersConfig, short_encoder_names
from driftkit.encoders.feature_cache import FeatureCache
from driftkit.encoders.feature_sets import INPUT, FeatureGroup, FeatureSet, feature_set
from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.encoders.lineage import PIXEL_TERM
from driftkit.errors import UsageError
from driftkit.protocols import FeatureMap
from driftkit.storage.files import digest_json, state_digest


@dataclass(frozen=True)
class UnionMember:
    """One of the encoders."""

    encoder: FrozenEncoder
    features: FeatureSet
    label: str  # stands before the names of its maps; empty where it is the only encoder
    cache: FeatureCache | None = None  # of the features of real images

    @property
    def content(self) -> str:
        """Digest of its weights. The seed of random ones does not tell how this version of timm draws them."""
        encoder = self.encoder
        return state_digest(encoder.state_dict()) if encoder.random_weights else encoder.weights_digest

    def record(self) -> dict[str, Any]:
        """What the manifest says of it."""
        encoder = self.encoder
        lineages = [encoder.lineage, *([PIXEL_TERM] if self.features.has_pixels else [])]  # of all the loss sees
        return {
            "name": encoder.name,
            "parameters": encoder.num_parameters,
            **encoder.describe(),
            "feature_set": self.features.name,
            "random_weights": encoder.random_weights,
            "weights_digest": encoder.weights_digest,
            "lineage": [lineage.describe() for lineage in lineages],
        }


class EncoderUnion:
    """The encoders of a run, in the order of their terms."""

    def __init__(self, members: Sequence[UnionMember]):
        self.members = tuple(members)

    @classmethod
    def of(
        cls, encoder: FrozenEncoder, features: str | None = None, cache: FeatureCache | None = None
    ) -> "EncoderUnion":
        """A single encoder; its own feature set unless another is named."""
        return cls([UnionMember(encoder, feature_set(features or encoder.feature_set), "", cache)])

    @classmethod
    def load(cls, config: EncodersConfig, load: Callable[[EncoderConfig], FrozenEncoder]) -> "EncoderUnion":
        """All encoders of a config, each by `load`. Raises UsageError for an unknown feature set, and as `load`."""
        configs = config.each()
        labels = short_encoder_names([one.encoder for one in configs]) if len(configs) > 1 else ("",)
        members = []
        for one, label in zip(configs, labels, strict=True):
            encoder = load(one)
            members.append(UnionMember(encoder, feature_set(one.feature_set or encoder.feature_set), label))
        return cls(members)

    def require_different(self) -> None:
        """Refuse (UsageError) one encoder under two names, whose terms would count twice."""
        seen: dict[str, str] = {}
        for member in self.members:
            key = digest_json([member.content, member.encoder.describe(), member.features.name])
            if key in seen:
                raise UsageError(
                    f"`encoder` {seen[key]} and {member.encoder.name} are the same encoder with the same settings; "
                    "give it once"
                )
            seen[key] = member.encoder.name

    def with_caches(self, open_one: Callable[[UnionMember], FeatureCache]) -> "EncoderUnion":
        """The same with a cache of each."""
        return EncoderUnion([replace(member, cache=open_one(member)) for member in self.members])

    @property
    def encoders(self) -> tuple[FrozenEncoder, ...]:
        return tuple(member.encoder for member in self.members)

    @property
    def name(self) -> str:
        """That of the encoder, or all short names."""
        return self.encoders[0].name if len(self.members) == 1 else "+".join(member.label for member in self.members)

    @property
    def feature_set(self) -> str:
        """The names of the feature sets."""
        return "+".join(dict.fromkeys(member.features.name for member in self.members))

    @property
    def weights_digest(self) -> str:
        digests = [encoder.weights_digest for encoder in self.encoders]
        return digests[0] if len(digests) == 1 else digest_json(digests)

    @property
    def num_parameters(self) -> int:
        return sum(encoder.num_parameters for encoder in self.encoders)

    @property
    def random_weights(self) -> bool:
        """Whether one of them was never trained."""
        return any(encoder.random_weights for encoder in self.encoders)

    @property
    def input_size(self) -> int:
        """Side in pixels of the largest input."""
        return max(encoder.input_size for encoder in self.encoders)

    @property
    def device(self) -> torch.device:
        tensors = [t for encoder in self.encoders for t in (*encoder.parameters(), *encoder.buffers())]
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def is_cached(self) -> bool:
        """Whether the features of real images come from `cached`."""
        return all(member.cache is not None for member in self.members)

    def groups(self, images: torch.Tensor) -> list[FeatureGroup]:
        """Feature groups of float images [N, 3, H, W] in [-1, 1], with gradient to them."""
        return self.maps_and_groups(images)[1]

    def cached(self, indices: torch.Tensor, flips: torch.Tensor, *, device: torch.device) -> list[FeatureGroup]:
        """The same groups of images of the pack; see `FeatureCache.groups`."""
        groups = []
        for member in self.members:
            assert member.cache is not None
            groups.append(member.cache.groups(indices, flips, device=device))
        return self._joined(groups)

    def maps_and_groups(self, images: torch.Tensor) -> tuple[list[FeatureMap], list[FeatureGroup]]:
        """Feature maps, and `groups`, of the same images."""
        maps, groups = [], []
        for member in self.members:
            own = member.encoder.maps(images)
            maps += [FeatureMap(_labelled(member.label, each.name), each.values) for each in own]
            groups.append(member.features(own, images))
        return maps, self._joined(groups)

    def _joined(self, groups: Sequence[list[FeatureGroup]]) -> list[FeatureGroup]:
        """The groups of all members; of equal groups of the image itself, the first."""
        joined: dict[str, FeatureGroup] = {}
        for member, own in zip(self.members, groups, strict=True):
            for group in own:
                name = group.map if group.map == INPUT else _labelled(member.label, group.map)
                named = FeatureGroup(name, group.kind, group.values)
                joined.setdefault(named.name, named)
        return list(joined.values())

    def record(self) -> dict[str, Any]:
        """What the manifest says: of a single encoder its record, of several what they are together, and `parts`."""
        parts = [member.record() for member in self.members]
        if len(parts) == 1:
            return parts[0]
        lineage: list[Any] = []
        for entry in (entry for part in parts for entry in part["lineage"]):
            lineage += [] if entry in lineage else [entry]
        return {
            "name": self.name,
            "parameters": self.num_parameters,
            "feature_set": self.feature_set,
            "random_weights": self.random_weights,
            "weights_digest": self.weights_digest,
            "lineage": lineage,
            "parts": [{"label": member.label, **part} for member, part in zip(self.members, parts, strict=True)],
        }


def _labelled(label: str, name: str) -> str:
    return f"{label}/{name}" if label else name
