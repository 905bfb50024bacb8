"""Layers of configuration: later ones win, every value remembers where it came from, unknown keys are errors."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from driftkit.config.places import TYPED
from driftkit.errors import ArtifactError, NotFoundError, UsageError

Layer = tuple[str, Mapping[str, Any]]
"""(origin, nested values)"""

Model = TypeVar("Model", bound=BaseModel)


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge nested mappings, later ones over earlier ones.

    Returns:
        The merged mapping, and for every dotted key the origin of its value.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        for key, value in flatten(values).items():
            *parents, name = key.split(".")
            level = merged
            for parent in parents:
                level = level.setdefault(parent, {})
                if not isinstance(level, dict):
                    raise UsageError(f"{origin}: {key} lies below {parent}, which is no section")
            level[name] = value
            origins[key] = origin
    return merged, origins


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; empty sections vanish."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`a.b=c` strings as nested values; c is a TOML value, and otherwise a plain string.

    Raises:
        UsageError: no `=`, or an empty key.
    """
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UsageError(f"--set {assignment}: expected section.key=value, for example --set trainer.batch_size=64")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):  # TOMLDecodeError, numbers of thousands of digits, deep nesting
            value = text
        nested, _ = merge([("--set", nested), ("--set", nest(key, value))])
    return nested


def nest(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and c as {a: {b: c}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def read_toml(path: Path | Traversable) -> dict[str, Any]:
    """A TOML file as a mapping; a byte order mark before it, as editors of Windows write, is no part of it.

    Raises:
        ArtifactError: it is not there.
        UsageError: it is no TOML; the message names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except IsADirectoryError:
        raise ArtifactError(f"{path}: expected a TOML file, got a folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, numbers of thousands of digits, deep nesting
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("driftkit.config") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_preset(name: str, method: str, role: str) -> list[Layer]:
    """Layers of a preset for a method: its tables `[all]`, of the role of the method's networks (generator or encoder),
    and of the method; a UsageError where there are none.
    """
    if name not in preset_names():
        raise UsageError(
            f"`preset` {name}: expected one of {', '.join(preset_names())}{did_you_mean(name, preset_names())}"
        )
    tables = read_toml(resources.files("driftkit.config") / "presets" / f"{name}.toml")
    layers: list[Layer] = [(f"preset {name}", tables[table]) for table in ("all", role, method) if table in tables]
    if not layers:
        raise UsageError(f"`preset` {name}: is for {' and '.join(tables)}, not for {method}; choose another preset")
    return layers


def validate(
    model: type[Model],
    values: Mapping[str, Any],
    *,
    origins: Mapping[str, str],
    others: Mapping[str, str] | None = None,
    typed: bool = False,
) -> Model:
    """An instance of the config class.

    Args:
        others: keys that the class lacks -> the choice for which they exist.
        typed: somebody typed the values, so that `~` and variables in paths are expanded.

    Raises:
        UsageError: unknown keys (with the nearest known one) or values that do not fit, naming key, value and origin.
    """
    try:
        return model.model_validate(values, context=TYPED if typed else None)
    except ValidationError as error:
        errors = error.errors()[:3]
        raise UsageError("; ".join(_describe(model, e, origins, others or {}) for e in errors)) from None


def _describe(model: type[BaseModel], error: Any, origins: Mapping[str, str], others: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))  # of a list the name is enough
    origin = origins.get(key)
    where = f" (from {origin})" if origin and origin != "option" else ""
    if error["type"] == "extra_forbidden":
        if key in others:
            return f"config key {key}{where} is a setting of {others[key]}, which this run does not use"
        known = config_keys(model)
        ends = [other for other in known if other.endswith(f".{key}")]  # a key without its section
        hint = f" (did you mean {' or '.join(ends)}?)" if ends else did_you_mean(key, known)
        return f"unknown config key {key}{where}{hint}"
    shown = f"`{key}`" if origin == "option" else key  # the command line shows it as the option
    if error["type"] == "missing":
        return f"`{key}`: is required"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if error["type"] == "literal_error":
        words = str(error["ctx"]["expected"]).replace("'", "")
        message = f"expected {words}{did_you_mean(str(error['input']), words.replace(' or ', ', ').split(', '))}"
    got = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"{shown}{where}: {message}{got}" if shown else f"{message}{got}"  # of settings together: it names them


def first_problem(error: ValidationError) -> str:
    """The first error of a document that was read, as one line: "model.kind: expected ..., got ..."."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    message = f"{first['msg'].removeprefix('Value error, ')}, got {first['input']!r:.80}"
    return f"{key}: {message}" if key else message


def config_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key that the config class knows."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        nested = sections(field)
        for inner in nested:
            keys += config_keys(inner, f"{prefix}{name}.")
        if not nested:
            keys.append(f"{prefix}{name}")
    return keys


def sections(field: FieldInfo) -> list[type[BaseModel]]:
    """The models that a field may hold: one of a plain section, several of a union, none of a value."""
    candidates = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing where no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
