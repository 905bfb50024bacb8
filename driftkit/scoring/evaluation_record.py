"""The records of scoring: one evaluation, a summary of repeats, and a curve of score against step."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from driftkit import __version__
from driftkit.encoders.lineage import Kinship, Lineage
from driftkit.errors import ArtifactError
from driftkit.metrics.memorization import Memorization
from driftkit.metrics.per_class import ClassScores
from driftkit.metrics.registry import REQUIRED, Floor
from driftkit.storage.records import Record
from driftkit.storage.run_folder import Run, now
from driftkit.training.conditions import conditions_file_label, conditions_label


class Info(BaseModel):
    """Base of the parts of a record."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ExtractorInfo(Info):
    """The network whose features were compared; see `extraction.Extractor`."""

    name: str
    version: str
    weights_digest: str
    resize: str
    precision: str
    dim: int
    lineage: Lineage | None = None

    @property
    def label(self) -> str:
        """In file names: its name, and the beginning of its weights' digest."""
        return file_label(f"{self.name}-{self.weights_digest[:8]}")


class ReferenceInfo(Info):
    """The real images. Count and size are None where a file of statistics of another program was given."""

    spec: str
    digest: str
    count: int | None
    image_size: int | None
    is_training_data: bool = False


class SamplingInfo(Info):
    """How a run was sampled, as `SampleRecord` says it; None for what is not recorded."""

    method: str | None = None
    encoder: str | None = None
    sampler: str | None = None
    nfe: int | None = None
    options: Mapping[str, int | float | str | bool | None] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    asked_classes: tuple[str, ...] | None = None
    guidance: float | None = None
    weights: str | None = None
    step: int | None = None
    seed: int | None = None
    precision: str | None = None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "SamplingInfo":
        """What a record of samples says."""
        return cls.model_validate({**info, "options": info.get("sampler_options") or {}})

    @property
    def label(self) -> str | None:
        """The sampler with its options, what was asked of it, and the number format where it is not float32: for
        example "ddim eta=1.0 guidance=2 bfloat16".
        """
        options = (f"{key}={value}" for key, value in sorted(self.options.items()))
        asked = conditions_label(self.asked_classes, self.guidance)
        number_format = "" if self.precision in (None, "float32") else f" {self.precision}"
        return None if self.sampler is None else " ".join([self.sampler, *options]) + asked + number_format

    @property
    def is_plain(self) -> bool:
        """Whether nothing was asked of the sampler but its NFE."""
        return not self.options and not conditions_label(self.asked_classes, self.guidance)

    @property
    def file_label(self) -> str:
        """For names of evaluations, without step and seed."""
        options = "".join(f"-{key}{value}" for key, value in sorted(self.options.items()))
        asked = conditions_file_label(self.asked_classes, self.guidance)
        return f"{self.sampler}{options}{asked}-{self.nfe}-{self.weights}"


class CompressionInfo(Info):
    """Marks of JPEG: luma steps at the edges of 8x8 blocks over those elsewhere, and files by format."""

    generated: float | None
    reference: float | None
    generated_formats: Mapping[str, int]
    reference_formats: Mapping[str, int]


class AppearanceInfo(Info):
    """Means of a property of generated and of real images, and their 1-Wasserstein distance."""

    generated: float
    real: float
    distance: float


class TrainingInfo(Info):
    """The images among which copies were searched.

    Attributes:
        among: in words, whether they are the training images.
        picture: file next to the evaluation with the nearest pairs.
    """

    among: str
    spec: str
    digest: str
    count: int
    picture: str | None = None


class ScoredRecord(Record):
    """What every record of scores says.

    Attributes:
        name: of the score, for example "fid@50000".
        target: the run, samples file or images that were scored.
        sampling: None for images that no run here made.
        kinship: how near the extractor is to the run's training encoder; None for images without a run.
    """

    driftkit: str = __version__
    created: str = Field(default_factory=now)
    name: str
    num_images: int
    target: str
    run: str | None = None
    sampling: SamplingInfo | None = None
    kinship: Kinship | None = None
    floor: Floor | None = None
    extractor: ExtractorInfo
    reference: ReferenceInfo

    def shared(self) -> dict[str, object]:
        """The fields that all records of one target and extractor share."""
        names = ("name", "num_images", "target", "run", "sampling", "kinship", "floor", "extractor", "reference")
        return {name: getattr(self, name) for name in names}


