"""Comparing: from runs to tables, compare.json, compare.csv, figures and one report.html."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftkit import __version__
from driftkit.comparison.agreement import Pair, pairs_of
from driftkit.comparison.budgets import nfe_budgets, training_budgets
from driftkit.comparison.charts import all_charts
from driftkit.comparison.conclusions import cautions, findings, scored_runs
from driftkit.comparison.figures import colour_of
from driftkit.comparison.missing_scores import MissingScores, fill_missing
from driftkit.comparison.reading import mapping
from driftkit.comparison.report import render_report
from driftkit.comparison.run_pictures import NeighbourSearch, Pictures, make_pictures
from driftkit.comparison.run_speed import time_runs
from driftkit.comparison.run_summary import RunSummary, differences, equality_notes, summarise, unique_labels
from driftkit.comparison.score_records import score_records, to_csv
from driftkit.comparison.score_table import ScoreTable, read_evaluations, score_tables
from driftkit.comparison.speed import Speed, SpeedSettings
from driftkit.encoders.lineage import Lineage, kinship
from driftkit.encoders.loading import MAE_RESNET
from driftkit.errors import ArtifactError, DriftkitError, NotFoundError
from driftkit.runtime.drawing import Figure
from driftkit.runtime.progress import Report
from driftkit.scoring.extractors import DINOV2_LINEAGE, INSTALLED, INSTALLED_LINEAGE
from driftkit.storage.files import read_json, sha256, write_bytes, write_json
from driftkit.storage.lock import locked_folder
from driftkit.storage.run_folder import Run, now

FORMAT = 2


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where its report lies."""

    document: dict[str, Any]
    report: Path
    runs: list[RunSummary]
    encoders: list[RunSummary]
    tables: list[ScoreTable]
    speeds: list[Speed]


@dataclass
class Found:
    """Runs among the arguments, and the arguments that are none, with the reason."""

    generators: list[tuple[Run, RunSummary]] = field(default_factory=list)
    encoders: list[RunSummary] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)


