"""Comparing: from runs to a table, compare.json, figures and one report.html."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftkit import __version__
from driftkit.artifacts.files import atomic_path, write_json
from driftkit.artifacts.images import SampleSet, read_samples
from driftkit.artifacts.run import Run, now
from driftkit.errors import DriftkitError, MissingError
from driftkit.evaluation.figures import (
    Figure,
    colour_of,
    curve_figure,
    grid_figure,
    history_figure,
    on_white,
    score_figure,
    speed_figure,
)
from driftkit.evaluation.report import render_report
from driftkit.evaluation.speed import Speed, SpeedCase, SpeedSettings, measure_speeds
from driftkit.evaluation.table import (
    RunSummary,
    ScoreTable,
    read_evaluations,
    score_tables,
    summarise,
    unique_labels,
)

FORMAT = 1
GRID_IMAGES = 64
# What the default sampler of a method is timed at.
SPEED_NFE: Mapping[str, tuple[int, ...]] = {"one-step": (1,), "ddim": (10, 50, 100)}

BUSY = 1.5  # slowest over fastest timing above which the report says so

Report = Callable[[str, int, int], None]
"""(what is being worked on, done since the last call, all)"""


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
    speed: SpeedSettings | None = None,
    device: torch.device | None = None,
    report: Report = lambda what, done, total: None,
) -> Comparison:
    """Compare runs and write report.html, compare.json and the figures into `output`.

    Args:
        paths: run folders; those that are none are left out and named.
        output: folder of the report; made if it is not there.
        speed: settings under which samplers are timed; None measures nothing.
        device: where samples are made for runs that have none.
        report: told how far it is.

    Raises:
        MissingError: none of the paths is a run that generates images.
    """
    found = collect(paths)
    if not found.generators:
        reasons = "; ".join(f"{s['path']}: {s['reason']}" for s in found.skipped)
        only = "only encoders are" if found.encoders else "nothing is"
        raise MissingError(
            f"{only} left to compare ({reasons or 'encoders generate no images'}); name runs of drift or ddpm"
        )
    runs = [summary for _, summary in found.generators]
    notes = equality_notes(runs)
    scored = []
    for run, summary in found.generators:
        evaluations, problems = read_evaluations(run)
        scored += [(summary.label, document) for document in evaluations]
        notes += problems
    tables = score_tables(scored)
    if len(tables) > 1:
        notes.append(f"scores stand in {len(tables)} tables: their evaluator, reference or count of images differs")
    unscored = [r for r in runs if not _is_scored(r, tables)]
    notes += [f"{r.label} has no score yet: driftkit fid {r.path} --reference SPEC" for r in unscored]
    speeds = _speeds(found.generators, speed, notes, report) if speed else []
    colours = colour_of([r.label for r in runs])
    figures = _figures(found.generators, tables, speeds, colours, device or torch.device("cpu"), notes, report)
    document = _document(found, runs, tables, speeds, speed, notes, figures)
    page = render_report(
        document, runs=runs, encoders=found.encoders, tables=tables, speeds=speeds, figures=figures, colours=colours
    )
    path = _write(output, document, page, figures)
    return Comparison(document, path, runs, found.encoders, tables, speeds)


def collect(paths: Sequence[Path]) -> Found:
    """Tell generators, encoders and everything else apart; the same folder given twice counts once."""
    from driftkit.objectives.registry import OBJECTIVES

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
        if summary.method not in OBJECTIVES:
            found.skipped.append({"path": str(run.path), "reason": f"unknown objective {summary.method!r}"})
        elif OBJECTIVES[summary.method].samplers:
            found.generators.append((run, summary))
        else:
            found.encoders.append(summary)
    return found


def equality_notes(runs: Sequence[RunSummary]) -> list[str]:
    """Sentences on what the runs do not have in common, and the warnings of each."""
    notes = [f"{run.label}: {warning}" for run in runs for warning in run.warnings]
    for what, values in (
        ("training images", {r.data_digest or r.data for r in runs}),
        ("image sizes", {r.image_size for r in runs}),
        ("sizes of network", {r.parameters for r in runs}),
        ("numbers of images seen", {r.images_seen for r in runs}),
    ):
        if len(values) > 1:
            notes.append(f"the runs have different {what}; differences between them are not those of the methods alone")
    return notes


def _is_scored(run: RunSummary, tables: Sequence[ScoreTable]) -> bool:
    return any(row.run == run.label for table in tables for row in table.rows)


def _speeds(
    generators: Sequence[tuple[Run, RunSummary]], settings: SpeedSettings, notes: list[str], report: Report
) -> list[Speed]:
    from driftkit.objectives.registry import build_sampler
    from driftkit.stages.sample import load_network

    cases = []
    for run, summary in generators:
        try:
            network, config, _ = load_network(run)
            name, sampler = build_sampler(config.objective, None)
        except DriftkitError as error:
            notes.append(f"the speed of {summary.label} was not measured: {error}")
            continue
        network = network.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        size = config.data.image_size
        assert size is not None, "a saved config names the image size"
        cases += [SpeedCase(summary.label, name, network, sampler, nfe, size) for nfe in SPEED_NFE[name]]
    speeds = measure_speeds(cases, settings, advance=lambda: report("speed", 1, settings.repeats))
    for speed in speeds:
        if speed.unevenness > BUSY:
            notes.append(
                f"timings of {speed.run} at {speed.nfe} NFE varied {speed.unevenness:.1f}-fold: the machine was busy"
            )
    return speeds


def _figures(
    generators: Sequence[tuple[Run, RunSummary]],
    tables: Sequence[ScoreTable],
    speeds: Sequence[Speed],
    colours: Mapping[str, int],
    device: torch.device,
    notes: list[str],
    report: Report,
) -> dict[str, list[Figure]]:
    """All pictures by section of the report."""
    runs = [summary for _, summary in generators]
    drifting = [r for r in runs if r.drift_norm is not None]
    regressing = [r for r in runs if r.drift_norm is None]
    curves = [
        curve_figure(drifting, "drift_norm", name="drift-norm", ylabel="drift norm", colours=colours,
                     caption="Drift norm: how far real and generated features still pull apart."),
        curve_figure(regressing, "loss", name="loss", ylabel="loss", colours=colours,
                     caption="Loss of the runs that minimise one (DDPM: squared error of the predicted noise)."),
        curve_figure(drifting, "loss", name="drift-loss", ylabel="normalised drifting loss", colours=colours,
                     from_zero=True,
                     caption="Normalised drifting loss: flat by construction, shown so that nobody waits for it."),
    ]  # fmt: skip
    sections = {"curves": [c for c in curves if c], "speed": [f for f in [speed_figure(speeds, colours=colours)] if f]}
    for table in tables:
        pictures = [score_figure(table, colours=colours)]
        pictures += [f for axis in ("nfe", "step") if (f := history_figure(table, axis, colours=colours))]
        sections[table.key] = pictures
    sections["grids"] = []
    for number, (run, summary) in enumerate(generators, start=1):
        grid = _grid(run, summary, number, device, notes)
        sections["grids"] += [grid] if grid else []
        report("grids", 1, len(generators))
    return sections


def _grid(run: Run, summary: RunSummary, number: int, device: torch.device, notes: list[str]) -> Figure | None:
    try:
        images, info = _sample_images(run, device)
    except DriftkitError as error:
        notes.append(f"{summary.label} has no grid: {error}")
        return None
    sampler, nfe, weights, step, seed = (info.get(key) for key in ("sampler", "nfe", "weights", "step", "seed"))
    how = f"{sampler}, {nfe} NFE, {weights} weights, step {step}, seed {seed}"
    shown = min(GRID_IMAGES, len(images))
    return grid_figure(
        images,
        name=f"samples-{number}",
        alt=f"{shown} uncurated samples of {summary.label} ({how}).",
        caption=f"{summary.label}: {how}",
        count=GRID_IMAGES,
    )


def _sample_images(run: Run, device: torch.device) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """Samples that lie in the run, of the lowest seed and the last step; else new ones with seed 0."""
    candidates: list[tuple[int, int, int, SampleSet]] = []
    for path in sorted((run.path / "samples").glob("*.safetensors")):
        try:
            samples = read_samples(path)
        except MissingError:
            continue  # a file of someone else's; the run's own are made anew if none is left
        seed, step = samples.info.get("seed"), samples.info.get("step")
        if isinstance(seed, int) and isinstance(step, int):
            candidates.append((seed, -step, len(candidates), samples))
    if candidates:
        samples = min(candidates, key=lambda c: c[:3])[3]
        return samples.images, samples.info
    from driftkit.stages.sample import generate

    return generate(run, num_images=GRID_IMAGES, seed=0, weights="ema", batch_size=GRID_IMAGES, device=device)


def _document(
    found: Found,
    runs: Sequence[RunSummary],
    tables: Sequence[ScoreTable],
    speeds: Sequence[Speed],
    settings: SpeedSettings | None,
    notes: list[str],
    figures: Mapping[str, Sequence[Figure]],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": "comparison",
        "driftkit": __version__,
        "created": now(),
        "runs": [asdict(r) for r in runs],
        "encoders": [asdict(r) for r in found.encoders],
        "skipped": found.skipped,
        "score_tables": [asdict(t) for t in tables],
        "speed": {
            "settings": settings.describe() if settings else None,
            "results": [{**asdict(s), "scaled": s.scaled} for s in speeds],
        },
        "notes": notes,
        "figures": {f.name: f"figures/{f.name}.png" for section in figures.values() for f in section},
    }


def _write(output: Path, document: dict[str, Any], page: str, figures: Mapping[str, Sequence[Figure]]) -> Path:
    """Figures first and the report last, so that a report never lacks what it names."""
    for section in figures.values():
        for figure in section:
            with atomic_path(output / "figures" / f"{figure.name}.png") as temporary:
                temporary.write_bytes(on_white(figure.light))
    write_json(output / "compare.json", document)
    with atomic_path(output / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output / "report.html"
