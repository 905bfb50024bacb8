"""The numbers of a probed encoder, as they stand in JSON. How they come about stands in `kernel_probe`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class KernelMeasurement:
    """What the kernel does at one temperature between real images.

    Attributes:
        perplexity, fraction: over how many points a row of the softmax spreads, and that over their number.
        logit_spread: standard deviation of the logits in a row.
        floor, floor_sd: norm of V before it is normalised when both sides are real: mean and standard deviation.
        floor_signal: share of its power that other batches repeat, which should be near 0.
    """

    tau: float
    perplexity: float
    fraction: float
    logit_spread: float
    floor: float
    floor_sd: float
    floor_signal: float


@dataclass(frozen=True)
class Separation:
    """Wrong images against real ones, one value per temperature.

    Attributes:
        ratio: norm of V over the floor; 1 means that the field does not see it.
        z: how many standard deviations of the floor it lies above the floor.
        signal: share of V's power that other batches repeat, less that of real images: what training can follow.
    """

    ratio: list[float]
    z: list[float]
    signal: list[float]


@dataclass(frozen=True)
class GroupMeasurement:
    """One feature group: values are means over its vectors.

    Attributes:
        name, map, kind, vectors, channels: as the feature set made it.
        distance_concentration: standard deviation over mean of the distances between real images.
        purity: share of the 10 nearest neighbours with the same class; None where unlabelled.
        effective_rank, participation_ratio: see `feature_statistics`.
        kernel: per temperature.
        sensitivity: relative change of the features over relative change of the pixels, by corruption.
        separation: by corruption.
    """

    name: str
    map: str
    kind: str
    vectors: int
    channels: int
    distance_concentration: float
    purity: float | None
    effective_rank: float
    participation_ratio: float
    kernel: list[KernelMeasurement]
    sensitivity: dict[str, float] = field(default_factory=dict)
    separation: dict[str, Separation] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderMeasurement:
    """All groups together.

    Attributes:
        groups: one by one.
        purity: class purity of every map's global vector, brought to one scale and joined; None where unlabelled.
        restoration: fault -> cosine of the step in pixels with the step that mends it.
        repeats: batches behind each mean.
    """

    groups: list[GroupMeasurement]
    purity: float | None
    restoration: dict[str, float]
    repeats: int
