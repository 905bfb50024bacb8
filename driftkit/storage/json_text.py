"""JSON as driftkit writes it, to files and to terminals. No torch: `driftkit doctor` needs it where torch is broken."""

import json
import math
import re
from typing import Any

_ESCAPED = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def to_json(document: Any, *, ascii: bool = False) -> str:
    """Indented JSON as text that any file and any terminal takes.

    Control characters beyond JSON's own, marks that turn the direction of text around, and the lone surrogates that
    stand for bytes in file names that are no UTF-8, are escaped; all come back as they were.

    Args:
        ascii: escape everything beyond ASCII.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(document, indent=2, ensure_ascii=ascii, allow_nan=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def from_json(text: str | bytes) -> Any:
    """What JSON text holds; a byte order mark before it, as editors of Windows write, is no part of it.

    Raises:
        ValueError: it is not JSON, or a number is not finite: NaN and Infinity are Python's own words, and 1e999 is
            read as infinity.
        RecursionError: it is nested too deeply.
    """
    if isinstance(text, str):
        text = text.removeprefix("\ufeff")
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
