"""Records: what driftkit writes as JSON, as pydantic models. A reader gets an object or one clear error.

A record names its `kind` and `format_version`. Keys that it does not know are ignored when it is read, so that a later
minor version may add some; another `format_version` is refused.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from driftkit.config.layers import first_problem
from driftkit.errors import ArtifactError
from driftkit.storage.files import read_json, write_json

MAX_COUNT = 2**63 - 1


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    kind: ClassVar[str]  # what the record is of, for example "evaluation"
    format_version: ClassVar[int] = 1  # of its fields; it rises when a reader of the version before would misread it

    def document(self) -> dict[str, Any]:
        """The record as JSON data."""
        return {"kind": self.kind, "format_version": self.format_version, **self.model_dump(mode="json")}

    def write(self, path: Path) -> None:
        """Write the record whole or not at all."""
        write_json(path, self.document())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file.

        Raises:
            NotFoundError: there is none.
            ArtifactError: no JSON, a record of another kind or format, or a field that does not fit.
        """
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, document: dict[str, Any], path: Path) -> Self:
        """The record in JSON data that was read from `path`; raises as `read`."""
        if document.get("kind") != cls.kind:
            raise ArtifactError(f"{path}: expected a record of kind {cls.kind}, got {document.get('kind')!r:.80}")
        if document.get("format_version") != cls.format_version:
            got = document.get("format_version")
            raise ArtifactError(f"{path}: has format version {got!r:.80}, this driftkit reads {cls.format_version}")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ArtifactError(f"{path}: {first_problem(error)}") from None


class ClassCount(BaseModel):
    """A class that a generator is conditioned on; labels are in the order of the classes."""

    name: str
    images: int = Field(ge=1, description="training images of this class")


class WeightsOrigin(BaseModel):
    """What weights come from: the run that trained them, and what it cost, with all that it was initialised from."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    path: str = Field(description="of the run folder, or of an exported file")
    weights: str = Field(description="their name in the run")
    digest: str = Field(description="of their names, shapes and values")
    step: int | None = Field(None, ge=0, le=MAX_COUNT)
    run: str | None = Field(None, description="id of the run")
    method: str | None = None
    model: dict[str, Any] | None = Field(None, description="config of the network")
    classes: tuple[str, ...] | None = Field(None, description="that it knows, in the order of labels; None: unknown")
    autoencoder: str | None = Field(
        None, description="digest of the autoencoder whose latents it works on, or pixels; None: unknown"
    )
    steps: int | None = Field(None, ge=0, le=MAX_COUNT, description="of training, those of earlier origins included")
    images_seen: int | None = Field(None, ge=0, le=MAX_COUNT)
    train_seconds: float | None = Field(None, ge=0)
    training_encoders: list[dict[str, Any] | None] = Field(
        [], description="lineage of every encoder that taught them; None for one that nobody knows"
    )
    lineage: dict[str, Any] | None = Field(None, description="images and labels that trained them")


class Clustering(BaseModel):
    """Where classes come from that are clusters of what an encoder sees in images."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    encoder: str = Field(description="its name, with its settings")
    lineage: dict[str, Any] = Field(description="what its features come from")
    images: str | None = Field(None, description="sha256 of the pack that has the same images with other labels")

    def of_changed_images(self) -> "Clustering":
        """The same where images are fewer, or resized."""
        return self.model_copy(update={"images": None})


