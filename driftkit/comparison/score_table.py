"""Score tables that never mix evaluators, and the rows of runs that differ in their seed alone."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from driftkit.comparison.reading import count, mapping, number, numbers, text
from driftkit.comparison.run_summary import RunSummary
from driftkit.encoders.lineage import Kinship, read_kinship
from driftkit.metrics.appearance import PROPERTIES
from driftkit.metrics.memorization import NEAR_SHARE
from driftkit.scoring import evaluation_record
from driftkit.storage.files import digest_json
from driftkit.storage.run_folder import Run

SMALL_COUNT = 10_000
RANDOM_WEIGHTS = "random weights"
RAW_WEIGHTS = "raw weights"
SMALL_N = "small N"
UNFINISHED = "not finished"
COPIES = "near copies of training images"
ON_TRAINING_DATA = "against its training images"
UNRECORDED = read_kinship(None)


@dataclass(frozen=True)
class ScoreRow:
    """One way of sampling one run, judged over one or more seeds of the noise.

    Attributes:
        metrics: means over the seeds.
        spread: standard deviations over the seeds; empty for one seed. That of KID falls back to the one over subsets.
        fid_values: one per seed, all of them.
        floor: what real images score against real ones, by the same evaluator.
        badges: short warnings that stand beside the number wherever it is shown.
        warnings: what the evaluation itself had to say.
        kinship: how near the evaluator is to the run's training encoder.
        appearance: what the images look like in plain numbers beside real ones; see `appearance.compare_appearance`.
    """

    run: str
    method: str | None
    sampler: str | None
    nfe: int | None
    weights: str | None
    step: int | None
    seeds: list[Any]
    metrics: dict[str, float]
    spread: dict[str, float]
    fid_values: list[float]
    floor: float | None
    floor_images: int | None
    badges: list[str]
    warnings: list[str]
    kinship: Kinship = UNRECORDED
    appearance: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupRow:
    """Runs that differ in their training seed alone, sampled in the same way."""

    kind: str
    runs: list[str]
    seeds: list[int | None]
    sampler: str | None
    nfe: int | None
    weights: str | None
    fid_values: list[float]
    fid_mean: float
    fid_sd: float


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one evaluator, one reference and one count of images, best first: the only ones one may compare.

    Attributes:
        rows: the last step of every way of sampling, of runs that the evaluator is independent of.
        apart: the same of runs whose training encoder it is kin or related to; they rank nothing.
        history: `rows` at all steps that were scored.
    """

    key: str
    name: str
    title: str
    extractor: dict[str, Any]
    reference: dict[str, Any]
    num_images: int
    rows: list[ScoreRow]
    history: list[ScoreRow]
    groups: list[GroupRow] = field(default_factory=list)
    apart: list[ScoreRow] = field(default_factory=list)

    def best(self, run: str) -> ScoreRow | None:
        """The best row of a run that the evaluator is independent of, None where it has none."""
        return next((row for row in self.rows if row.run == run), None)

    def best_related(self, run: str) -> ScoreRow | None:
        """The best row of a run that the evaluator is related to, None where it has none."""
        return next((row for row in self.apart if row.run == run and row.kinship.degree == "related"), None)

    def has(self, run: str) -> bool:
        """Whether there is any score of the run."""
        return any(row.run == run for row in (*self.rows, *self.apart))


def read_evaluations(run: Run) -> tuple[list[dict[str, Any]], list[str]]:
    """The evaluations of a run as flat documents, and one sentence for each file that is none."""
    records, problems = evaluation_record.read_evaluations(run)
    return [flat(record.document()) for record in records], problems


def flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation with the fields of its sampling next to the others."""
    sampling = document.get("sampling") or {}
    floor = document.get("floor") or {}
    moved = {
        **{key: value for key, value in sampling.items() if key not in ("options", "precision")},
        "sampler_options": sampling.get("options") or {},
        "sampler_precision": sampling.get("precision"),
        "floor": {**floor, **mapping(floor.get("metrics"))} or None,
    }
    return {**document, **moved}


def score_tables(
    evaluations: Iterable[tuple[str, Mapping[str, Any]]], runs: Sequence[RunSummary] = ()
) -> list[ScoreTable]:
    """Group (run label, evaluation) into one table per evaluator, reference and count; the fullest table first.

    Args:
        evaluations: documents as `read_evaluations` gives them.
        runs: what is known of the runs: their warnings become badges, and those of one group share a group row.
    """
    known = {run.label: run for run in runs}
    groups: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for label, document in evaluations:
        groups.setdefault(evaluator_key(document), []).append((label, document))
    tables = [_table(key, members, known) for key, members in groups.items()]
    return sorted(
        tables,
        key=lambda t: (
            -len({r.run for r in t.rows}),
            t.extractor["name"] == "pixels",
            -len(t.rows),
            -t.num_images,
            t.title,
        ),
    )


def evaluator_key(document: Mapping[str, Any]) -> str:
    """Equal for evaluations whose numbers may stand in one column."""
    extractor, reference = document["extractor"], document["reference"]
    return digest_json(
        [
            text(extractor.get("name")),
            text(extractor.get("weights_digest")),
            text(extractor.get("resize")),
            text(reference.get("digest")),
            count(document.get("num_images")),
        ]
    )[:12]


def _table(key: str, members: list[tuple[str, Mapping[str, Any]]], runs: Mapping[str, RunSummary]) -> ScoreTable:
    extractor, reference = _judge(members[0][1]["extractor"]), _reference(members[0][1]["reference"])
    num_images = int(members[0][1]["num_images"])
    ways: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for label, document in members:
        nfe, weights, step = count(document.get("nfe")), text(document.get("weights")), count(document.get("step"))
        way = (label, sampler_name(document), nfe, weights, step)
        ways.setdefault(way, []).append(document)
    history = [_row(way[0], _one_per_seed(documents), runs.get(way[0])) for way, documents in ways.items()]
    latest: dict[tuple[Any, ...], ScoreRow] = {}
    for way, row in zip(ways, history, strict=True):
        before = latest.get(way[:-1])
        if before is None or (row.step or 0) >= (before.step or 0):
            latest[way[:-1]] = row
    ranked = sorted(latest.values(), key=lambda r: (r.metrics["fid"], r.nfe or 0, r.run))
    rows = [row for row in ranked if row.kinship.counts]
    return ScoreTable(
        key=key,
        name=f"fid@{num_images}",
        title=f"{extractor['name']} against {reference['spec']}",
        extractor=extractor,
        reference=reference,
        num_images=num_images,
        rows=rows,
        history=sorted((r for r in history if r.kinship.counts), key=lambda r: (r.run, r.nfe or 0, r.step or 0)),
        groups=_group_rows(rows, runs),
        apart=[row for row in ranked if not row.kinship.counts],
    )


def _one_per_seed(documents: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The newest evaluation of every seed: one made twice is no second draw of the noise."""
    newest: dict[Any, Mapping[str, Any]] = {}
    for document in sorted(documents, key=lambda d: text(d.get("created")) or ""):
        newest[str(document.get("seed"))] = document
    order = {str(d.get("seed")): None for d in documents}
    return [newest[seed] for seed in order]


