"""Staged pipelines: a TOML file of commands that run one after another; what is unchanged is skipped.

    name = "demo"
    output = "outputs/demo"            # {output} in any value stands for it

    [[stage]]
    name = "mae"                        # unique
    command = "train"                   # any driftkit command but run
    objective = "mae"                   # its options, under their long names
    output = "{output}/mae"
    set = { trainer.steps = 600 }       # becomes --set trainer.steps=600
    nproc = 8                           # start it by torchrun with 8 processes (train and fid)

    [[stage]]
    each = ["pixel", "mocov2"]          # a stage for each; {each} stands for it, in the name as well
    name = "drift-{each}"               # each = [{id = "a", tau = 0.1}, ...] gives {id} and {tau} instead
    command = "train"
    encoder = "{each}"
    output = "{output}/drift_{each}"

A stage is skipped when its command line, its DRIFTKIT_* variables, the content of everything it reads, and driftkit's
version are those of its last completed run, and what it wrote is still there. A training stage whose steps alone have
grown goes on with its run; when anything else has changed, or with `force`, the run that the pipeline itself made is
set aside as NAME.old-1 and trained anew: hours of training are never removed.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from driftkit import __version__
from driftkit.config.layers import did_you_mean, flatten, read_toml
from driftkit.datasets.containers import open_container
from driftkit.datasets.packs import pack_path
from driftkit.errors import (
    ArtifactError,
    BusyError,
    DriftkitError,
    InterruptedRunError,
    UsageError,
)
from driftkit.runtime.signals import STOP_SIGNALS, exit_code
from driftkit.runtime.terminal import say
from driftkit.storage.files import digest_json, read_json, sha256_file, write_json
from driftkit.storage.lock import holder_of, locked_file
from driftkit.storage.run_folder import Run

# The positional argument of each command, as a stage names it.
POSITIONAL = {
    "train": None,
    "sample": "run",
    "fid": "target",
    "compare": "runs",
    "export": "run",
    "data": "spec",
    "probe-encoder": "encoder",
}
# Keys whose values are read by the stage, so that a change of their content makes it run again.
READ_KEYS = (
    "run",
    "target",
    "runs",
    "encoder",
    "data",
    "reference",
    "spec",
    "features",
    "encoder-weights",
    "features-weights",
    "config",
)
PLACEHOLDER = re.compile(r"\{[A-Za-z_]+\}")
LAUNCH_KEYS = ("name", "command", "nproc")
SHARED = ("train", "fid")  # commands whose work several processes share


@dataclass(frozen=True)
class Stage:
    """One command of a pipeline."""

    name: str
    command: str
    arguments: tuple[str, ...]
    reads: tuple[str, ...]
    nproc: int = 1

    def command_line(self, nproc: int | None = None) -> list[str]:
        """What one would type to run it alone, with another number of processes if that is given."""
        count = nproc or self.nproc
        program = ["torchrun", f"--nproc-per-node={count}", "-m", "driftkit"] if count > 1 else ["driftkit"]
        return [*program, self.command, *self.arguments]


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline file."""

    name: str
    output: Path
    stages: tuple[Stage, ...]


Execute = Callable[[Sequence[str]], Any]
"""Runs one driftkit command line in this process and returns its document."""


def load_pipeline(path: Path, *, output: Path | None = None, nproc: int | None = None) -> Pipeline:
    """Read a pipeline file.

    Args:
        output: replaces the file's own `output`.
        nproc: processes of every stage that several can share, whatever the file says.

    Raises:
        ArtifactError: the file is not there.
        UsageError: it is no TOML, or keys, names or commands do not fit.
    """
    document = read_toml(path)
    unknown = set(document) - {"name", "output", "stage"}
    if unknown:
        key = sorted(unknown)[0]
        raise UsageError(f"{path}: unknown key {key}{did_you_mean(key, ('name', 'output', 'stage'))}")
    tables = document.get("stage")
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise UsageError(f"{path}: expected at least one [[stage]] table")
    for key in ("name", "output"):
        if not isinstance(document.get(key, "-"), str):
            raise UsageError(f"{path}: {key}, expected a text, got {document[key]!r}")
    folder = output or Path(document.get("output", f"outputs/{path.stem}"))
    known = {"output": str(folder)}
    stages = tuple(
        _parse_stage(path, number, row, {**{key: _fill(v, known) for key, v in names.items()}, **known})
        for number, table in enumerate(tables, start=1)
        for names, row in _each(path, number, table)
    )
    if nproc is not None:
        stages = tuple(replace(stage, nproc=nproc) if stage.command in SHARED else stage for stage in stages)
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path}: two stages are called {name}; give each its own name")
    return Pipeline(str(document.get("name", path.stem)), folder, stages)


