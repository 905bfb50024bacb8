"""What `probe-encoder` writes and prints as JSON: every number of a probed encoder."""

from dataclasses import dataclass
from typing import ClassVar

from driftkit.encoders.encoder_config import EncoderCard
from driftkit.storage.records import Record


@dataclass(frozen=True)
class MapShape:
    """One feature map of one image, or the image itself where the feature set has vectors of it."""

    name: str
    channels: int
    height: int
    width: int
    vectors: int  # that the feature set makes of it


@dataclass(frozen=True)
class FieldCallCost:
    """One batched field: C channels, the number of fields, and the cost of its matrix products per step."""

    channels: int
    vectors: int
    gflop: float


@dataclass(frozen=True)
class FieldMemory:
    """Bytes that the global batch takes besides the networks, estimated from shapes."""

    batch_size: int  # N generated and P = N real images, on all ranks together
    features_bytes: int  # float32 features of the generated and the real images, held through the step
    field_chunk_bytes: dict[str, int]  # device type -> workspace of the fields that are computed at a time


@dataclass(frozen=True)
class EncoderSpeed:
    """Images per second at one input size; the numbers are None where `skipped` says why."""

    input_size: int  # side in pixels
    batch_size: int  # images at a time
    forward_per_s: float | None = None  # images per second
    forward_backward_per_s: float | None = None
    peak_gib: float | None = None  # most memory of the process (CPU) or of the allocator (CUDA) at `batch_size` images
    skipped: str | None = None


@dataclass(frozen=True)
class ProbeData:
    """The images that were measured on; `classes` is None where they are unlabelled."""

    spec: str
    label: str
    digest: str
    image_size: int
    num_images: int
    classes: int | None


@dataclass(frozen=True)
class ProbeSetup:
    """How they were measured; `skipped` are measurements that the images do not allow, with the reason."""

    batch_size: int
    taus: list[float]
    seed: int
    device: str
    skipped: list[str]


@dataclass(frozen=True)
class KernelMeasurement:
    """The kernel at one temperature between real images."""

    tau: float
    perplexity: float  # over how many points a row of the softmax spreads
    fraction: float  # that over their number
    logit_spread: float  # standard deviation of the logits in a row
    floor: float  # norm of V before it is normalized when both sides are real: mean
    floor_sd: float  # and standard deviation
    floor_signal: float  # share of its power that repeats in other batches, which should be near 0


@dataclass(frozen=True)
class Separation:
    """Corrupted images against real ones, one value per temperature."""

    ratio: list[float]  # norm of V over the floor; 1 means that the field does not detect the corruption
    z: list[float]  # how many standard deviations of the floor it is above the floor
    # share of V's power that repeats in other batches, less that of real images: what training can follow
    signal: list[float]


@dataclass(frozen=True)
class GroupMeasurement:
    """One feature group: values are means over its vectors."""

    name: str
    map: str
    kind: str
    vectors: int
    channels: int
    distance_concentration: float  # standard deviation over mean of the distances between real images
    purity: float | None  # share of the 10 nearest neighbours with the same class; None where unlabelled
    effective_rank: float  # see `feature_statistics`
    participation_ratio: float  # see there
    kernel: list[KernelMeasurement]  # per temperature
    sensitivity: dict[str, float]  # relative change of the features over that of the pixels, by corruption
    separation: dict[str, Separation]  # by corruption


@dataclass(frozen=True)
class EncoderMeasurement:
    """All groups together."""

    groups: list[GroupMeasurement]  # one by one
    # class purity of every map's global vector, brought to one scale and joined; None where unlabelled
    purity: float | None
    pixel_alignment: dict[str, float]  # corruption -> cosine of the step in pixels with the step that undoes it
    repeats: int  # batches behind each mean


@dataclass(frozen=True)
class Detectability:
    """How well one corruption is detected, in shares of the drift that training can follow."""

    best: float  # largest over groups, each at its best temperature
    mean: float  # its mean over groups, which have equal parts in the loss
    group: str  # where it is largest
    # geometric mean of both, since one group in thirty that detects it pulls against the noise of the rest
    strength: float


@dataclass(frozen=True)
class Verdict:
    """What the measurement means for training."""

    word: str  # good, usable or poor; at most usable where the weights were never trained
    score: float  # see `verdict.score`
    reasons: list[str]  # one line each
    detectability: dict[str, Detectability]  # by corruption
    groups: dict[str, str]  # name -> a few words
    taus: list[float]  # recommended settings, as the next two
    taps: list[str]
    input_size: int


class ProbeRecord(Record):
    """A probed encoder, or several together.

    `data` to `verdict` are there where it was measured on images, `speed` where it was timed.
    """

    kind: ClassVar[str] = "probe"

    encoder: str
    model: str | None = None  # its name in timm
    trained_by: str | None = None
    licence: str | None = None
    parameters: int
    input_size: int
    resize: str
    map_norm: str
    feature_set: str
    weights: str  # digest of the weights
    maps: list[MapShape]
    field_calls: list[FieldCallCost]
    memory: FieldMemory
    data: ProbeData | None = None
    setup: ProbeSetup | None = None
    measurement: EncoderMeasurement | None = None
    chance_purity: float | None = None  # class purity of features that know nothing; None where unlabelled
    verdict: Verdict | None = None
    speed: list[EncoderSpeed] | None = None
    files: list[str] | None = None
    parts: list["ProbeRecord"] | None = None  # of each encoder, where several were probed; the rest is of all together


@dataclass(frozen=True)
class FeatureSetCard:
    """A feature set: its name, and one sentence."""

    name: str
    help: str


class EncoderList(Record):
    """What `probe-encoder --list` shows."""

    kind: ClassVar[str] = "encoders"

    encoders: list[EncoderCard]
    feature_sets: list[FeatureSetCard]
