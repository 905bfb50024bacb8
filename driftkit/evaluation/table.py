"""What a comparison knows of each run, and score tables that never mix evaluators."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driftkit.artifacts.files import digest_json, read_json
from driftkit.artifacts.run import Run
from driftkit.errors import MissingError

MAX_CURVE_POINTS = 300
SMALL_COUNT = 2048


@dataclass(frozen=True)
class RunSummary:
    """One run as the comparison shows it. None stands for what its manifest does not tell.

    Attributes:
        label: name, made unique among the runs that are compared.
        path: the folder as it was given.
        curve: at most 300 points of step, images, seconds, loss and drift_norm (None where there is none).
        warnings: sentences on the run itself.
    """

    label: str
    path: str
    method: str
    encoder: str | None
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
    curve: list[dict[str, float | None]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ScoreRow:
    """One way of sampling one run, judged over one or more seeds."""

    run: str
    method: str | None
    sampler: str | None
    nfe: int | None
    weights: str | None
    step: int | None
    seeds: list[Any]
    metrics: dict[str, float]  # means over the seeds
    spread: dict[str, float]  # standard deviations over the seeds; empty for one seed
    fid_values: list[float]
    floor: float | None
    floor_images: int | None
    badges: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one evaluator, one reference and one count of images, best first: the only ones one may compare."""

    key: str
    name: str
    title: str
    extractor: dict[str, Any]
    reference: dict[str, Any]
    num_images: int
    rows: list[ScoreRow]  # the last step of every way of sampling
    history: list[ScoreRow]  # the same at all steps that were scored


def summarise(run: Run, *, label: str) -> RunSummary:
    """Read a run's manifest and metrics; what they lack stays None."""
    manifest = run.manifest()
    config = _mapping(manifest.get("config"))
    objective, data, trainer = (_mapping(config.get(key)) for key in ("objective", "data", "trainer"))
    encoder = _mapping(manifest.get("encoder"))
    inputs = _mapping(_mapping(manifest.get("inputs")).get("data"))
    metrics = run.metrics()
    curve = thin(metrics)
    named = encoder.get("name") or objective.get("encoder")
    random_weights = encoder.get("random_weights") is True or objective.get("random_weights") is True
    state = _text(manifest.get("state"))
    warnings = []
    if random_weights:
        warnings.append("random weights: the encoder of this run was never trained")
    if state not in (None, "done"):
        warnings.append(f"the training is not finished: its state is {state}")
    last = curve[-1] if curve else {}
    return RunSummary(
        label=label,
        path=str(run.path),
        method=_text(objective.get("name")) or "unknown",
        encoder=short_name(named) if isinstance(named, str) else None,
        random_weights=random_weights,
        data=_text(data.get("spec")),
        data_digest=_text(inputs.get("digest")),
        image_size=_count(data.get("image_size")),
        steps=_count(manifest.get("step")),
        batch_size=_count(trainer.get("batch_size")),
        images_seen=_count(manifest.get("images_seen")),
        train_seconds=number(manifest.get("train_seconds")),
        parameters=_count(manifest.get("parameters")),
        peak_memory_gib=number(manifest.get("peak_memory_gib")),
        device=_text(manifest.get("device")),
        state=state,
        seed=_count(config.get("seed")),
        loss=last.get("loss"),
        drift_norm=last.get("drift_norm"),
        curve=curve,
        warnings=warnings,
    )


def thin(records: Sequence[Mapping[str, Any]], *, most: int = MAX_CURVE_POINTS) -> list[dict[str, float | None]]:
    """At most `most` points: averages over equally many neighbouring records, at the place of the last of them."""
    size = max(1, math.ceil(len(records) / most))
    points = []
    for first in range(0, len(records), size):
        group = records[first : first + size]
        point: dict[str, float | None] = {key: number(group[-1].get(key)) for key in ("step", "images", "seconds")}
        point["loss"] = _mean(r.get("loss") for r in group)
        point["drift_norm"] = _mean(_mapping(r.get("health")).get("drift_norm") for r in group)
        points.append(point)
    return points


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


def read_evaluations(run: Run) -> tuple[list[dict[str, Any]], list[str]]:
    """The evaluation documents of a run, and one sentence for each file that is none."""
    found, problems = [], []
    for path in sorted((run.path / "evaluations").glob("*.json")):
        try:
            document = read_json(path)
        except MissingError as error:
            problems.append(str(error))
            continue
        problem = _problem_of(document)
        if problem:
            problems.append(f"{path} is left out: {problem}")
        else:
            found.append(document)
    return found, problems


def _problem_of(document: Mapping[str, Any]) -> str | None:
    if document.get("kind") != "evaluation":
        return f"its kind is {document.get('kind')!r}, not evaluation"
    if number(_mapping(document.get("metrics")).get("fid")) is None:
        return "it has no fid"
    judge, reference = _mapping(document.get("extractor")), _mapping(document.get("reference"))
    if not judge.get("weights_digest") or not reference.get("digest"):
        return "it does not say what judged it against what"
    if _count(document.get("num_images")) is None:
        return "it does not say how many images were judged"
    return None


