"""Timing the samplers of the runs that are compared."""

from collections.abc import Sequence

from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_table import ScoreTable
from driftkit.comparison.speed import Speed, SpeedCase, SpeedSettings, measure_speeds
from driftkit.errors import DriftkitError
from driftkit.runtime.progress import Report
from driftkit.storage.run_folder import Run

BUSY = 1.5  # slowest over fastest timing above which the report says so


def time_runs(
    generators: Sequence[tuple[Run, RunSummary]],
    tables: Sequence[ScoreTable],
    settings: SpeedSettings,
    notes: list[str],
    report: Report,
) -> list[Speed]:
    """Images per second of every run, in each way in which it was scored and at its default sampler's usual NFE.

    Args:
        generators: runs that generate images.
        tables: which ways were scored.
        settings: what is held equal.
        notes: gets a sentence for every run that could not be timed, and one where the machine was busy.
        report: told how far it is.
    """
    cases: list[SpeedCase] = []
    for run, summary in generators:
        try:
            cases += _speed_cases(run, summary, tables, settings)
        except DriftkitError as error:
            notes.append(f"the speed of {summary.label} was not measured: {error}")
    speeds = measure_speeds(cases, settings, advance=lambda: report("speed", 1, settings.repeats))
    busy = [speed for speed in speeds if speed.unevenness > BUSY]
    if busy:
        worst = max(busy, key=lambda s: s.unevenness)
        notes.append(
            f"{len(busy)} of {len(speeds)} timings varied by more than {BUSY}-fold, that of {worst.run} at {worst.nfe} "
            f"NFE {worst.unevenness:.1f}-fold: the machine was busy"
        )
    return speeds


def _speed_cases(
    run: Run, summary: RunSummary, tables: Sequence[ScoreTable], settings: SpeedSettings
) -> list[SpeedCase]:
    """What is timed of a run: its default sampler, and every way in which it was scored."""
    from driftkit.methods.registry import METHODS, build_sampler
    from driftkit.models.registry import to_device
    from driftkit.training.sampling import load_network

    network, config, _ = load_network(run)
    network = to_device(network, config.model, settings.device)
    size = config.data.image_size
    assert size is not None, "a saved config names the image size"
    samplers = METHODS[config.objective.name].samplers
    ways = {(name, nfe): None for name, spec in samplers.items() for nfe in spec.speed_nfes}
    for row in (row for table in tables for row in (*table.rows, *table.apart) if row.run == summary.label):
        name = (row.sampler or "").split(" ")[0]
        if name in samplers and row.nfe:
            ways[name, row.nfe] = None
    return [
        SpeedCase(
            summary.label, name, network, build_sampler(config.objective, name)[1], nfe, size, share=1 / len(ways)
        )
        for name, nfe in ways
    ]