def _each(path: Path, number: int, table: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """For every row of `each` what stands for its names, and the table without `each`; one row where there is none."""
    rest = {key: value for key, value in table.items() if key != "each"}
    if "each" not in table:
        return [({}, rest)]
    rows = table["each"]
    wanted = "texts, or tables with the same keys"
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path}: stage {number}: each, expected a list of {wanted}")
    if all(isinstance(row, str) for row in rows):
        return [({"each": row}, rest) for row in rows]
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows) or "output" in rows[0]:
        raise UsageError(f"{path}: stage {number}: each, expected a list of {wanted} (not output)")
    return [(row, rest) for row in rows]


def _parse_stage(path: Path, number: int, table: dict[str, Any], names: dict[str, Any]) -> Stage:
    name, command, nproc = _fill(table.get("name"), names), table.get("command"), table.get("nproc", 1)
    if not isinstance(name, str) or not name:
        raise UsageError(f"{path}: stage {number} needs a name")
    if not isinstance(command, str) or command not in POSITIONAL:
        raise UsageError(
            f"{path}: stage {name}: command {command!r}, expected one of {', '.join(POSITIONAL)}"
            f"{did_you_mean(str(command), POSITIONAL)}"
        )
    if not isinstance(nproc, int) or nproc < 1 or (nproc > 1 and command not in SHARED):
        raise UsageError(
            f"{path}: stage {name}: nproc {nproc!r}, expected a count of processes, for {' or '.join(SHARED)}"
        )
    arguments: list[str] = []
    reads: list[str] = []
    for key, value in table.items():
        if key in LAUNCH_KEYS:
            continue
        values = [_fill(v, names) for v in (value if isinstance(value, list) else [value])]
        option = key.replace("_", "-")
        if option in READ_KEYS:
            reads += [str(v) for v in values]
        if key == POSITIONAL[command]:
            arguments = [*map(str, values), *arguments]
        elif key == "set":
            if not isinstance(value, dict):
                raise UsageError(f"{path}: stage {name}: set, expected a table of config values")
            for setting, content in flatten(value).items():
                # JSON is TOML for everything a config holds: numbers, booleans, strings and lists of them
                try:
                    arguments += ["--set", f"{setting}={json.dumps(_fill(content, names))}"]
                except TypeError:
                    raise UsageError(
                        f"{path}: stage {name}: {setting}, expected a number, a text or a list of them, got {content}"
                    ) from None
        elif isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            for item in values:
                arguments += [f"--{option}", str(item)]
    for word in (name, *arguments):
        if unknown := PLACEHOLDER.search(word):
            raise UsageError(f"{path}: stage {name}: {unknown[0]} stands for nothing; known: {', '.join(names)}")
    return Stage(name, command, tuple(arguments), tuple(reads), nproc)


def _fill(value: Any, names: dict[str, Any]) -> Any:
    """A text with every {name} replaced; one that is a {name} alone becomes the value itself, say a number."""
    if not isinstance(value, str):
        return value
    for name, content in names.items():
        if value == f"{{{name}}}":
            return content
        value = value.replace(f"{{{name}}}", str(content))
    return value


def run_pipeline(
    pipeline: Pipeline,
    execute: Execute,
    *,
    only: Sequence[str] = (),
    force: bool = False,
    report: Callable[[int, Stage, str, float], None] = lambda number, stage, state, seconds: None,
) -> list[dict[str, Any]]:
    """Run the stages in order; the record of what is done lies in `pipeline.json` of the output folder.

    Args:
        execute: runs one driftkit command line in this process.
        only: names of the stages to run; empty: all.
        force: run stages that are done, too.
        report: told about every stage when it starts ("runs"), is "skipped" or "done".

    Returns:
        One record per stage: name, state (done or skipped), seconds, command line and result.

    Raises:
        BusyError: another process runs the pipeline.
        DriftkitError: a stage failed; the earlier ones stay done.
    """
    require_stages(pipeline, only)
    with locked_file(_state_path(pipeline), wait=False):
        return _run_stages(pipeline, execute, only, force, report)