def _has_required(metrics: Mapping[str, float]) -> Mapping[str, float]:
    if REQUIRED not in metrics:
        raise ValueError(f"there is no {REQUIRED}")
    return metrics


Metrics = Annotated[Mapping[str, float], AfterValidator(_has_required)]
"""Numbers by the keys of `metrics.registry.quantities`, always with `fid`."""


class EvaluationRecord(ScoredRecord):
    """One evaluation.

    Attributes:
        metric_settings: what the numbers depend on, for example subset sizes.
        real_metrics: what real images give in place of numbers that have no floor.
        appearance: property -> how far generated images are from real ones; None where no real images were at hand.
        selection: names of the metrics that were asked for; None: all.
        per_class, memorization: what those metrics gave next to numbers.
        identity: digest of all that the evaluation follows from, for runs.
        seconds_by_part: wall time of images, features, training images and scores.
    """

    kind: ClassVar[str] = "evaluation"

    metrics: Metrics
    selection: Sequence[str] | None = None
    metric_settings: Mapping[str, int] = Field(default_factory=dict)
    real_metrics: Mapping[str, float] = Field(default_factory=dict)
    appearance: Mapping[str, AppearanceInfo] | None = None
    compression: CompressionInfo | None = None
    per_class: ClassScores | None = None
    memorization: Memorization | None = None
    training: TrainingInfo | None = None
    warnings: Sequence[str] = ()
    identity: str | None = None
    device: str = "cpu"
    batch_size: int | None = None
    world_size: int = 1
    seconds: float = 0.0
    seconds_by_part: Mapping[str, float] = Field(default_factory=dict)


class Spread(Info):
    """A number over several seeds: mean, standard deviation of the sample (over n - 1), and all values."""

    mean: float
    sd: float
    values: Sequence[float]


class RepeatsRecord(ScoredRecord):
    """Several evaluations of one target, of disjoint seeds or parts: means, all numbers by key, and their files."""

    kind: ClassVar[str] = "evaluation repeats"

    metrics: Metrics
    seeds: Sequence[int | None]
    spread: Mapping[str, Spread]
    warnings: Sequence[str] = ()
    evaluations: Sequence[str]


class CurvePoint(Info):
    """A checkpoint of a curve; without metrics where its score was refused."""

    step: int
    images_seen: int | None = None
    train_seconds: float | None = None
    metrics: Mapping[str, float] | None = None
    refused: str | None = None
    evaluation: str | None = None


class CurveRecord(ScoredRecord):
    """Scores of all checkpoints of a run."""

    kind: ClassVar[str] = "evaluation curve"

    points: Sequence[CurvePoint]
    figure: str


def read_evaluations(run: Run) -> tuple[list[EvaluationRecord], list[str]]:
    """The evaluations of a run, and one sentence for each file that is none."""
    records, problems = [], []
    for path in run.evaluation_paths():
        try:
            records.append(EvaluationRecord.read(path))
        except ArtifactError as error:
            problems.append(str(error))
    return records, problems


def default_path(target: Path, run: Run | None, record: EvaluationRecord) -> Path:
    """Where an evaluation belongs: in its run, or next to images that no run here made."""
    selection = [] if record.selection is None else ["-".join(record.selection)]
    if run is None or record.sampling is None:
        label = ".".join([record.extractor.label, f"n{record.num_images}", record.reference.digest[:8], *selection])
        named = target if target.name else target.resolve()  # "." has no name
        return named.with_name(f"{named.name.removesuffix('.safetensors')}.{label}.evaluation.json")
    sampling = record.sampling
    parts = (
        record.extractor.label,
        sampling.file_label,
        f"step{sampling.step}",
        f"n{record.num_images}",
        f"seed{sampling.seed}",
        *([] if sampling.precision in (None, "float32") else [sampling.precision]),
        record.reference.digest[:8],
        *selection,
    )
    return run.path / "evaluations" / f"{file_label('-'.join(parts))}.json"


def file_label(words: str) -> str:
    """Words as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words)