class RunManifest(Record):
    """What a run folder holds, and how far its training is. The config's classes are those of `training`."""

    kind: ClassVar[str] = "run"

    id: str = Field(description="drawn at random; checkpoints name it")
    config: dict[str, Any] = Field(description="resolved config as JSON data")
    origins: dict[str, str] = Field({}, description="dotted config key -> where its value came from")
    inputs: dict[str, dict[str, Any]] = Field({}, description="what the run reads, each with spec, digest and count")
    versions: dict[str, str] = Field({}, description="of driftkit, Python and packages that decide the numbers")
    created: str
    updated: str | None = None
    state: str = Field("created", description="created, running, interrupted, failed or done")
    failure: str | None = Field(None, description="the error that ended a failed training")
    step: int = Field(0, ge=0, le=MAX_COUNT, description="of the last checkpoint")
    images_seen: int = Field(0, ge=0, le=MAX_COUNT)
    train_seconds: float = Field(0.0, ge=0)
    parameters: int | None = Field(None, le=MAX_COUNT, description="trained numbers of the network")
    initialised_from: WeightsOrigin | None = Field(None, description="None: random weights")
    classes: tuple[ClassCount, ...] = Field((), description="of a class-conditional generator, in the order of labels")
    label_names: tuple[str, ...] = Field((), description="classes of an encoder's head, in the order of its logits")
    encoder: dict[str, Any] | None = Field(None, description="the training encoder, as `describe` gives it")
    clusters: Clustering | None = Field(None, description="of the training images; None: their labels are their own")
    global_batch: int | None = Field(None, description="images that all processes see per step")
    world_size: int | None = None
    device: str | None = None
    precision: str | None = None
    peak_memory_gib: float | None = None
    compilation: dict[str, Any] | None = None
    collapse: dict[str, Any] | None = Field(None, description="the last episode of collapsed features")
    scored_on_the_way: dict[str, Any] | None = Field(None, description="kinship of the evaluator during training")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for key, value in (("encoder.name", (self.encoder or {}).get("name")), ("inputs.data.digest", self._digest)):
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{key}: expected a text, got {value!r:.80}")
        return self

    @property
    def _digest(self) -> Any:
        return self.inputs.get("data", {}).get("digest")

    @property
    def data_digest(self) -> str | None:
        """Digest of the training images."""
        digest: str | None = self._digest
        return digest

    @property
    def image_digest(self) -> str | None:
        """The same for all packs of the same images, whose classes may be their labels or clusters."""
        return (self.clusters and self.clusters.images) or self.data_digest

    @property
    def label_encoder(self) -> dict[str, Any] | None:
        """Lineage of the encoder that made the classes which the network learns."""
        learns = bool(self.classes or self.label_names)
        return self.clusters.lineage if self.clusters is not None and learns else None


class CheckpointState(Record):
    """What resuming needs besides tensors; all random draws follow from the seed and the step."""

    kind: ClassVar[str] = "checkpoint"

    step: int = Field(ge=0)
    images_seen: int = Field(0, ge=0)
    train_seconds: float = Field(0.0, ge=0)
    run: str | None = Field(None, description="id of the run")
    collapse: dict[str, Any] = Field({}, description="what is known of collapsed features")


class SampleRecord(Record):
    """How a set of generated images came about, and the checksum of its file."""

    kind: ClassVar[str] = "samples"

    num_images: int = Field(ge=1)
    image_size: int | None = Field(None, ge=1, description="side in pixels")
    method: str | None = None
    sampler: str | None = None
    nfe: int | None = Field(None, description="network evaluations per image")
    sampler_options: dict[str, Any] = {}
    classes: tuple[str, ...] = Field((), description="of a class-conditional run, in the order of labels")
    asked_classes: tuple[str, ...] | None = Field(
        None, description="that the images have in turn, or all; None: the proportions of the training images"
    )
    guidance: float | None = Field(None, description="scale, 1 for none; None for an unconditional run")
    seed: int | None = None
    weights: str | None = Field(None, description="ema, ema-0.9995, raw, average:3, ...")
    step: int | None = None
    run: str | None = Field(None, description="path of the run folder")
    data: str | None = Field(None, description="spec of the training images")
    encoder: str | None = Field(None, description="name of the training encoder")
    precision: str | None = Field(None, description="number format of the network")
    format: Literal["safetensors", "png", "npz", "zip"] = "safetensors"
    request: dict[str, Any] = Field({}, description="settings that decide the images")
    sha256: str = Field(description="of the file; of a folder, of the checksums and names of its files in lines")
    bytes: int = Field(description="size of the file, or of the files of the folder together")


ProblemKind = Literal["damaged", "missing", "swapped", "future"]
NoteKind = Literal["unfinished", "leftover", "in use", "unknown"]


class Problem(BaseModel):
    """A file that must not be used as it is: what is wrong with it, and one thing to do about it."""

    path: str
    kind: ProblemKind
    problem: str
    fix: str


class VerificationNote(BaseModel):
    """Something to know of a file that may be used, or that driftkit does not know."""

    path: str
    kind: NoteKind
    note: str


class Verification(Record):
    """The result of `driftkit verify`."""

    kind: ClassVar[str] = "verification"

    ok: bool
    checked: dict[str, int]  # number of products by kind (checkpoint, pack, ...) that are as they were written
    bytes: int  # of the files whose content was compared with a checksum
    problems: list[Problem]
    notes: list[VerificationNote]
