"""Options made from settings: a field's name, type, range, default and description become flag and help.

`with_settings` turns a function that takes settings into a command that takes their options, `--config` and `--set`.
All commands share one precedence: default < preset < --config < DRIFTKIT_COMMAND_OPTION variable < --set < option.
"""

import functools
import inspect
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from driftkit.cli.completion import BY_NAME, choices, runs, setting_keys
from driftkit.cli.output import option
from driftkit.config.layers import did_you_mean, merge, nest, parse_assignments
from driftkit.config.places import expand_place
from driftkit.config.settings import Option, option_fields, resolve_settings
from driftkit.errors import UsageError

FLAGS: dict[str, dict[str, str]] = {}
"""Command -> dotted key -> flag; filled by `with_settings`."""

CONFIG_PANEL = "Other settings"
METAVARS: dict[Any, str] = {int: "N", float: "NUMBER", Path: "PATH"}
GLOBAL_VARIABLES = {"DRIFTKIT_DATA_DIR"}  # that begin like those of a command
PLACE_VARIABLES = (*GLOBAL_VARIABLES, "DRIFTKIT_CACHE", "DRIFTKIT_INCEPTION_WEIGHTS")
_KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*)`")


@dataclass(frozen=True)
class Given:
    """What a command line sets, before it is resolved."""

    file: Path | None = None  # of `--config`
    environment: Mapping[str, Any] = field(default_factory=dict)  # nested values
    assignments: tuple[str, ...] = ()  # of `--set`
    options: Mapping[str, Any] = field(default_factory=dict)  # nested values

    def resolve(self, model: type[BaseModel]) -> Any:
        """Settings of a model that has no presets."""
        return resolve_settings(
            model, file=self.file, environment=self.environment, assignments=self.assignments, options=self.options
        )[0]


def with_settings(command: str, model: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for a command with a parameter `settings` (an instance of `model`) or `given` (a `Given`).

    Args:
        command: its name on the command line.
        model: whose option fields the command gets, where that parameter stands.
    """
    fields = list({key: (key, field, option) for key, field, option in option_fields(model)}.values())
    FLAGS[command] = {key: flags_of(key, option)[0] for key, _, option in fields}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        for name, flag in _explicit_flags(signature):
            FLAGS[command].setdefault(name, flag)
        place = "settings" if "settings" in signature.parameters else "given"

        @functools.wraps(function)
        def run(**values: Any) -> Any:
            given = _given(command, fields, values)
            return function(**values, **{place: given if place == "given" else given.resolve(model)})

        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.name == place:
                parameters += _parameters(model, fields)
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        # Typer reads both.
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _explicit_flags(signature: inspect.Signature) -> Iterator[tuple[str, str]]:
    """Name and flag of the options that the command has next to its settings."""
    for parameter in signature.parameters.values():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(info, typer.models.OptionInfo):
                flags = [str(word) for word in (info.default, *(info.param_decls or ()))]
                yield parameter.name, next(word for word in flags if word.startswith("--")).partition("/")[0]


def _parameters(model: type[BaseModel], fields: list[tuple[str, FieldInfo, Option]]) -> Iterator[inspect.Parameter]:
    for key, info, settings_option in fields:
        kind: Any = bool if settings_option.switch else _value_type(info)
        yield _keyword(_name(key), Annotated[kind | None, _typer_option(key, info, settings_option)])
    config = option("--config", help="TOML file with these settings.", panel=CONFIG_PANEL, metavar="FILE")
    yield _keyword("config", Annotated[Path | None, config])
    assignment = option(
        "--set",
        help="Any setting, as key=value or section.key=value; repeatable.",
        panel=CONFIG_PANEL,
        metavar="KEY=VALUE",
        autocompletion=setting_keys(model),
    )
    yield _keyword("set", Annotated[list[str] | None, assignment])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _name(key: str) -> str:
    """The parameter that carries a key."""
    return "option_" + key.replace(".", "__")


def flags_of(key: str, option: Option) -> tuple[str, ...]:
    """Flags of a field, the long one first."""
    return option.flags or ("--" + key.rpartition(".")[2].replace("_", "-"),)


def _typer_option(key: str, info: FieldInfo, settings_option: Option) -> Any:
    flags = list(flags_of(key, settings_option))
    kind = bool if settings_option.switch else _value_type(info)
    default = settings_option.default or _shown(info.default)
    if kind is bool:
        default = default or ("on" if info.default else "off")
        flags[0] = f"{flags[0]}/--no-{flags[0].removeprefix('--')}"
    words = [word for k in _alternatives(info.annotation) if get_origin(k) is Literal for word in get_args(k)]
    limits: dict[str, Any] = {n: getattr(m, n) for m in info.metadata for n in ("ge", "le") if hasattr(m, n)}
    return option(
        *flags,
        help=sentence(info.description or ""),
        panel=settings_option.panel,
        notes=[
            *(["required"] if info.is_required() else [f"default: {default}"] if default else []),
            *_range(**limits),
        ],
        allow_from_autoenv=False,  # read below, so that a variable may hold whatever --set may
        metavar="|".join(map(str, words)) if words and kind is str else METAVARS.get(kind, "TEXT"),
        min=limits.get("ge"),
        max=limits.get("le"),
        autocompletion=choices(words) if words else BY_NAME.get(key.rpartition(".")[2]),
    )


def _range(ge: float | None = None, le: float | None = None) -> list[str]:
    """A range in words; nothing where there is none."""
    if ge is None or le is None:
        return [f"at least {ge}"] if ge is not None else [f"at most {le}"] if le is not None else []
    return [f"{ge} to {le}"]


def sentence(description: str) -> str:
    """A description as a sentence of a help text."""
    return f"{description[:1].upper()}{description[1:]}" + ("" if description.endswith(".") else ".")


def _shown(default: Any) -> str | None:
    if isinstance(default, bool):
        return None
    if isinstance(default, tuple | list):
        return ", ".join(map(str, default)) or None
    return str(default) if default is not None and type(default).__name__ != "PydanticUndefinedType" else None


def _value_type(info: FieldInfo) -> Any:
    """The type that typer parses a field's option as."""
    kinds = _alternatives(info.annotation)
    if all(get_origin(kind) is Literal for kind in kinds):
        return str
    kind = kinds[0]
    if get_origin(kind) in (tuple, list):
        return list[str]  # the settings convert them, as they do those of a file
    return kind if kind in (int, float, bool, Path) else str


def _alternatives(annotation: Any) -> list[Any]:
    """The types that a value may have, without None."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [] if annotation is type(None) else [annotation]


def _given(command: str, fields: list[tuple[str, FieldInfo, Option]], values: dict[str, Any]) -> Given:
    """What options, `--config` and `--set` say, which are taken out of `values`, and the environment."""
    options = [(key, nest(key, value)) for key, _, _ in fields if (value := values.pop(_name(key))) is not None]
    environment = []
    for key, info, settings_option in fields:
        text = os.environ.get(variable_of(command, flags_of(key, settings_option)[0]))
        if text:  # the type of the field decides what it is
            environment.append((key, nest(key, _values(text, info) if get_origin(_value_type(info)) is list else text)))
    _refuse_unknown_variables(command)
    more = os.environ.get(variable_of(command, "--set"), "").split()
    file = values.pop("config") or os.environ.get(variable_of(command, "--config")) or None
    return Given(
        typed_place(Path(file)) if file else None,
        merge([*environment, ("--set", parse_assignments(more))])[0],
        tuple(values.pop("set") or ()),
        merge(options)[0],
    )


def typed_place(value: Any) -> Any:
    """Typer's callback of an argument or option that is a path or spec, or several: as `expand_place` has them."""
    if isinstance(value, list | tuple):
        return [typed_place(each) for each in value]
    if value is None:
        return None
    try:
        return type(value)(expand_place(str(value)))
    except UsageError as error:
        raise UsageError(f"{value}: {error}") from None


RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a run that generates images.", autocompletion=runs, callback=typed_place
    ),
]


def expand_place_variables() -> None:
    """Expand the variables that name places, for all that read them."""
    for name in PLACE_VARIABLES:
        if name in os.environ:
            try:
                os.environ[name] = expand_place(os.environ[name])
            except UsageError as error:
                raise UsageError(f"{name} {os.environ[name]}: {error}") from None


def _values(text: str, info: FieldInfo) -> list[str]:
    """The values in a variable: one a line, or the words of a single line unless it may be one text, as a path is."""
    if "\n" in text or str in _alternatives(info.annotation):
        return [line.strip() for line in text.splitlines() if line.strip()]
    return text.split()


def _refuse_unknown_variables(command: str) -> None:
    """A misspelt variable would be ignored in silence."""
    known = {variable_of(command, flag) for flag in (*FLAGS[command].values(), "--config", "--set")} | GLOBAL_VARIABLES
    prefix = variable_of(command, "")
    for name in sorted(os.environ):
        if name.startswith(prefix) and name not in known:
            raise UsageError(f"{name}: driftkit {command} has no such option{did_you_mean(name, known)}")


def variable_of(command: str, flag: str) -> str:
    """The environment variable of an option, for example DRIFTKIT_TRAIN_BATCH_SIZE."""
    return f"DRIFTKIT_{command}_{flag.removeprefix('--')}".replace("-", "_").upper()


def with_flags(message: str, command: str) -> str:
    """The message with every config key in backticks that has an option of this command replaced by its flag."""
    flags = FLAGS.get(command, {})
    by_name = {key.rpartition(".")[2]: flag for key, flag in flags.items()}  # for layers that know no section
    return _KEY.sub(lambda key: flags.get(key[1]) or by_name.get(key[1], key[0]), message)
