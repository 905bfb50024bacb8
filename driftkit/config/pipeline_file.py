"""Pipeline files: TOML tables of stages, each one command with its options.

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
default = { tau = 0.05 }            # of rows that are tables: what they leave out
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from driftkit.config.layers import did_you_mean, flatten, read_toml, validate
from driftkit.config.places import EXPANDED, expand_place
from driftkit.config.settings import ONE_OR_MORE, Option, Settings
from driftkit.errors import UsageError

# The positional argument of each command, as a stage names it.
POSITIONAL = {
    "train": None, "sample": "run", "fid": "target", "compare": "runs", "export": "run", "data": "spec",
    "probe-encoder": "encoder", "toy": "toys",
}  # fmt: skip
# Keys whose values are read by the stage, so that a change of their content makes it run again.
READ_KEYS = {
    "run", "target", "runs", "encoder", "data", "reference", "spec", "extractor", "encoder_weights",
    "extractor_weights", "config", "training", "neighbours_in", "init_from", "toys", "cluster_encoder",
}  # fmt: skip
WRITTEN_KEYS = {"output", "grid", "write_statistics"}
DISTRIBUTED = ("train", "fid")
"""Commands whose work several processes share."""

PANEL = "What to run"

_PLACEHOLDER = re.compile(r"\{[A-Za-z_]+\}")


class RunConfig(Settings):
    """Settings of `driftkit run`."""

    output: Annotated[Path | None, EXPANDED, Option(PANEL, ("--output", "-o"), default="the file's own")] = Field(
        None, description="folder that {output} stands for"
    )
    stage: Annotated[tuple[str, ...], ONE_OR_MORE, Option(PANEL)] = Field(
        (), description="run only the stage of this name; repeatable"
    )
    nproc: Annotated[int | None, Option(PANEL, default="the file's own")] = Field(
        None, ge=1, description="start every train and fid stage by torchrun with this many processes"
    )
    force: Annotated[bool, Option(PANEL)] = Field(False, description="run all stages, done or not")
    dry_run: Annotated[bool, Option(PANEL)] = Field(
        False, description="print every stage's command and whether it would run"
    )


@dataclass(frozen=True)
class Stage:
    """One command of a pipeline."""

    name: str
    command: str
    arguments: tuple[str, ...]  # words after the command
    inputs: tuple[str, ...]  # paths and specs that it reads
    nproc: int = 1  # processes that torchrun starts; 1: no torchrun

    def command_line(self, nproc: int | None = None) -> list[str]:
        """What one would type to run it alone, with another number of processes if that is given."""
        count = nproc or self.nproc
        program = ["torchrun", f"--nproc-per-node={count}", "-m", "driftkit"] if count > 1 else ["driftkit"]
        return [*program, self.command, *self.arguments]

    def value(self, option: str) -> str | None:
        """The value of an option among the arguments; None where it is absent."""
        return self.arguments[self.arguments.index(option) + 1] if option in self.arguments else None


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline file."""

    name: str
    output: Path
    stages: tuple[Stage, ...]


