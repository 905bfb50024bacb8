"""Settings of commands: frozen models whose fields say default, range, help and option; and how they are resolved."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo

from driftkit.config.layers import Layer, merge, parse_assignments, read_toml, sections, validate


class Settings(BaseModel):
    """Base of everything that can be set: unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _split(value: Any) -> Any:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        return value
    return [part for word in words for part in (map(str.strip, word.split(",")) if isinstance(word, str) else [word])]


ONE_OR_MORE = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
"""Metadata of a field of several values: one text stands for itself alone."""

DISTINCT = AfterValidator(lambda values: tuple(dict.fromkeys(values)))
"""Metadata of a field of several values: a value that is given twice counts once."""

COMMAS = BeforeValidator(_split)
"""Metadata of a field of several values: on the command line commas may stand between them."""

Device = Literal["auto", "cpu", "cuda"]
DEVICE_HELP = "where it runs; auto: on a GPU if there is one"

SettingsType = TypeVar("SettingsType", bound=BaseModel)


@dataclass(frozen=True)
class Option:
    """Metadata of a field that has an option of its own on the command line; all others are set by `--set`.

    Its help is the field's description, its range the field's, its default the field's.
    """

    panel: str  # heading of its group in the help text
    flags: tuple[str, ...] = ()  # names, for example ("--num-images", "-n"); empty: the field's name with dashes
    default: str | None = None  # text that the help shows as default where the field's default is None
    switch: bool = False  # whether it is given as --NAME and --no-NAME although the field is no truth value


class OnResume(Enum):
    """What may change around a run when it resumes, as a mark of a field: `every: Annotated[int, OnResume.FREE] = 0`.

    Unmarked fields must stay as they are.
    """

    FREE = "may differ: it decides how long a run is and what it writes, not its numbers"
    FROM_DATA = "None is filled in from the images of the first command"
    PLACE = "names a place, which may differ where the content is the same, and between ranks"


def marked_keys(config: BaseModel, mark: OnResume) -> set[str]:
    """Dotted keys of a config, and of those in it, whose fields bear the mark."""
    keys: set[str] = set()
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            keys |= {f"{name}.{key}" for key in marked_keys(value, mark)}
        elif mark in field.metadata:
            keys.add(name)
    return keys


def option_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, Option]]:
    """Dotted key, field and option of every field that has one, sections included, in the order of the fields."""
    for name, field in model.model_fields.items():
        for option in field.metadata:
            if isinstance(option, Option):
                yield f"{prefix}{name}", field, option
        for section in sections(field):
            yield from option_fields(section, f"{prefix}{name}.")


def resolve_settings(
    model: type[SettingsType],
    *,
    base: Sequence[Layer] = (),
    file: Path | None = None,
    environment: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> tuple[SettingsType, dict[str, str]]:
    """Field defaults < `base` (presets) < config file < environment < `--set` < options.

    Args:
        file: a TOML file with the fields of `model`.
        environment, options: nested values.
        assignments: `section.key=value` strings.

    Returns:
        The settings, and the origin of every value as dotted key -> text.

    Raises:
        UsageError: unknown keys, or values that do not fit.
    """
    layers: list[Layer] = [
        *base,
        *([(f"file {file}", read_toml(file))] if file else []),
        ("environment", environment or {}),
        ("--set", parse_assignments(assignments)),
        ("option", options or {}),
    ]
    values, origins = merge(layers)
    return validate(model, values, origins=origins, typed=True), origins
