"""Reading values of JSON documents that may be of another version, edited, or of somebody else: never an error."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else that JSON may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def count(value: Any) -> int | None:
    """A finite number as int, else None."""
    return int(value) if number(value) is not None else None


def text(value: Any) -> str | None:
    """A string, else None."""
    return value if isinstance(value, str) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """An object; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def numbers(values: Any) -> list[float]:
    """The finite numbers of a list; an empty one for anything else."""
    return [v for v in map(number, values) if v is not None] if isinstance(values, list | tuple) else []


def mean(values: Iterable[Any]) -> float | None:
    """Mean of the finite numbers among the values; None where there is none."""
    known = [v for v in map(number, values) if v is not None]
    return statistics.fmean(known) if known else None