def _run_stages(
    pipeline: Pipeline,
    execute: Execute,
    only: Sequence[str],
    force: bool,
    report: Callable[[int, Stage, str, float], None],
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number, stage in enumerate(pipeline.stages, start=1):
        if only and stage.name not in only:
            continue
        if not force and is_done(pipeline, stage):
            report(number, stage, "skipped", 0.0)
            records.append({"name": stage.name, "state": "skipped", "command_line": stage.command_line()})
            continue
        report(number, stage, "runs", 0.0)
        started = time.monotonic()
        identity = _identity(stage)
        before = fingerprint(stage)
        unscored = fingerprint(stage, evaluations=False) if stage.command == "compare" else None
        arguments = _make_room(pipeline, stage, force=force)
        result = _launch(stage) if stage.nproc > 1 else execute([stage.command, *arguments])
        seconds = round(time.monotonic() - started, 3)
        record: dict[str, Any] = {
            "name": stage.name,
            "state": "done",
            "seconds": seconds,
            "command_line": stage.command_line(),
        }
        products = _products(stage, result)
        if unscored is not None and fingerprint(stage, evaluations=False) == unscored:
            before = fingerprint(stage)  # with the evaluations that `compare --evaluate` has added itself
        _remember(pipeline, stage, before, {**record, "identity": identity, "result": result, "products": products})
        report(number, stage, "done", seconds)
        records.append({**record, "result": result})
    return records


def require_stages(pipeline: Pipeline, names: Sequence[str]) -> None:
    """Refuse names that no stage has.

    Raises:
        UsageError: names the first one, and the stages there are.
    """
    known = [stage.name for stage in pipeline.stages]
    for name in names:
        if name not in known:
            raise UsageError(f"--stage {name}: {pipeline.name} has {', '.join(known)}{did_you_mean(name, known)}")


def _launch(stage: Stage) -> dict[str, Any]:
    """Start the stage by torchrun; gives the document that its first process prints."""
    asked = [] if "--json" in stage.arguments else ["--json"]
    line = [sys.executable, "-m", "torch.distributed.run", *stage.command_line()[1:], *asked]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    stopped: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        child.send_signal(number)

    # torchrun's workers live in sessions of their own: only torchrun can stop them, so it is told and awaited.
    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        printed, _ = child.communicate()
        code = child.returncode
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stopped:
        raise InterruptedRunError(
            f"stage {stage.name} was stopped; the same command goes on with it", exit_code(stopped[0])
        )
    if code:
        raise DriftkitError(f"stage {stage.name} failed with exit code {code}: {shlex.join(stage.command_line())}")
    try:
        document = json.loads(printed)
    except ValueError:
        raise DriftkitError(
            f"stage {stage.name} printed no JSON document but {printed[:80]!r}: {shlex.join(stage.command_line())}"
        ) from None
    return dict(document)


def _make_room(pipeline: Pipeline, stage: Stage, *, force: bool) -> list[str]:
    """Clear the way for a stage that runs again with other settings; gives its arguments.

    Only what the pipeline's record says it wrote itself is touched.
    """
    arguments = list(stage.arguments)
    saved = _saved(pipeline).get(stage.name)
    if not isinstance(saved, dict):
        return arguments
    output = _output(stage)
    if output is None or str(output) not in saved.get("products", []):
        return arguments
    if stage.command == "data":
        return [*arguments, "--force"] if "--force" not in arguments else arguments
    if stage.command == "train" and output.exists():
        run = Run.open(output)
        reached = max((checkpoint.step for checkpoint in run.checkpoints()), default=0)
        if force or saved.get("identity") != _identity(stage) or reached > _steps(stage, reached):
            _set_aside(run.path)
    return arguments


def _set_aside(path: Path) -> None:
    """Rename a run to the first free NAME.old-N beside it.

    Raises:
        BusyError: it is being trained.
    """
    if holder := holder_of(path):
        raise BusyError(f"{path} was made with other settings and is being written by {holder}; stop that first")
    number = 1
    while (old := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(old)
    say(f"{path} was made with other settings: kept as {old}")


def _steps(stage: Stage, default: int) -> int:
    arguments = stage.arguments
    return int(arguments[arguments.index("--steps") + 1]) if "--steps" in arguments else default


def _output(stage: Stage) -> Path | None:
    if "--output" not in stage.arguments:
        return None
    return Path(stage.arguments[stage.arguments.index("--output") + 1])


def _identity(stage: Stage) -> str:
    """What a run must share with the stage to be gone on with: everything but the steps and driftkit's version."""
    arguments = list(stage.arguments)
    if "--steps" in arguments:
        at = arguments.index("--steps")
        del arguments[at : at + 2]
    return fingerprint(replace(stage, arguments=tuple(arguments)), version="any")


def fingerprint(stage: Stage, *, version: str = __version__, evaluations: bool = True) -> str:
    """Digest of the command line, driftkit's version and the content of everything the stage reads.

    Args:
        evaluations: whether those of the runs that a `compare` stage reads count.
    """
    return digest_json(
        {
            "arguments": [stage.command, *stage.arguments],
            "nproc": stage.nproc,
            "driftkit": version,
            "environment": {
                key: value
                for key, value in sorted(os.environ.items())
                if key.startswith(f"DRIFTKIT_{stage.command.upper().replace('-', '_')}_")
            },
            "reads": {
                path: _content(path, evaluations=evaluations and stage.command == "compare") for path in stage.reads
            },
        }
    )


def is_done(pipeline: Pipeline, stage: Stage) -> bool:
    """Whether the stage's last completed run is still what it would do now."""
    saved = _saved(pipeline).get(stage.name)
    if not isinstance(saved, dict) or saved.get("fingerprint") != fingerprint(stage):
        return False
    products = saved.get("products", [])
    if stage.command == "train" and any((Path(p) / "manifest.json").is_file() for p in products):
        return all(Run.open(Path(p)).checkpoints() for p in products)
    return bool(products) and all(Path(p).exists() for p in products)


def _content(path: str, *, evaluations: bool) -> str:
    """What identifies an input's content: a run's weights (and scores), a file's bytes; names stand for themselves."""
    place = Path(path.removeprefix("encoder:").split("?")[0])
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
        parts |= {f.name: sha256_file(f) for f in sorted(checkpoint.path.glob("*.safetensors"))}
    if evaluations:
        parts |= {f.name: sha256_file(f) for f in run.evaluation_paths()}
    return digest_json(parts)


def _products(stage: Stage, result: Any) -> list[str]:
    """Paths whose absence means that the stage has to run again."""
    keys = ("run", "samples", "evaluation", "report", "pack", "path")
    several = result.get("evaluations") if isinstance(result, dict) else None  # of several evaluators, one each
    documents = [d for d in (result, *(several or [])) if isinstance(d, dict)]
    named = [str(d[k]) for d in documents for k in keys if isinstance(d.get(k), str)]
    output = _output(stage)
    if output is not None:
        named.append(str(output))
    # A command that only prints (probe-encoder) is done once it has printed: its record is its product.
    return sorted({p for p in named if Path(p).exists()}) or ["."]


def _state_path(pipeline: Pipeline) -> Path:
    return pipeline.output / "pipeline.json"


def _saved(pipeline: Pipeline) -> dict[str, Any]:
    try:
        stages = read_json(_state_path(pipeline)).get("stages", {})
    except ArtifactError:
        return {}  # nothing recorded, or unreadable: then every stage runs again
    return stages if isinstance(stages, dict) else {}


def _remember(pipeline: Pipeline, stage: Stage, before: str, record: dict[str, Any]) -> None:
    stages = {**_saved(pipeline), stage.name: {**record, "fingerprint": before}}
    write_json(_state_path(pipeline), {"kind": "pipeline", "name": pipeline.name, "stages": stages})