class _StageTable(Settings):
    """One [[stage]] as the file has it; further keys are options of its command."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str, Field(min_length=1)]
    command: str
    nproc: Annotated[int, Field(ge=1, strict=True)] = 1
    default: dict[str, Any] = Field(default_factory=dict)
    each: list[Any] | None = Field(None, validate_default=True)
    set: dict[str, Any] = Field(default_factory=dict)

    @field_validator("each")
    @classmethod
    def _uniform(cls, each: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        default = info.data.get("default") or {}
        texts = all(isinstance(row, str) for row in each or ())
        tables = all(isinstance(row, dict) for row in each or ())
        keys = [{*default, *row} for row in each or ()] if tables else []
        same = tables and all(own == keys[0] for own in keys)
        if each is not None and (not each or not (texts or same) or (same and "output" in keys[0])):
            raise ValueError("expected texts, or tables with the same keys (not output)")
        if default and not (each and tables):
            raise ValueError("expected tables, whose missing keys default fills in")
        return each

    def rows(self) -> list[dict[str, Any]]:
        """For every row of `each` what its placeholders stand for; one row where there is no `each`."""
        if self.each is None:
            return [{}]
        return [{**self.default, **row} if isinstance(row, dict) else {"each": row} for row in self.each]


class _PipelineTable(Settings):
    name: str | None = None
    output: str | None = None
    stage: list[dict[str, Any]] = Field(default_factory=list)


def load_pipeline(path: Path, *, output: Path | None = None, nproc: int | None = None) -> Pipeline:
    """Read a pipeline file.

    Args:
        output: replaces the file's own `output`.
        nproc: processes of every stage that several can share, whatever the file says.

    Raises:
        NotFoundError: the file is absent.
        UsageError: it is no TOML, or keys, names or commands do not fit.
    """
    table = _checked(_PipelineTable, read_toml(path), str(path))
    if not table.stage:
        raise UsageError(f"{path}: expected at least one [[stage]] table")
    own = Path(_expanded(table.output, f"{path}: output")) if table.output else Path("outputs") / path.stem
    folder = output or own
    stages = []
    for number, values in enumerate(table.stage, start=1):
        where = f"{path}: stage {values.get('name') or number}"
        stage_table = _checked(_StageTable, values, where)
        for row in stage_table.rows():
            names = {key: _fill(value, {"output": str(folder)}) for key, value in row.items()}
            stages.append(_parse_stage(where, stage_table, {**names, "output": str(folder)}))
    if nproc is not None:
        stages = [replace(stage, nproc=nproc) if stage.command in DISTRIBUTED else stage for stage in stages]
    for name, count in Counter(stage.name for stage in stages).items():
        if count > 1:
            raise UsageError(f"{path}: two stages are called {name}; give each its own name")
    return Pipeline(table.name or path.stem, folder, tuple(stages))


def _checked(model: type[Any], values: dict[str, Any], where: str) -> Any:
    try:
        return validate(model, values, origins={})
    except UsageError as error:
        message = str(error).replace("`", "")  # these keys are no options of the running command
        raise UsageError(f"{where}: {message}") from None


def _parse_stage(where: str, table: _StageTable, names: dict[str, Any]) -> Stage:
    """One stage, with all placeholders filled in."""
    command, name = table.command, str(_fill(table.name, names))
    if command not in POSITIONAL:
        expected = f"expected one of {', '.join(POSITIONAL)}{did_you_mean(command, POSITIONAL)}"
        raise UsageError(f"{where}: command {command!r}, {expected}")
    if table.nproc > 1 and command not in DISTRIBUTED:
        raise UsageError(f"{where}: nproc {table.nproc}, expected 1; only {' and '.join(DISTRIBUTED)} take more")
    positional: list[str] = []
    options: list[str] = []
    inputs: list[str] = []
    for key, value in (table.model_extra or {}).items():
        values = [_fill(item, names) for item in (value if isinstance(value, list) else [value])]
        key, flag = key.replace("-", "_"), f"--{key.replace('_', '-')}"
        if key in READ_KEYS | WRITTEN_KEYS:
            values = [_expanded(str(item), f"{where}: {key}") for item in values]
        if key in READ_KEYS:
            inputs += map(str, values)
        if key == POSITIONAL[command]:
            positional += map(str, values)
        elif isinstance(value, bool):
            options.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            for item in values:
                options += [flag, str(item)]
    for setting, value in flatten(table.set).items():
        try:  # JSON is TOML for everything that a setting holds: numbers, booleans, strings and lists of them
            options += ["--set", f"{setting}={json.dumps(_fill(value, names))}"]
        except TypeError:
            raise UsageError(f"{where}: {setting}, expected a number, a text or a list of them, got {value}") from None
    arguments = (*positional, *options)
    for word in (name, *arguments):
        if unknown := _PLACEHOLDER.search(word):
            raise UsageError(f"{where}: {unknown[0]} stands for nothing; known: {', '.join(names)}")
    return Stage(name, command, arguments, tuple(inputs), table.nproc)


def _expanded(text: str, where: str) -> str:
    """The place that a text stands for; a UsageError says where it is."""
    try:
        return expand_place(text)
    except UsageError as error:
        raise UsageError(f"{where} {text}: {error}") from None


def _fill(value: Any, names: dict[str, Any]) -> Any:
    """A text with every {name} replaced; one that is a {name} alone becomes the value itself, say a number."""
    if not isinstance(value, str):
        return value
    for name, content in names.items():
        if value == f"{{{name}}}":
            return content
        value = value.replace(f"{{{name}}}", str(content))
    return value
