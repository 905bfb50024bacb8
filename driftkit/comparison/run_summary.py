"""What a comparison knows of each run: its manifest and its metrics.jsonl in one typed summary."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from driftkit.comparison.formats import format_count, format_seconds, method_label, short_name
from driftkit.config.layers import first_problem, flatten
from driftkit.encoders.encoder_config import joined_name, read_encoder
from driftkit.encoders.lineage import Lineage, lineage_of_run, read_kinship, read_lineage, training_encoders_of
from driftkit.errors import ArtifactError, DriftkitError
from driftkit.methods.registry import METHODS, Curve
from driftkit.metrics.registry import REQUIRED
from driftkit.storage.files import digest_json
from driftkit.storage.records import Clustering, WeightsOrigin
from driftkit.storage.run_folder import Run

MAX_CURVE_POINTS = 300
CLASS_CONDITIONAL = "class-conditional"
# What two runs of one group may differ in: the seed, and settings that change neither the numbers nor their cost.
NOT_COMPARED = ("seed", "trainer.log_every", "trainer.sample_every", "trainer.checkpoint_every", "trainer.keep_every",
                "trainer.measure_every", "trainer.tracker", "trainer.rank_timeout", "data.spec",
                "data.autoencoder", "init_from")  # fmt: skip
COSTS = ("step", "images", "seconds")
MANIFEST_FIELDS = ("images_seen", "train_seconds", "parameters", "peak_memory_gib", "device", "state")

CurvePoint = dict[str, float | None]


@dataclass(frozen=True)
class RunSummary:
    """One run as the comparison shows it. None stands for what its manifest does not record.

    Attributes:
        label: name, made unique among the runs that are compared.
        group: equal for runs that differ in their seed alone.
        kind: method, whether it is class-conditional, encoder and feature set in words.
        signals: last values of the method's training curves, by key.
        scored_by: score, extractor and reference of `evaluation.every`: equal for runs whose curves may be compared.
        curve: at most 300 points of step, images, seconds, score and the keys of the method's training curves.
        config: the resolved config, dotted key -> value.
        training_encoders: what its training signal was computed with; see `lineage.training_encoders_of`.
        lineage: of an encoder, what its features come from.
        origin: what its weights were initialised from; None: random weights.
        autoencoder: digest of the one whose latents it generates; None: it generates images.
    """

    label: str
    path: str
    group: str
    kind: str
    method: str
    encoder: str | None
    feature_set: str | None
    random_weights: bool
    data: str | None
    image_digest: str | None
    image_size: int | None
    steps: int | None
    batch_size: int | None
    images_seen: int | None
    train_seconds: float | None
    parameters: int | None
    peak_memory_gib: float | None
    device: str | None
    state: str
    seed: int | None
    class_conditional: bool = False
    signals: CurvePoint = field(default_factory=dict)
    scored_by: str | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    training_encoders: list[Lineage | None] = field(default_factory=list)
    lineage: Lineage | None = None
    origin: WeightsOrigin | None = None
    clusters: Clustering | None = None
    autoencoder: str | None = None

    @property
    def learned_labels(self) -> bool:
        """Whether labels trained it, or the weights that it was initialised from."""
        before = None if self.origin is None else read_lineage(self.origin.lineage)
        return (self.class_conditional and self.clusters is None) or bool(before and before.labels)

    @property
    def folder(self) -> Run:
        return Run(Path(self.path))

    @property
    def main_curve(self) -> Curve | None:
        """The first training curve of the method that the run has a value of."""
        return next((c for c in curves_of(self.method) if self.signals.get(c.key) is not None), None)

    @property
    def finished(self) -> bool:
        return self.state == "done"

    def cost_at(self, step: int, cost: str) -> float | None:
        """Steps, images or seconds (one of COSTS) after `step` steps, by interpolation between metric records.

        What was spent on the weights that it was initialised from counts; None where that is not known.
        """
        own, before = self._own_cost(step, cost), 0.0
        if self.origin is not None:
            names = {"step": "steps", "images": "images_seen", "seconds": "train_seconds"}
            before = getattr(self.origin, names[cost])
        return None if own is None or before is None else own + before

    def _own_cost(self, step: int, cost: str) -> float | None:
        if step <= 0 or cost == "step":
            return float(max(step, 0))
        total = {"images": self.images_seen, "seconds": self.train_seconds}[cost]
        if step == self.steps and total is not None:
            return float(total)
        before = (0.0, 0.0)
        for point in self.curve:
            at, value = point.get("step"), point.get(cost)
            if at is None or value is None:
                continue
            if at >= step:
                return before[1] + (value - before[1]) * (step - before[0]) / (at - before[0])
            before = (at, value)
        return None


@dataclass
class OpenedRuns:
    """Runs among the arguments of a comparison, and the arguments that are none, with the reason."""

    generators: list[RunSummary] = field(default_factory=list)
    encoders: list[RunSummary] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)


def open_runs(paths: Sequence[Path]) -> OpenedRuns:
    """Sort paths into runs that generate images, encoder runs and skipped paths; a folder counts once."""
    result = OpenedRuns()
    runs: list[Run] = []
    seen: set[Path] = set()

    def skip(path: Path, reason: object) -> None:
        result.skipped.append({"path": str(path), "reason": str(reason).removeprefix(f"{path}: ")})

    for path in paths:
        if path.resolve() in seen:
            skip(path, "the same folder was given before")
            continue
        seen.add(path.resolve())
        try:
            runs.append(Run.open(path))
        except DriftkitError as error:
            skip(path, error)
    for run, label in zip(runs, unique_labels([r.path for r in runs]), strict=True):
        try:
            summary = summarise(run, label=label)
        except DriftkitError as error:
            skip(run.path, error)
            continue
        if summary.method not in METHODS:
            skip(run.path, f"unknown method {summary.method!r}")
        elif METHODS[summary.method].generates:
            result.generators.append(summary)
        else:
            result.encoders.append(summary)
    result.generators.sort(key=lambda r: (r.method, r.kind, r.group, r.seed or 0))
    return result


class _Facts(BaseModel):
    """What a comparison reads of the open parts of a manifest, by dotted key."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    seed: int | None = Field(None, alias="config.seed")
    method: str = Field(alias="config.objective.name")
    class_conditional: bool = Field(False, alias="config.objective.class_conditional")
    data: str | None = Field(None, alias="config.data.spec")
    image_size: int | None = Field(None, alias="config.data.image_size", ge=1)
    batch_size: int | None = Field(None, alias="config.trainer.batch_size")
    configured_encoder: tuple[str, ...] | str | None = Field(None, alias="config.objective.encoder")
    encoder: str | None = Field(None, alias="encoder.name")
    configured_feature_set: str | None = Field(None, alias="config.objective.feature_set")
    feature_set: str | None = Field(None, alias="encoder.feature_set")
    configured_random_weights: bool = Field(False, alias="config.objective.random_weights")
    random_weights: bool = Field(False, alias="encoder.random_weights")
    weights_digest: str | None = Field(None, alias="encoder.weights_digest")
    scoring_every: int = Field(0, alias="config.evaluation.every")
    scoring_extractor: str | None = Field(None, alias="config.evaluation.extractor")
    scoring_reference: str | None = Field(None, alias="config.evaluation.reference")
    scoring_images: int | None = Field(None, alias="config.evaluation.num_images")
    collapse_step: int | None = Field(None, alias="collapse.first_step")
    worst_spread: float | None = Field(None, alias="collapse.worst_spread")
    worst_step: int | None = Field(None, alias="collapse.worst_step")
    collapsed: bool = Field(False, alias="collapse.now")


