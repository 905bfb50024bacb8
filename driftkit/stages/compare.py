"""Comparing: from runs to tables, compare.json, compare.csv, figures and one report.html."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from driftkit import __version__
from driftkit.comparison.agreement import pairs_of, scored_runs
from driftkit.comparison.charts import all_charts, colour_of
from driftkit.comparison.compare_config import CompareConfig
from driftkit.comparison.conclusions import advice_for, cautions, findings
from driftkit.comparison.missing_scores import fill_missing
from driftkit.comparison.pictures import make_pictures
from driftkit.comparison.report import ComparisonRecord, SpeedSection, render_report, write_comparison
from driftkit.comparison.run_summary import OpenedRuns, differences, equality_notes, open_runs
from driftkit.comparison.score_table import (
    ScoreTable,
    nfe_budgets,
    score_records,
    score_tables,
    to_csv,
    training_budgets,
)
from driftkit.comparison.speed import SpeedSettings, time_runs
from driftkit.datasets.sources import resolve
from driftkit.errors import NotFoundError, UsageError
from driftkit.methods.registry import generators
from driftkit.runtime.device import choose_threads, resolve_device
from driftkit.runtime.progress import Report, no_report, phase
from driftkit.scoring.evaluation_record import read_evaluations
from driftkit.storage.lock import locked_folder
from driftkit.storage.run_folder import now
from driftkit.storage.writable import require_writable


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison, and where its report is."""

    record: ComparisonRecord
    report: Path


def compare(
    paths: Sequence[Path],
    config: CompareConfig,
    *,
    report: Report = no_report,
    notify: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compare runs and write report.html, compare.json, compare.csv and the figures; paths of other things are skipped.

    Raises:
        NotFoundError: none of the paths is a run that generates images.
        UsageError: settings that do not fit each other.
        ArtifactError: the extractor or the reference is absent.
    """
    _require_consistent(config)
    device = resolve_device(config.device)
    with phase("reading the runs"):
        opened = open_runs(paths)
    runs = opened.generators
    if not runs:
        reasons = "; ".join(f"{s['path']}: {s['reason']}" for s in opened.skipped) or "encoders generate no images"
        only = "only encoders are" if opened.encoders else "nothing is"
        raise NotFoundError(f"{only} left to compare ({reasons}); name runs of {' or '.join(generators())}")

    choose_threads(device)
    problems = fill_missing(runs, config, device, report, notify) if config.evaluate else []
    tables = _tables(opened, problems)
    pairs = pairs_of(tables, scored_runs(tables))
    notes = equality_notes(runs, scored=bool(tables)) + problems

    settings = SpeedSettings.of(config, device) if config.speed else None
    speeds = time_runs(runs, tables, settings, notes, report) if settings else []

    pictures = make_pictures(runs, config, device, report)
    colours = colour_of([r.label for r in runs])
    with phase("drawing charts"):
        charts = all_charts(runs, tables, speeds, colours)
    figures = {**charts, "grids": pictures.grids, "neighbours": pictures.neighbours}
    all_figures = [figure for section in figures.values() for figure in section]
    content = {f"figures/{f.name}.png": f.png for f in all_figures}
    content |= {f"figures/{e.name}.webp": e.animation for e in pictures.evolutions}

    record = ComparisonRecord(
        driftkit=__version__,
        created=now(),
        findings=findings(tables, pairs, speeds, advice=advice_for(opened, pairs)) if tables else [],
        cautions=cautions(tables, pairs, runs) if tables else [],
        pairs=pairs,
        runs=runs,
        encoders=opened.encoders,
        differences=differences(runs),
        skipped=opened.skipped,
        score_tables=tables,
        records=score_records(tables, runs, speeds),
        budgets={t.key: [*training_budgets(t, runs), *nfe_budgets(t)] for t in tables},
        speed=SpeedSection(settings=settings.describe() if settings else None, results=speeds),
        notes=notes + pictures.notes,
        figures={Path(name).stem: name for name in content},
    )
    with phase("writing the report"):
        page = render_report(record, figures=figures, evolutions=pictures.evolutions, colours=colours)
    content |= {f"figures/{f.name}.svg": f.svg for f in all_figures if f.svg}
    content |= {"compare.csv": to_csv(record.records).encode(), "report.html": page.encode()}
    with locked_folder(config.output, wait=True):
        return Comparison(write_comparison(config.output, record, content), config.output / "report.html")


def _require_consistent(config: CompareConfig) -> None:
    """Refuse settings that do not fit each other, or an output that cannot be written, before anything is read."""
    require_writable(config.output, "`output`", folder=True)
    if config.evaluate and config.reference is None:
        raise UsageError("`evaluate`: expected `reference` SPEC, the real images to score against")
    if config.reference is not None and not config.evaluate:
        raise UsageError(f"`reference` {config.reference}: scores are made with `evaluate` only; add it")
    if len(config.extractor) > 1 and config.extractor_weights is not None:
        names = ", ".join(config.extractor)
        raise UsageError(f"`extractor_weights`: belongs to one extractor, got {names}; give one `extractor`")
    if config.neighbours and config.neighbours_in is not None:
        resolve(config.neighbours_in, allow_download=False)


def _tables(opened: OpenedRuns, problems: list[str]) -> list[ScoreTable]:
    """The score tables; `problems` gets a sentence for every file that is no evaluation and every unscored run."""
    evaluations = []
    for run in opened.generators:
        records, unreadable = read_evaluations(run.folder)
        evaluations += [(run.label, record) for record in records]
        problems += [f"skipped: {problem}" for problem in unreadable]
    tables = score_tables(evaluations, opened.generators)
    if len(tables) > 1:
        problems.append(f"there are {len(tables)} score tables: their evaluator, reference or count of images differs")
    problems += [
        f"{run.label} has no score yet; `driftkit fid {run.path} --reference SPEC` makes one"
        for run in opened.generators
        if not any(table.has(run.label) for table in tables)
    ]
    return tables
