"""`~` and `$VARIABLE` in paths as they are typed: in options, config and pipeline files, and variables.

They are expanded where the text comes in. What is recorded is what they stand for, and is read as it is.
"""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator, ValidationInfo

from driftkit.config.weights_name import split_weights
from driftkit.errors import UsageError
from driftkit.runtime.environment import named_home

TYPED = {"typed": True}
"""Context of pydantic in which settings are validated as somebody typed them, not as they were recorded."""
ENCODER_PREFIX = "encoder:"
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^{}]+)\})")


def expand_place(text: str) -> str:
    """The text of a path or spec with `~`, `~USER`, `$NAME` and `${NAME}` replaced.

    A spec may have its path after `encoder:`, and before `@WEIGHTS` or `?key=value&...`, with paths as values, too.
    A path that exists as it is written stays as it is.

    Raises:
        UsageError: a variable is unset or empty, or there is no such home folder.
    """
    if not ("~" in text or "$" in text) or os.path.lexists(text):
        return text
    prefix = ENCODER_PREFIX if text.startswith(ENCODER_PREFIX) else ""
    place, mark, query = text.removeprefix(prefix).partition("?")
    path, weights = split_weights(place)
    settings = (part.partition("=") for part in query.split("&"))
    values = "&".join(f"{key}{equals}{_expand_path(value)}" for key, equals, value in settings)
    return f"{prefix}{_expand_path(path)}{f'@{weights}' if weights else ''}{mark}{values}"


def _expand_path(text: str) -> str:
    if os.path.lexists(text):
        return text
    expanded = _VARIABLE.sub(lambda found: _value_of(found[1] or found[2]), text)
    if not text.startswith("~"):
        return expanded
    whole, home = os.path.expanduser(expanded), expanded.partition("/")[0]
    if whole == expanded or (home == "~" and "HOME" in os.environ and not named_home()):
        why = "HOME is not set" if home == "~" else f"there is no user {home[1:]}"
        raise UsageError(f"{home} stands for a home folder, and {why}; write the whole path, or ./{home} for that name")
    return whole


def _value_of(name: str) -> str:
    if not (value := named_home() if name == "HOME" else os.environ.get(name)):
        raise UsageError(f"the variable {name} is not set, or empty; set it, or write the whole path")
    return value


def _expand_typed(value: Any, info: ValidationInfo) -> Any:
    if info.context is not TYPED:
        return value
    if isinstance(value, list | tuple):
        return [_expand_typed(each, info) for each in value]
    return type(value)(expand_place(str(value))) if isinstance(value, str | Path) else value


EXPANDED = BeforeValidator(_expand_typed)
"""Metadata of a field whose texts are paths, or may hold one."""