def summarise(run: Run, *, label: str) -> RunSummary:
    """Read a run's manifest and metrics; ArtifactError where either cannot be read."""
    manifest = run.manifest()
    try:
        facts = _Facts.model_validate(flatten(manifest.model_dump()))
    except ValidationError as error:
        raise ArtifactError(f"{run.manifest_path}: {first_problem(error)}; it was edited or damaged") from None
    encoder = facts.encoder or (joined_name(facts.configured_encoder) if facts.configured_encoder else None)
    feature_set = facts.feature_set or facts.configured_feature_set
    random_weights = facts.random_weights or facts.configured_random_weights
    config = flatten(manifest.config)
    space = "latents" if config.get("data.autoencoder") else None
    conditional = CLASS_CONDITIONAL if facts.class_conditional else None
    parts = [method_label(facts.method), conditional, short_name(encoder) if encoder else None, feature_set, space]
    keys = [curve.key for curve in curves_of(facts.method)]
    curve = thin(run.metrics(), keys)
    warnings = ["random weights: the encoder of this run was never trained"] if random_weights else []
    if manifest.state != "done":
        warnings.append(f"the training is not finished: its state is {manifest.state}")
    if facts.collapse_step is not None and facts.worst_spread is not None:
        recovered = "" if facts.collapsed else ", which it recovered from"
        warnings.append(
            f"collapse in training from step {facts.collapse_step:,}: generated features spread "
            f"{facts.worst_spread:.2g} of what real ones do at step {facts.worst_step or 0:,}{recovered}"
        )
    origin = manifest.initialised_from
    if origin is not None:
        spent = f"{format_count(origin.steps)} steps, {format_count(origin.images_seen)} images and "
        spent += f"{format_seconds(origin.train_seconds)} of training count where budgets are equal"
        of = f" ({method_label(origin.method)}, step {format_count(origin.step)})" if origin.method else ""
        warnings.append(f"initialised from the {origin.weights} weights of {origin.path}{of}, whose {spent}")
    scored_by = None
    if facts.scoring_every:
        reference = facts.scoring_reference or facts.data
        scored_by = f"{REQUIRED}@{facts.scoring_images} by {facts.scoring_extractor} against {reference}"
        known = read_kinship(manifest.scored_on_the_way) if manifest.scored_on_the_way else None
        scored_by += f" ({known.degree} evaluator)" if known and not known.counts else ""
    autoencoder = manifest.inputs.get("autoencoder", {}).get("digest") or config.get("data.autoencoder")
    autoencoder = None if autoencoder is None else str(autoencoder)
    is_encoder = facts.method in METHODS and not METHODS[facts.method].generates
    return RunSummary(
        label=label,
        path=str(run.path),
        group=_group(config, facts.weights_digest, manifest.data_digest, origin, autoencoder),
        kind=" · ".join(part for part in parts if part),
        encoder=short_name(encoder) if encoder else None,
        feature_set=feature_set,
        random_weights=random_weights,
        image_digest=manifest.image_digest,
        steps=manifest.step,
        **facts.model_dump(include={"method", "data", "image_size", "batch_size", "seed", "class_conditional"}),
        **{name: getattr(manifest, name) for name in MANIFEST_FIELDS},
        signals={key: curve[-1][key] if curve else None for key in keys},
        scored_by=scored_by,
        curve=curve,
        config=config,
        warnings=warnings,
        training_encoders=training_encoders_of(manifest),
        lineage=lineage_of_run(manifest, "unknown") if is_encoder else None,
        origin=origin,
        clusters=manifest.clusters,
        autoencoder=autoencoder,
    )


