"""Running a pipeline: its stages one after another; what is unchanged is skipped.

A stage is skipped when its command line, its DRIFTKIT_* variables, the content of everything it reads, and driftkit's
version are those of its last completed run, and what it wrote still exists. A training stage whose steps alone have
grown resumes its run. When anything else has changed, or with `force`, the run that the pipeline itself made is renamed
to NAME.old-1 and trained again: hours of training are never removed.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from driftkit import __version__
from driftkit.config.layers import did_you_mean
from driftkit.config.pipeline_file import Pipeline, Stage
from driftkit.config.weights_name import split_weights
from driftkit.datasets.containers import open_container
from driftkit.datasets.packs import pack_path
from driftkit.datasets.shards import Shards, is_shards
from driftkit.encoders.encoder_config import split_settings
from driftkit.errors import ArtifactError, BusyError, DriftkitError, InterruptedRunError, UsageError
from driftkit.runtime.environment import return_freed_memory
from driftkit.runtime.progress import duration, phase, within
from driftkit.runtime.signals import STOP_SIGNALS, exit_code
from driftkit.runtime.terminal import say
from driftkit.storage.files import digest_json, sha256_file
from driftkit.storage.lock import holder_of, locked_file
from driftkit.storage.records import Record
from driftkit.storage.run_folder import Run

Execute = Callable[[Sequence[str]], Any]
"""Runs one driftkit command line in this process and returns its document."""

Report = Callable[[int, Stage, str, float, str], None]
"""Called with number, stage, "runs", "skipped" or "done", seconds, and words on the time left in all, or none."""


class StageRecord(BaseModel):
    """The last completed run of a stage."""

    name: str
    seconds: float
    command_line: list[str]
    fingerprint: str  # of everything that it follows from
    identity: str  # the same without training steps and driftkit's version: what a run shares with its continuation
    result: Any = None  # the document that its command printed
    products: list[str]  # paths without which it has to run again


class PipelineRecord(Record):
    """What is done of a pipeline: `pipeline.json` in its output folder."""

    kind: ClassVar[str] = "pipeline"
    name: str
    stages: dict[str, StageRecord] = Field(default_factory=dict)


def run_pipeline(
    pipeline: Pipeline,
    execute: Execute,
    *,
    only: Sequence[str] = (),
    force: bool = False,
    report: Report = lambda number, stage, state, seconds, left: None,
) -> list[dict[str, Any]]:
    """Run the stages in order.

    Args:
        execute: runs one driftkit command line in this process.
        only: names of the stages to run; empty: all.
        force: run stages that are done, too.

    Returns:
        One row per stage: name, state (done or skipped), command line, and, where it ran, seconds and result.

    Raises:
        BusyError: another process runs the pipeline.
        DriftkitError: a stage failed; the earlier ones stay done.
    """
    require_stages(pipeline, only)
    rows: list[dict[str, Any]] = []
    count = len(pipeline.stages)
    with locked_file(_record_path(pipeline), wait=False):
        forecast = Forecast(pipeline, _recorded(pipeline), only=only, force=force)
        for number, stage in enumerate(pipeline.stages, start=1):
            if only and stage.name not in only:
                continue
            row: dict[str, Any] = {"name": stage.name, "state": "skipped", "command_line": stage.command_line()}
            with phase(f"stage {number} of {count}: looking at what {stage.name} reads"):
                runs = force or not is_done(pipeline, stage)
            if runs:
                forecast.begins(stage)
                report(number, stage, "runs", 0.0, forecast.words(stage))
                where = f"stage {number} of {count}"

                def in_all(seconds: float | None, stage: Stage = stage, where: str = where) -> str:
                    return ", ".join(filter(None, (where, forecast.words(stage, seconds=seconds))))

                with within(in_all):
                    record = _run_stage(pipeline, stage, execute, force=force)
                forecast.took(stage, record.seconds)
                row |= {"state": "done", "seconds": record.seconds, "result": record.result}
            report(number, stage, str(row["state"]), row.get("seconds", 0.0), "")
            rows.append(row)
    return rows


class Forecast:
    """How long the stages of a pipeline take that still have to run, as far as anything is known about it.

    A stage takes as long as its last completed run did, or where its settings are new as stages of its command take on
    average. One whose settings are those of its last run counts as unchanged, unless it reads what a stage that runs
    writes: whether it really is shows when it is its turn.
    """

    def __init__(
        self, pipeline: Pipeline, recorded: Mapping[str, StageRecord], *, only: Sequence[str] = (), force: bool = False
    ):
        self.stages = [stage for stage in pipeline.stages if not only or stage.name in only]
        self.recorded, self.force = recorded, force
        self.written: set[str] = set()  # by the stages that have run
        self.begun = time.monotonic()  # the running stage
        self.seconds: dict[str, list[float]] = {}  # that stages of a command took
        for stage in pipeline.stages:
            if stage.name in recorded:
                self.took(stage, recorded[stage.name].seconds)

    def took(self, stage: Stage, seconds: float) -> None:
        """A stage has run for so long."""
        self.seconds.setdefault(stage.command, []).append(seconds)

    def begins(self, stage: Stage) -> None:
        """A stage runs from now on."""
        self.begun = time.monotonic()
        self.written |= _written(stage)

    def expected(self, stage: Stage) -> float | None:
        """Seconds that a stage takes when it runs; None where nothing is known."""
        record, others = self.recorded.get(stage.name), self.seconds.get(stage.command)
        if record is not None and record.command_line == stage.command_line():
            return record.seconds
        return sum(others) / len(others) if others else None

    def words(self, stage: Stage, *, seconds: float | None = None) -> str:
        """For example "about 4 min left in all", or "at least" so much; empty where nothing is known.

        Args:
            stage: the one that runs.
            seconds: left of it; None: what it takes by itself, less what has passed since it began.
        """
        if seconds is None and (whole := self.expected(stage)) is not None:
            left = self.begun + whole - time.monotonic()
            seconds = left if left > 0 else None  # it takes longer than expected: nobody knows how much longer
        parts = [seconds]
        written = set(self.written)
        for later in self.stages[self.stages.index(stage) + 1 :]:
            record = self.recorded.get(later.name)
            unchanged = record is not None and record.command_line == later.command_line() and not self.force
            if unchanged and not any(place in text for text in later.inputs for place in written):
                continue
            written |= _written(later)
            parts.append(self.expected(later))
        known = [part for part in parts if part is not None]
        if not known:
            return ""
        return f"{'about' if len(known) == len(parts) else 'at least'} {duration(sum(known))} left in all"


def _written(stage: Stage) -> set[str]:
    """Where a stage writes, as others name it."""
    place = stage.value("--output") or (stage.arguments[0] if stage.command in ("sample", "fid") else None)
    return {place} if place else set()


def _run_stage(pipeline: Pipeline, stage: Stage, execute: Execute, *, force: bool) -> StageRecord:
    """Run one stage and record it as done."""
    started = time.monotonic()
    identity, before = _identity(stage), fingerprint(stage)
    unscored = fingerprint(stage, evaluations=False)
    arguments = _make_room(pipeline, stage, force=force)
    result = _launch(stage) if stage.nproc > 1 else execute([stage.command, *arguments])
    if stage.command == "compare" and fingerprint(stage, evaluations=False) == unscored:
        before = fingerprint(stage)  # with the evaluations that `compare --evaluate` has added itself
    record = StageRecord(
        name=stage.name,
        seconds=round(time.monotonic() - started, 3),
        command_line=stage.command_line(),
        fingerprint=before,
        identity=identity,
        result=result,
        products=_products(stage, result),
    )
    stages = {**_recorded(pipeline), stage.name: record}
    PipelineRecord(name=pipeline.name, stages=stages).write(_record_path(pipeline))
    return record


def require_stages(pipeline: Pipeline, names: Sequence[str]) -> None:
    """Refuse names that no stage has."""
    known = [stage.name for stage in pipeline.stages]
    for name in names:
        if name not in known:
            raise UsageError(f"`stage` {name}: {pipeline.name} has {', '.join(known)}{did_you_mean(name, known)}")


def is_done(pipeline: Pipeline, stage: Stage) -> bool:
    """Whether the stage's last completed run is still what it would do now."""
    record = _recorded(pipeline).get(stage.name)
    if record is None or record.fingerprint != fingerprint(stage):
        return False
    products = [Path(product) for product in record.products]
    if stage.command == "train" and any((product / "manifest.json").is_file() for product in products):
        return all(Run.open(product).checkpoints() for product in products)
    return bool(products) and all(product.exists() for product in products)


