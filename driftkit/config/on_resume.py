"""Marks of config fields: what may change around a run when it resumes. Unmarked fields must stay as they are."""

from enum import Enum

from pydantic import BaseModel


class OnResume(Enum):
    """A mark next to a field: `every: Annotated[int, OnResume.FREE] = 0`."""

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