def curves_of(method: str) -> tuple[Curve, ...]:
    """The training curves of a method, empty for one that is unknown."""
    return METHODS[method].curves if method in METHODS else ()


def curve_keys() -> list[str]:
    """The keys of all methods' training curves."""
    return list(dict.fromkeys(curve.key for method in METHODS.values() for curve in method.curves))


def _group(
    config: Mapping[str, Any],
    encoder_digest: str | None,
    data_digest: str | None,
    origin: WeightsOrigin | None,
    autoencoder: str | None,
) -> str:
    """The same for runs that differ in their seed alone; encoders, autoencoders and images count by content."""
    compared = {k: v for k, v in config.items() if k not in NOT_COMPARED and not k.startswith("evaluation.")}
    if encoder_digest:
        encoder = compared.pop("objective.encoder", None)
        if isinstance(encoder, list):  # how each is used stands in its text
            read = [read_encoder(text)[1] for text in encoder]
            compared["encoders"] = [{k: v for k, v in each.items() if k != "encoder_weights"} for each in read]
    content = [encoder_digest, data_digest or config.get("data.spec"), *([origin.digest] if origin else [])]
    content += [] if autoencoder is None else [autoencoder]
    return digest_json([compared, *content])[:12]


def thin(
    records: Sequence[Mapping[str, Any]], keys: Sequence[str], *, limit: int = MAX_CURVE_POINTS
) -> list[CurvePoint]:
    """At most `limit` points: averages over equally many neighbouring records, at the position of the last of them."""
    size = max(1, math.ceil(len(records) / limit))
    points = []
    for first in range(0, len(records), size):
        group = records[first : first + size]
        healths = [health if isinstance(health := r.get("health"), Mapping) else {} for r in group]
        point = {key: _finite(group[-1].get(key)) for key in COSTS}
        for key in keys:
            point[key] = _mean(r.get(key) for r in (group if key == "loss" else healths))
        scores = [value for health in healths for key, value in health.items() if key.startswith(f"{REQUIRED}@")]
        points.append({**point, "score": _mean(scores)})
    return points


def _finite(value: Any) -> float | None:
    """A finite number as float; None for anything else that a line of metrics.jsonl may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [number for value in values if (number := _finite(value)) is not None]
    return statistics.fmean(numbers) if numbers else None


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """The folder names, each preceded by as many parents as tell equal names apart."""
    parts = [path.resolve().parts for path in paths]
    depth = [1] * len(paths)
    while True:
        labels = ["/".join(p[-d:]) for p, d in zip(parts, depth, strict=True)]
        clashing = [i for i, label in enumerate(labels) if labels.count(label) > 1 and depth[i] < len(parts[i])]
        if not clashing:
            return labels
        for i in clashing:
            depth[i] += 1


def differences(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Config keys in which the runs differ -> the value of each run, None where it has no such key."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    table = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: values for key, values in table.items() if any(v != values[0] for v in values)}


def equality_notes(runs: Sequence[RunSummary], *, scored: bool = False) -> list[str]:
    """What runs do not have in common, and the warnings of each; `scored`: less what `conclusions.cautions` says."""
    method = "differences between them are not those of the methods alone"
    machine = "their training times are those of different machines"
    unequal: list[tuple[str, set[Any], str]] = [
        ("image sizes", {r.image_size for r in runs}, method),
        ("autoencoders", {r.autoencoder for r in runs}, method),
        ("devices", {r.device for r in runs if r.steps}, machine),
    ]
    if not scored:
        unequal += [
            ("training images", {r.image_digest or r.data for r in runs}, method),
            ("sizes of network", {r.parameters for r in runs}, method),
            ("numbers of images seen", {r.images_seen for r in runs}, method),
        ]
    notes = [f"{run.label}: {warning}" for run in runs for warning in run.warnings]
    return notes + [f"the runs have different {name}; {so}" for name, values, so in unequal if len(values) > 1]