def _launch(stage: Stage) -> dict[str, Any]:
    """Start the stage by torchrun; gives the document that its first process prints."""
    as_json = [] if "--json" in stage.arguments else ["--json"]
    line = [sys.executable, "-m", "torch.distributed.run", *stage.command_line()[1:], *as_json]
    return_freed_memory()  # of the stages before, which those processes may need
    child = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    stopped: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        child.send_signal(number)

    # torchrun's workers live in sessions of their own: only torchrun can stop them.
    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        printed, _ = child.communicate()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stopped:
        raise InterruptedRunError(f"stage {stage.name} was stopped; the same command resumes it", exit_code(stopped[0]))
    shown = shlex.join(stage.command_line())
    if child.returncode:
        raise DriftkitError(f"stage {stage.name} failed with exit code {child.returncode}: {shown}")
    try:
        return dict(json.loads(printed))
    except ValueError:
        raise DriftkitError(f"stage {stage.name} printed no JSON document but {printed[:80]!r}: {shown}") from None


def _make_room(pipeline: Pipeline, stage: Stage, *, force: bool) -> list[str]:
    """Clear the way for a stage that runs again with other settings; gives its arguments.

    Only what the pipeline's record says it wrote itself is touched.
    """
    arguments, output = list(stage.arguments), stage.value("--output")
    record = _recorded(pipeline).get(stage.name)
    if record is None or output is None or output not in record.products:
        return arguments
    if stage.command == "data" and "--force" not in arguments:
        return [*arguments, "--force"]
    if stage.command == "train" and Path(output).exists():
        run = Run.open(Path(output))
        reached = max((checkpoint.step for checkpoint in run.checkpoints()), default=0)
        steps = int(stage.value("--steps") or reached)
        if force or record.identity != _identity(stage) or reached > steps or _ends_elsewhere(run, stage):
            _set_aside(run.path)
    return arguments


