"""From any bytes to a file that is nearly right: edits of a valid document, each decided by the next bytes."""

import copy
import json
import struct
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

NASTY = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "0", "nan", "../..", "/etc/passwd", "\x00", "\x1b[2J", "\udcff", "‮", "{each}", "a" * 5000, "<script>",
    [], [[]], [1], ["a", "a"], [None], [float("nan")], {}, {"": None}, {"a": {"b": {}}}, {"values": ["x", 10**400]},
)  # fmt: skip
"""Values that a reader meets in documents of other versions, of other programs, or of people who mean ill."""


class Choices:
    """Numbers drawn from bytes; zeros once they are used up."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def below(self, bound: int) -> int:
        """A number in [0, bound)."""
        wide = 1 if bound <= 256 else 2
        piece = self.data[self.at : self.at + wide]
        self.at += wide
        return int.from_bytes(piece, "little") % max(1, bound)


def edited(document: Any, data: bytes) -> Any:
    """The document after at most eight edits: a value replaced, removed, doubled, renamed, or moved."""
    choices = Choices(data)
    document = json.loads(json.dumps(document))
    for _ in range(8):
        if not choices:
            break
        document = _edit(document, choices)
    return document


def _edit(document: Any, choices: Choices) -> Any:
    places = list(_places(document))
    if not places:
        return copy.deepcopy(NASTY[choices.below(len(NASTY))])
    parent, key = places[choices.below(len(places))]
    action = choices.below(6)
    if action <= 2:
        parent[key] = copy.deepcopy(NASTY[choices.below(len(NASTY))])
    elif action == 3:
        del parent[key]
    elif action == 4:
        source, name = places[choices.below(len(places))]
        if name in source if isinstance(source, dict) else name < len(source):
            parent[key] = json.loads(json.dumps(source[name]))
    elif isinstance(parent, dict):
        parent[str(NASTY[choices.below(len(NASTY))])] = parent.pop(key)
    else:
        parent.insert(key, parent[key])
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree, in order."""
    entries = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(entries):
        yield document, key
        yield from _places(value)


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def as_json_lines(document: Any) -> bytes:
    return b"".join(as_json(record) + b"\n" for record in (document if isinstance(document, list) else [document]))


def as_toml(document: Any) -> bytes:
    """TOML with inline tables. What TOML lacks (null, surrogates) is written as it comes, and then is no TOML."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item).replace("NaN", "nan").replace("Infinity", "inf")

    if not isinstance(document, dict):
        return value(document).encode()
    return "\n".join(f"{json.dumps(k)} = {value(v)}" for k, v in document.items()).encode()


def as_safetensors(document: Any) -> bytes:
    """A safetensors file of a header and as many zero bytes as `__body__` says."""
    size = document.pop("__body__", 0) if isinstance(document, dict) else 0
    header = as_json(document)
    body = size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= 2**16 else 0
    return struct.pack("<Q", len(header)) + header + bytes(body)


def from_safetensors(content: bytes) -> Any:
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    return {**header, "__body__": len(content) - 8 - length}


FORMATS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    "json": (json.loads, as_json),
    "jsonl": (lambda text: [json.loads(line) for line in text.splitlines()], as_json_lines),
    "toml": (lambda text: tomllib.loads(text.decode()), as_toml),
    "safetensors": (from_safetensors, as_safetensors),
}


def nearly(seed: bytes, form: str, data: bytes) -> bytes:
    """An edited form of a valid file; for a form that is none of `FORMATS`, bytes put over the seed's."""
    if form in FORMATS:
        read, write = FORMATS[form]
        return write(edited(read(seed), data))
    choices, content = Choices(data), bytearray(seed)
    while choices and content:
        at = choices.below(len(content))
        action = choices.below(4)
        if action <= 1:
            content[at] = choices.below(256)
        elif action == 2:
            del content[at : at + 1 + choices.below(16)]
        else:
            content[at:at] = content[at : at + 1 + choices.below(64)]
    return bytes(content)
