"""What a comparison knows of each run: its manifest and its metrics, read without trusting them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driftkit.comparison.formats import method_name, short_name
from driftkit.comparison.reading import count, mapping, mean, number, text
from driftkit.config.layers import flatten
from driftkit.encoders.lineage import Lineage, lineage_of_run, read_kinship, training_encoders_of
from driftkit.encoders.loading import ENCODER_OBJECTIVES
from driftkit.storage.files import digest_json
from driftkit.storage.run_folder import Run

MAX_CURVE_POINTS = 300
# What two runs of one group may differ in: the seed, and what changes neither the numbers nor their cost.
APART = ("seed", "trainer.log_every", "trainer.sample_every", "trainer.checkpoint_every", "trainer.keep_every",
         "trainer.measure_every", "trainer.tracker", "trainer.rank_timeout", "data.spec")  # fmt: skip


@dataclass(frozen=True)
class RunSummary:
    """One run as the comparison shows it. None stands for what its manifest does not tell.

    Attributes:
        label: name, made unique among the runs that are compared.
        path: the folder as it was given.
        group: equal for runs that differ in their seed alone.
        kind: method, encoder and feature set in words.
        scored_by: what the scores on the way (`train --eval-every`) are: equal for runs whose scores one may compare.
        curve: at most 300 points of step, images, seconds, loss, drift_norm, spread and score, None where one is not.
        config: the resolved config, dotted key -> value.
        warnings: sentences on the run itself.
        training_encoders: what its training signal was computed with; see `lineage.training_encoders_of`.
        lineage: of an encoder, what its features come from.
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
    data_digest: str | None
    image_size: int | None
    steps: int | None
    batch_size: int | None
    images_seen: int | None
    train_seconds: float | None
    parameters: int | None
    peak_memory_gib: float | None
    device: str | None
    state: str | None
    seed: int | None
    loss: float | None
    drift_norm: float | None
    spread: float | None
    scored_by: str | None = None
    curve: list[dict[str, float | None]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    training_encoders: list[Lineage | None] = field(default_factory=list)
    lineage: Lineage | None = None

    def cost_at(self, step: int, cost: str) -> float | None:
        """Steps, images seen or seconds of training after `step` steps, by interpolation between metric records.

        Args:
            step: of a checkpoint.
            cost: "step", "images" or "seconds".
        """
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


def summarise(run: Run, *, label: str) -> RunSummary:
    """Read a run's manifest and metrics; what they lack stays None."""
    manifest = run.manifest()
    config = manifest.config
    objective, data, trainer = (mapping(config.get(key)) for key in ("objective", "data", "trainer"))
    encoder = mapping(manifest.encoder)
    curve = thin(run.metrics())
    named = text(encoder.get("name")) or text(objective.get("encoder"))
    features = text(encoder.get("feature_set")) or text(objective.get("feature_set"))
    random_weights = encoder.get("random_weights") is True or objective.get("random_weights") is True
    state = manifest.state
    warnings = []
    if random_weights:
        warnings.append("random weights: the encoder of this run was never trained")
    if state != "done":
        warnings.append(f"the training is not finished: its state is {state}")
    warnings += collapse_warnings(mapping(manifest.collapse))
    last = curve[-1] if curve else {}
    method = text(objective.get("name")) or "unknown"
    flat = flatten(config)
    data_digest = manifest.data_digest
    parts = [method_name(method), short_name(named) if named else None, features]
    return RunSummary(
        label=label,
        path=str(run.path),
        group=_group(flat, text(encoder.get("weights_digest")), data_digest),
        kind=" · ".join(part for part in parts if part),
        method=method,
        encoder=short_name(named) if named else None,
        feature_set=features,
        random_weights=random_weights,
        data=text(data.get("spec")),
        data_digest=data_digest,
        image_size=count(data.get("image_size")),
        steps=manifest.step,
        batch_size=count(trainer.get("batch_size")),
        images_seen=manifest.images_seen,
        train_seconds=manifest.train_seconds,
        parameters=manifest.parameters,
        peak_memory_gib=manifest.peak_memory_gib,
        device=manifest.device,
        state=state,
        seed=count(config.get("seed")),
        loss=last.get("loss"),
        drift_norm=last.get("drift_norm"),
        spread=last.get("spread"),
        scored_by=_scored_by(config, manifest.scored_on_the_way),
        curve=curve,
        config=flat,
        warnings=warnings,
        training_encoders=training_encoders_of(manifest),
        lineage=lineage_of_run(manifest, "unknown") if method in ENCODER_OBJECTIVES else None,
    )


def collapse_warnings(collapse: Mapping[str, Any]) -> list[str]:
    """A sentence where a manifest tells of collapse while it was trained."""
    first, worst, at = (
        count(collapse.get("first_step")),
        number(collapse.get("worst_spread")),
        collapse.get("worst_step"),
    )
    if first is None or worst is None:
        return []
    over = "" if collapse.get("now") is True else ", which it recovered from"
    return [
        f"collapse in training from step {first:,}: generated features spread {worst:.2g} of what real ones do at step "
        f"{count(at) or 0:,}{over}"
    ]


def _scored_by(config: Mapping[str, Any], recorded: Any) -> str | None:
    """The scores on the way in words; None where none are made."""
    wanted = mapping(config.get("evaluation"))
    if not count(wanted.get("every")):
        return None
    reference = text(wanted.get("reference")) or text(mapping(config.get("data")).get("spec"))
    said = f"fid@{count(wanted.get('num_images'))} by {text(wanted.get('features'))} against {reference}"
    kinship = read_kinship(recorded) if recorded else None
    return said if kinship is None or kinship.counts else f"{said} ({kinship.degree} evaluator)"


def _group(config: Mapping[str, Any], encoder_digest: str | None, data_digest: str | None) -> str:
    """The same for runs that differ in their seed alone; encoders and images count by content, not by name."""
    by_content = {"objective.encoder"} if encoder_digest else set()
    scored = {key for key in config if key.startswith("evaluation.")}  # scores on the way change no training
    kept = {key: value for key, value in config.items() if key not in by_content.union(APART, scored)}
    return digest_json([kept, encoder_digest, data_digest or config.get("data.spec")])[:12]


def thin(records: Sequence[Mapping[str, Any]], *, most: int = MAX_CURVE_POINTS) -> list[dict[str, float | None]]:
    """At most `most` points: averages over equally many neighbouring records, at the place of the last of them."""
    size = max(1, math.ceil(len(records) / most))
    points = []
    for first in range(0, len(records), size):
        group = records[first : first + size]
        point: dict[str, float | None] = {key: number(group[-1].get(key)) for key in ("step", "images", "seconds")}
        point["loss"] = mean(r.get("loss") for r in group)
        for key in ("drift_norm", "spread"):
            point[key] = mean(mapping(r.get("health")).get(key) for r in group)
        point["score"] = mean(value for r in group for key, value in mapping(r.get("health")).items() if _is_score(key))
        points.append(point)
    return points


def _is_score(key: str) -> bool:
    return key.startswith("fid@")


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """The folder names, with as many parents in front as it takes to tell equal names apart."""
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
    """Sentences on what the runs do not have in common, and the warnings of each.

    Args:
        runs: what is compared.
        scored: leave out what `verdict.cautions` says of runs that have scores.
    """
    notes = [f"{run.label}: {warning}" for run in runs for warning in run.warnings]
    method = "differences between them are not those of the methods alone"
    unequal: list[tuple[str, set[Any], str]] = [("image sizes", {r.image_size for r in runs}, method)]
    unequal += [
        ("devices", {r.device for r in runs if r.steps}, "their training times are those of different machines")
    ]
    if not scored:
        unequal += [
            ("training images", {r.data_digest or r.data for r in runs}, method),
            ("sizes of network", {r.parameters for r in runs}, method),
            ("numbers of images seen", {r.images_seen for r in runs}, method),
        ]
    return notes + [f"the runs have different {what}; {so}" for what, values, so in unequal if len(values) > 1]