def _ends_elsewhere(run: Run, stage: Stage) -> bool:
    """Whether a learning rate that falls towards the last step belongs to another one than the stage's."""
    trainer, steps = run.config_section("trainer"), stage.value("--steps")
    return trainer.get("schedule") != "constant" and steps is not None and int(steps) != trainer.get("steps")


def _set_aside(path: Path) -> None:
    """Rename a run to the first free NAME.old-N next to it; a BusyError where it is being trained."""
    if holder := holder_of(path):
        raise BusyError(f"{path} was made with other settings and is being written by {holder}; stop that first")
    number = 1
    while (old := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(old)
    say(f"{path} was made with other settings: kept as {old}")


def _identity(stage: Stage) -> str:
    """What a run must share with the stage to be resumed: everything but the steps and driftkit's version."""
    arguments = list(stage.arguments)
    if "--steps" in arguments:
        at = arguments.index("--steps")
        del arguments[at : at + 2]
    return fingerprint(replace(stage, arguments=tuple(arguments)), version="any")


def fingerprint(stage: Stage, *, version: str = __version__, evaluations: bool = True) -> str:
    """Digest of the command line, driftkit's version and the content of everything the stage reads.

    `evaluations`: whether those of the runs that a `compare` stage reads count.
    """
    prefix = f"DRIFTKIT_{stage.command.upper().replace('-', '_')}_"
    evaluations = evaluations and stage.command == "compare"
    return digest_json(
        {
            "arguments": [stage.command, *stage.arguments],
            "nproc": stage.nproc,
            "driftkit": version,
            "environment": {key: value for key, value in sorted(os.environ.items()) if key.startswith(prefix)},
            "inputs": {path: _content(path, evaluations=evaluations) for path in stage.inputs},
        }
    )


def _content(path: str, *, evaluations: bool) -> str:
    """What identifies an input's content: a run's weights (and scores), a file's bytes; names stand for themselves."""
    place, _, query = path.removeprefix("encoder:").partition("?")
    weights = {key: value for key, _, value in split_settings(query)}.get(
        "weights"
    )  # of an encoder that carries its own settings
    content = _content_of(Path(place), evaluations=evaluations)
    return digest_json([content, _content_of(Path(weights), evaluations=False)]) if weights else content


def _content_of(place: Path, *, evaluations: bool) -> str:
    """The same of a plain path."""
    if not place.exists() and is_shards(place):
        return Shards(place).digest()
    if not place.exists():
        place = Path(split_weights(str(place))[0])
    if place.is_file():
        return sha256_file(place)
    if not place.exists():
        pack = pack_path(place)
        return sha256_file(pack) if pack.is_file() else "absent"
    if not (place / "manifest.json").is_file():
        return open_container(place).digest()
    run = Run.open(place)
    parts = {"config": digest_json(run.manifest().config)}
    for checkpoint in run.checkpoints()[-1:]:
        parts |= {file.name: sha256_file(file) for file in sorted(checkpoint.path.glob("*.safetensors"))}
    if evaluations:
        parts |= {file.name: sha256_file(file) for file in run.evaluation_paths()}
    return digest_json(parts)


def _products(stage: Stage, result: Any) -> list[str]:
    """Paths whose absence means that the stage has to run again."""
    keys = ("run", "samples", "evaluation", "report", "pack", "path")
    documents = [result, *(result.get("evaluations") or [])] if isinstance(result, dict) else []
    named = [document[key] for document in documents for key in keys if isinstance(document.get(key), str)]
    named += [output] if (output := stage.value("--output")) else []
    # A command that only prints (probe-encoder) is done once it has printed: its record is its product.
    return sorted({name for name in named if Path(name).exists()}) or ["."]


def _record_path(pipeline: Pipeline) -> Path:
    return pipeline.output / "pipeline.json"


def _recorded(pipeline: Pipeline) -> dict[str, StageRecord]:
    try:
        return PipelineRecord.read(_record_path(pipeline)).stages
    except ArtifactError:
        return {}  # nothing recorded, or unreadable: then every stage runs again