def compare(
    paths: Sequence[Path],
    output: Path,
    *,
    missing: MissingScores | None = None,
    speed: SpeedSettings | None = None,
    neighbours: NeighbourSearch | None = None,
    device: torch.device | None = None,
    report: Report = lambda what, done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compare runs and write report.html, compare.json, compare.csv and the figures into `output`.

    Args:
        paths: run folders; those that are none are left out and named.
        output: folder of the report; made if it is not there.
        missing: scores to make first where they are missing, in the runs; None makes none.
        speed: settings under which samplers are timed; None measures nothing.
        neighbours: where the real images nearest to samples are sought; None seeks none. Without an extractor of its
            own it takes pixels.
        device: where samples are made for runs that have none.
        report: told how far it is.
        tell: told in one line what a user should know while it runs.

    Raises:
        ArtifactError: none of the paths is a run that generates images; or the judge or its reference is absent.
    """
    from driftkit.methods.registry import generators

    found = collect(paths)
    if not found.generators:
        reasons = "; ".join(f"{s['path']}: {s['reason']}" for s in found.skipped)
        only = "only encoders are" if found.encoders else "nothing is"
        raise NotFoundError(
            f"{only} left to compare ({reasons or 'encoders generate no images'}); name runs of "
            f"{' or '.join(generators())}"
        )
    runs = [summary for _, summary in found.generators]
    notes = fill_missing(found.generators, missing, report, tell) if missing is not None else []
    tables = _tables(found, notes)
    pairs = pairs_of(tables, scored_runs(tables))
    notes = equality_notes(runs, scored=bool(tables)) + notes
    speeds = time_runs(found.generators, tables, speed, notes, report) if speed else []
    colours = colour_of([r.label for r in runs])
    charts = all_charts(runs, tables, speeds, colours)
    pictures = make_pictures(found.generators, neighbours, device or torch.device("cpu"), report)
    notes += pictures.notes
    figures = {**charts, "grids": pictures.grids, "neighbours": pictures.neighbours}
    records = score_records(tables, runs, speeds)
    document = _document(found, tables, pairs, speeds, speed, notes, figures, records, pictures)
    page = render_report(
        document,
        runs=runs,
        encoders=found.encoders,
        tables=tables,
        speeds=speeds,
        figures=figures,
        evolutions=pictures.evolutions,
        colours=colours,
    )
    path = _write(output, document, page, figures, pictures, to_csv(records))
    return Comparison(document, path, runs, found.encoders, tables, speeds)


def collect(paths: Sequence[Path]) -> Found:
    """Tell generators, encoders and everything else apart; the same folder given twice counts once."""
    from driftkit.methods.registry import METHODS

    found = Found()
    opened: list[Run] = []
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            found.skipped.append({"path": str(path), "reason": "the same folder was given before"})
            continue
        seen.add(path.resolve())
        try:
            opened.append(Run.open(path))
        except DriftkitError as error:
            found.skipped.append({"path": str(path), "reason": str(error)})
    for run, label in zip(opened, unique_labels([r.path for r in opened]), strict=True):
        try:
            summary = summarise(run, label=label)
        except DriftkitError as error:
            found.skipped.append({"path": str(run.path), "reason": str(error)})
            continue
        if summary.method not in METHODS:
            found.skipped.append({"path": str(run.path), "reason": f"unknown objective {summary.method!r}"})
        elif METHODS[summary.method].generates:
            found.generators.append((run, summary))
        else:
            found.encoders.append(summary)
    found.generators.sort(key=lambda pair: (pair[1].method, pair[1].kind, pair[1].group, pair[1].seed or 0))
    return found


def _tables(found: Found, notes: list[str]) -> list[ScoreTable]:
    """The score tables, with a note on every evaluation that is none and every run without one."""
    scored = []
    for run, summary in found.generators:
        evaluations, problems = read_evaluations(run)
        scored += [(summary.label, document) for document in evaluations]
        notes += problems
    runs = [summary for _, summary in found.generators]
    tables = score_tables(scored, runs)
    if len(tables) > 1:
        notes.append(f"scores stand in {len(tables)} tables: their evaluator, reference or count of images differs")
    unscored = [r for r in runs if not any(table.has(r.label) for table in tables)]
    notes += [
        f"{r.label} has no score yet: driftkit fid {r.path} --reference SPEC, or compare with --evaluate"
        for r in unscored
    ]
    return tables


def _advice(found: Found, pairs: Sequence[Pair]) -> str | None:
    """A command that scores the first pair of runs that no independent evaluator has scored; None where none would."""
    lacking = next((pair for pair in pairs if pair.verdict == "unknown"), None)
    if lacking is None:
        return None
    chosen = [(run, summary) for run, summary in found.generators if summary.label in (lacking.first, lacking.second)]
    training_encoders = [encoder for _, summary in chosen for encoder in summary.training_encoders]
    words = " ".join(str(run.path) for run, _ in chosen)
    again = f"driftkit compare {words} --evaluate --reference SPEC --features"
    known: dict[str, Lineage | None] = {
        INSTALLED: INSTALLED_LINEAGE,
        **{f"encoder:{encoder.path}": encoder.lineage for encoder in found.encoders},
    }
    for features, lineage in known.items():
        if kinship(training_encoders, lineage).counts:
            return f"{again} {features}"
    images = next((summary.data for _, summary in chosen if summary.data), None) or "SPEC"
    if all(encoder is not None and encoder.family != MAE_RESNET for encoder in training_encoders):
        train = f"driftkit train --objective classifier --preset cpu --data {images} --output outputs/classifier"
        return f"{train}; {again} encoder:outputs/classifier"
    return f"{again} dinov2" if kinship(training_encoders, DINOV2_LINEAGE).counts else None


def _document(
    found: Found,
    tables: Sequence[ScoreTable],
    pairs: Sequence[Pair],
    speeds: Sequence[Speed],
    settings: SpeedSettings | None,
    notes: list[str],
    figures: Mapping[str, Sequence[Figure]],
    records: list[dict[str, Any]],
    pictures: Pictures,
) -> dict[str, Any]:
    runs = [summary for _, summary in found.generators]
    return {
        "format": FORMAT,
        "kind": "comparison",
        "driftkit": __version__,
        "created": now(),
        "findings": findings(tables, pairs, speeds, advice=_advice(found, pairs)) if tables else [],
        "cautions": cautions(tables, pairs, runs) if tables else [],
        "pairs": [asdict(pair) for pair in pairs],
        "runs": [asdict(r) for r in runs],
        "encoders": [asdict(r) for r in found.encoders],
        "differences": differences(runs),
        "skipped": found.skipped,
        "score_tables": [asdict(t) for t in tables],
        "records": records,
        "budgets": {t.key: [asdict(b) for b in (*training_budgets(t, runs), *nfe_budgets(t))] for t in tables},
        "speed": {
            "settings": settings.describe() if settings else None,
            "results": [{**asdict(s), "scaled": s.scaled} for s in speeds],
        },
        "notes": notes,
        "figures": {
            **{f.name: f"figures/{f.name}.png" for section in figures.values() for f in section},
            **{e.name: f"figures/{e.name}.webp" for e in pictures.evolutions},
        },
    }


def _write(
    output: Path,
    document: dict[str, Any],
    page: str,
    figures: Mapping[str, Sequence[Figure]],
    pictures: Pictures,
    table: str,
) -> Path:
    """Figures first, then the report, which never lacks what it names; at last what vouches for all of them."""
    with locked_folder(output, wait=True):
        return _write_files(output, document, page, figures, pictures, table)


def _write_files(
    output: Path,
    document: dict[str, Any],
    page: str,
    figures: Mapping[str, Sequence[Figure]],
    pictures: Pictures,
    table: str,
) -> Path:
    _disown(output)
    files = {f"{f.name}.png": f.png for section in figures.values() for f in section}
    files |= {f"{f.name}.svg": f.svg for section in figures.values() for f in section if f.svg}
    files |= {f"{e.name}.webp": e.animation for e in pictures.evolutions}
    for name, content in files.items():
        write_bytes(output / "figures" / name, content)
    _remove_stale(output, set(files))
    files = {f"figures/{name}": content for name, content in files.items()}
    files |= {"compare.csv": table.encode(), "report.html": page.encode()}
    write_bytes(output / "compare.csv", files["compare.csv"])
    write_bytes(output / "report.html", files["report.html"])
    digests = {name: {"sha256": sha256(content), "bytes": len(content)} for name, content in files.items()}
    write_json(output / "compare.json", {**document, "files": digests})
    return output / "report.html"


def _disown(output: Path) -> None:
    """An earlier comparison no longer vouches for its files, which are about to be replaced one by one."""
    with contextlib.suppress(ArtifactError):  # nothing was compared here, or it cannot be told what
        before = read_json(output / "compare.json")
        if before.pop("files", None) is not None:
            write_json(output / "compare.json", before)


def _remove_stale(output: Path, written: set[str]) -> None:
    """Remove the figures of an earlier comparison in the same folder that this one does not have."""
    try:
        before = read_json(output / "compare.json").get("figures")
    except ArtifactError:
        return  # nothing was compared here, or it cannot be told what
    for named in mapping(before).values():
        path = output / "figures" / Path(str(named)).name
        for stale in (path, path.with_suffix(".svg")):
            if stale.name not in written:
                stale.unlink(missing_ok=True)