def score_tables(evaluations: Iterable[tuple[str, Mapping[str, Any]]]) -> list[ScoreTable]:
    """Group (run label, evaluation) into one table per evaluator, reference and count; the fullest table first."""
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for label, document in evaluations:
        groups.setdefault(evaluator_key(document), []).append((label, document))
    tables = [_table(key, members) for key, members in groups.items()]
    return sorted(tables, key=lambda t: (-len(t.rows), -t.num_images, t.title))


def evaluator_key(document: Mapping[str, Any]) -> str:
    """Equal for evaluations whose numbers may stand in one column."""
    extractor, reference = document["extractor"], document["reference"]
    return digest_json(
        [
            extractor.get("name"),
            extractor.get("weights_digest"),
            extractor.get("resize"),
            reference.get("digest"),
            document.get("num_images"),
        ]
    )[:12]


def _table(key: str, members: list[tuple[str, Mapping[str, Any]]]) -> ScoreTable:
    extractor, reference = _judge(members[0][1]["extractor"]), _reference(members[0][1]["reference"])
    count = int(members[0][1]["num_images"])
    ways: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for label, document in members:
        nfe, weights, step = _count(document.get("nfe")), _text(document.get("weights")), _count(document.get("step"))
        way = (label, _sampler(document), nfe, weights, step)
        ways.setdefault(way, []).append(document)
    history = [_row(way[0], documents) for way, documents in ways.items()]
    latest: dict[tuple[Any, ...], ScoreRow] = {}
    for way, row in zip(ways, history, strict=True):
        known = latest.get(way[:-1])
        if known is None or (row.step or 0) >= (known.step or 0):
            latest[way[:-1]] = row
    title = f"{extractor['name']} against {reference['spec']}"
    return ScoreTable(
        key=key,
        name=f"fid@{count}",
        title=title,
        extractor=extractor,
        reference=reference,
        num_images=count,
        rows=sorted(latest.values(), key=lambda r: r.metrics["fid"]),
        history=sorted(history, key=lambda r: (r.run, r.nfe or 0, r.step or 0)),
    )


def _judge(extractor: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an extractor that are shown; text where one is missing."""
    known = {key: _text(extractor.get(key)) or "–" for key in ("name", "version", "weights_digest", "resize")}
    return {**known, "dim": _count(extractor.get("dim"))}


def _reference(reference: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: _text(reference.get(key)) or "–" for key in ("spec", "digest")}
    return {**known, **{key: _count(reference.get(key)) for key in ("count", "image_size")}}


def _row(label: str, documents: list[Mapping[str, Any]]) -> ScoreRow:
    """One row of the evaluations that differ in nothing but the seed."""
    first = documents[0]
    values: dict[str, list[float]] = {}
    for document in documents:
        for name, value in _mapping(document.get("metrics")).items():
            if (known := number(value)) is not None:
                values.setdefault(name, []).append(known)
    floor = _mapping(first.get("floor"))
    badges = []
    if any(d.get("own_teacher") is True for d in documents):
        badges.append("judged by its own teacher")
    if first.get("weights") == "raw":
        badges.append("raw weights")
    if int(first["num_images"]) < SMALL_COUNT:
        badges.append("small N")
    warnings = list(dict.fromkeys(str(w) for d in documents for w in d.get("warnings") or []))
    return ScoreRow(
        run=label,
        method=_text(first.get("method")),
        sampler=_sampler(first),
        nfe=_count(first.get("nfe")),
        weights=_text(first.get("weights")),
        step=_count(first.get("step")),
        seeds=[d.get("seed") for d in documents],
        metrics={name: statistics.fmean(v) for name, v in values.items()},
        spread={name: statistics.stdev(v) for name, v in values.items() if len(v) > 1},
        fid_values=values["fid"],
        floor=number(floor.get("fid")),
        floor_images=_count(floor.get("num_images")),
        badges=badges,
        warnings=warnings,
    )


def _sampler(document: Mapping[str, Any]) -> str | None:
    """The sampler with its options, for example "ddim eta=1.0"."""
    name = _text(document.get("sampler"))
    options = _mapping(document.get("sampler_options"))
    return " ".join([name, *(f"{key}={options[key]}" for key in sorted(options))]) if name else None


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else that JSON may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _count(value: Any) -> int | None:
    return int(value) if number(value) is not None else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mean(values: Iterable[Any]) -> float | None:
    known = [v for v in map(number, values) if v is not None]
    return statistics.fmean(known) if known else None


def short_name(name: str) -> str:
    """An encoder's name without the folders of a run's path."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def format_count(value: float | None) -> str:
    """1234 -> 1,234 and from a million on 1.23 M; a dash for None."""
    if value is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def format_seconds(value: float | None) -> str:
    """42 s, 12 min, 3.5 h; a dash for None."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def format_share(value: float | None) -> str:
    """0.613; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def format_score(value: float | None) -> str:
    """Two decimals from 1 on and one from 100 on, four below, powers of ten below 0.001; a dash for None."""
    if value is None:
        return "–"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{decimals}f}"
