"""What the field of a step costs, on paper: bytes gathered, operations and memory, from shapes alone."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from driftkit.encoders.encoder_config import EncoderConfig
from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import field_calls
from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.encoders.registry import encoder_kind, load_encoder
from driftkit.errors import UsageError
from driftkit.methods.base import Workload
from driftkit.methods.drifting.affinity import Affinity
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.grouping import Groups, read_positives
from driftkit.methods.drifting.precision import MAX_SHARPNESS, WAITS
from driftkit.methods.drifting.workspace import CHUNK_BYTES, KEPT_CHUNKS, field_flops, workspace_bytes
from driftkit.methods.regression import one_forward

FLOAT_BYTES = 4
ASSUMED_CLASSES = 10  # where the config leaves them to the images
LOG_MATRICES = 2  # of pairs, besides the workspace, at temperatures whose kernel would underflow


@dataclass(frozen=True)
class FieldCost:
    """The fields of a step, a `BatchCost`: one per feature vector and group of images."""

    calls: tuple[tuple[int, int], ...]  # (vectors, channels) of every batched field
    by_class: bool = False
    groups: int = 1
    positives: int | None = None  # per group; None: as many as generated
    unconditional: int = 0  # per group
    caches_real: bool = False  # whether the encoder does not see real images
    num_taus: int = 3  # temperatures
    shared: bool = False  # whether fields share their scales, so that V of all of them waits for the last
    wide: bool = False  # whether temperatures are so small that the field takes float64
    chunk_bytes: int | None = None  # size of the workspace; None: that of the device
    chunk_setting: str = "objective.field_chunk_mib"

    def step_images(self, *, images: int) -> dict[str, int]:
        real = self._real(images) - self.unconditional
        counts = {"groups": self.groups, "  generated per group": images // self.groups}
        return {**counts, "  positives per group": real, "  unconditional per group": self.unconditional}

    def advice(self, *, images: int) -> list[str]:
        return self._groups(images).advice(by_class=self.by_class)

    def is_shared_by(self, ranks: int, *, images: int) -> bool:
        if images % self.groups or images < 2 * self.groups:
            return False
        try:
            self._groups(images).share(ranks)
        except UsageError:
            return False
        return True

    def _groups(self, images: int) -> Groups:
        real = self._real(images) - self.unconditional
        return Groups(self.groups, images // self.groups, real, self.unconditional)

    def _field(self, rows: int, images: int) -> tuple[int, int, int]:
        """Of a rank: its groups, its generated images in each, and the images that these are compared with."""
        generated = images // self.groups
        own = max(1, rows * self.groups // images)  # whole groups, or a part of the only one
        return own, rows // own, generated + self._real(images)

    def _real(self, images: int) -> int:
        """Real images per group."""
        return (self.positives or images // self.groups) + self.unconditional

    def encoded_images(self, *, rows: int, images: int) -> int:
        return 0 if self.caches_real else self._real(images) * self.groups * rows // images

    def gathered_bytes(self, *, rows: int, ranks: int) -> int:
        """Float32 features, generated and real, that a rank receives from the others."""
        if self.groups % ranks == 0:
            return 0
        received = (ranks - 1) * (rows + self._real(rows * ranks) // ranks)
        return sum(received * vectors * channels * FLOAT_BYTES for vectors, channels in self.calls)

    def flops(self, *, rows: int, images: int) -> int:
        own, each, others = self._field(rows, images)
        return sum(
            own * vectors * field_flops(num_rows=each, num_columns=others, channels=channels, num_taus=self.num_taus)
            for vectors, channels in self.calls
        )

    def feature_bytes(self, *, rows: int, images: int) -> int:
        """Gathered float32 features of the largest field, and of the next, whose all-gather overlaps with it."""
        own, _, others = self._field(rows, images)
        sizes = sorted(
            (own * vectors * others * channels * FLOAT_BYTES for vectors, channels in self.calls), reverse=True
        )
        return sum(sizes[:2])

    def workspace_bytes(self, *, rows: int, images: int, device: str) -> int:
        """Workspace and V of the largest field, and matrices where it needs logarithms."""
        chunk, wait = self.chunk_bytes or CHUNK_BYTES[device], device in WAITS
        own, each, others = self._field(rows, images)
        return max(
            (
                self._call_bytes((own * vectors, channels), rows=each, columns=others, chunk=chunk, wait=wait)
                for vectors, channels in self.calls
            ),
            default=0,
        )

    def chunk_mib(self, device: str) -> int:
        return (self.chunk_bytes or CHUNK_BYTES[device]) // 2**20

    def _call_bytes(self, call: tuple[int, int], *, rows: int, columns: int, chunk: int, wait: bool) -> int:
        vectors, channels = call
        width = 1 + self.wide
        one = width * workspace_bytes(
            num_rows=rows, num_columns=columns, channels=channels, num_taus=self.num_taus, wait=wait
        )
        at_once = max(1, min(vectors, chunk // one))
        if wait:
            one += width * FLOAT_BYTES * rows * (LOG_MATRICES * columns + channels)
        result = vectors * rows * channels * FLOAT_BYTES
        kept = 0
        if self.shared and at_once < vectors:
            kept = self.num_taus * width * result
            kept = kept if kept <= KEPT_CHUNKS * chunk else width * result
        return at_once * one + result + kept


def drifting_workload(config: DriftingConfig, network: nn.Module, image_size: int) -> Workload:
    """What a step does: generate, encode generated and real images, and compute the field of all.

    Raises:
        ArtifactError: the encoder is a run that is not there yet.
        UsageError: the config names no such encoder.
    """

    def load(one: EncoderConfig) -> FrozenEncoder:
        kind = encoder_kind(one.encoder)
        # Published weights would have to be fetched, and only their shapes matter here.
        published = kind.published(one.encoder) is not None
        without_weights = one.model_copy(update={"encoder_weights": None, "random_weights": published})
        size = kind.image_size(one.encoder) or image_size
        return load_encoder(without_weights, image_size=size, device="meta")

    encoders = EncoderUnion.load(config, load)

    def encode(images: torch.Tensor) -> list[torch.Tensor]:
        return [group.values for group in encoders.groups(images)]

    image = torch.zeros(1, 3, image_size, image_size, device="meta")
    groups = encoders.groups(image)
    if config.vectors_per_group is not None:
        groups = [replace(group, values=group.values[: config.vectors_per_group]) for group in groups]
    calls = tuple((c.vectors, c.channels) for c in field_calls(groups))
    taus = max(config.taus, config.later_taus or (), key=len)
    narrowest = min(*config.taus, *(config.later_taus or ()))
    return Workload(
        one_forward(network),
        encoders=encoders.encoders,
        encode=encode,
        regenerates=True,
        batch=FieldCost(
            calls,
            num_taus=len(taus),
            by_class=config.class_conditional,
            groups=config.groups or (ASSUMED_CLASSES if config.class_conditional else 1),
            positives=read_positives(config.positives)[0],
            unconditional=config.unconditional,
            caches_real=config.cache_features,
            shared=config.scale_over == "map",
            wide=Affinity(config.kernel).sharpness(narrowest) > MAX_SHARPNESS,
            chunk_bytes=config.field_chunk_mib * 2**20 if config.field_chunk_mib else None,
        ),
    )