def _judge(extractor: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an extractor that are shown; text where one is missing."""
    known = {key: text(extractor.get(key)) or "–" for key in ("name", "version", "weights_digest", "resize")}
    return {**known, "dim": count(extractor.get("dim"))}


def _reference(reference: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: text(reference.get(key)) or "–" for key in ("spec", "digest")}
    return {**known, **{key: count(reference.get(key)) for key in ("count", "image_size")}}


def _row(label: str, documents: list[Mapping[str, Any]], run: RunSummary | None) -> ScoreRow:
    """One row of the evaluations that differ in nothing but the seed."""
    first = documents[0]
    values: dict[str, list[float]] = {}
    seeds: list[Any] = []
    for document in documents:
        repeated = repeats_of(document)
        for name, value in mapping(document.get("metrics")).items():
            several = repeated.get(name) or ([known] if (known := number(value)) is not None else [])
            if several:
                values.setdefault(name, []).extend(several)
        many = mapping(document.get("repeats")).get("seeds")
        seeds += many if isinstance(many, list) else [document.get("seed")]
    spread = {name: statistics.stdev(v) for name, v in values.items() if len(v) > 1}
    if "kid_mean" not in spread and values.get("kid_std"):
        spread["kid_mean"] = values["kid_std"][0]
    floor = mapping(first.get("floor"))
    return ScoreRow(
        run=label,
        method=text(first.get("method")),
        sampler=sampler_name(first),
        nfe=count(first.get("nfe")),
        weights=text(first.get("weights")),
        step=count(first.get("step")),
        seeds=seeds,
        metrics={name: statistics.fmean(v) for name, v in values.items()},
        spread=spread,
        fid_values=values["fid"],
        floor=number(floor.get("fid")),
        floor_images=count(floor.get("num_images")),
        badges=_badges(documents, run),
        warnings=list(dict.fromkeys(str(w) for d in documents for w in _listed(d.get("warnings")))),
        kinship=read_kinship(first.get("kinship")),
        appearance=_appearance(mapping(first.get("appearance"))),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _appearance(document: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The numbers of a record that somebody may have written by hand."""
    keys = ("generated", "real", "distance")
    return {name: {key: number(mapping(document.get(name)).get(key)) for key in keys} for name in PROPERTIES}


def repeats_of(document: Mapping[str, Any]) -> dict[str, list[float]]:
    """Score name -> all its values, where the evaluation was repeated over several seeds; empty otherwise."""
    repeats = mapping(document.get("repeats"))
    found = {}
    for name, entry in {**mapping(repeats.get("metrics")), **repeats}.items():
        values = numbers(mapping(entry).get("values") if isinstance(entry, Mapping) else entry)
        if values and name != "seeds":
            found[name] = values
    return found


def _badges(documents: Sequence[Mapping[str, Any]], run: RunSummary | None) -> list[str]:
    first = documents[0]
    reference = mapping(first.get("reference"))
    signs = {
        RANDOM_WEIGHTS: run is not None and run.random_weights,
        RAW_WEIGHTS: first.get("weights") == "raw",
        ON_TRAINING_DATA: reference.get("is_training_data") is True,
        SMALL_N: int(first["num_images"]) < SMALL_COUNT,
        COPIES: any((number(mapping(d.get("metrics")).get("near_share")) or 0) > NEAR_SHARE for d in documents),
        UNFINISHED: run is not None and run.state not in (None, "done"),
    }
    kin = read_kinship(first.get("kinship"))
    return ([] if kin.counts else [f"{kin.degree} evaluator"]) + [b for b, applies in signs.items() if applies]


def _group_rows(rows: Sequence[ScoreRow], runs: Mapping[str, RunSummary]) -> list[GroupRow]:
    """A row for every group of at least two runs whose training seeds differ, best mean first."""
    members: dict[tuple[Any, ...], list[ScoreRow]] = {}
    for row in rows:
        if row.run in runs:
            members.setdefault((runs[row.run].group, row.sampler, row.nfe, row.weights), []).append(row)
    groups = []
    for together in members.values():
        if len({runs[row.run].seed for row in together}) < 2:
            continue
        values = [row.metrics["fid"] for row in together]
        first = together[0]
        groups.append(
            GroupRow(
                kind=runs[first.run].kind,
                runs=[row.run for row in together],
                seeds=[runs[row.run].seed for row in together],
                sampler=first.sampler,
                nfe=first.nfe,
                weights=first.weights,
                fid_values=values,
                fid_mean=statistics.fmean(values),
                fid_sd=statistics.stdev(values),
            )
        )
    return sorted(groups, key=lambda g: g.fid_mean)


def sampler_name(document: Mapping[str, Any]) -> str | None:
    """The sampler with its options, for example "ddim eta=1.0"."""
    name = text(document.get("sampler"))
    options = mapping(document.get("sampler_options"))
    return " ".join([name, *(f"{key}={options[key]}" for key in sorted(options))]) if name else None
