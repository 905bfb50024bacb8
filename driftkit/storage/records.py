"""Records: what driftkit writes as JSON, as pydantic models. A reader gets an object or one clear error.

A record names its `kind` and `format_version`. Keys that it does not know are ignored when it is read, so that a later
minor version may add some; another `format_version` is refused.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from driftkit.errors import ArtifactError
from driftkit.storage.files import read_json, write_json


class Record(BaseModel):
    """Base of all records.

    Class attributes:
        kind: what the record is of, for example "evaluation".
        format_version: of its fields; it rises when a reader of the version before would misread it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    kind: ClassVar[str]
    format_version: ClassVar[int] = 1

    def document(self) -> dict[str, Any]:
        """The record as JSON data."""
        return {"kind": self.kind, "format_version": self.format_version, **self.model_dump(mode="json")}

    def write(self, path: Path) -> None:
        """Write the record whole or not at all."""
        write_json(path, self.document())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file.

        Raises:
            NotFoundError: there is none.
            ArtifactError: no JSON, a record of another kind or format, or a field that does not fit.
        """
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, document: dict[str, Any], path: Path) -> Self:
        """The record in JSON data that was read from `path`; raises as `read`."""
        if document.get("kind") != cls.kind:
            raise ArtifactError(f"{path}: expected a record of kind {cls.kind}, got {document.get('kind')!r:.80}")
        if document.get("format_version") != cls.format_version:
            got = document.get("format_version")
            raise ArtifactError(f"{path}: has format version {got!r:.80}, this driftkit reads {cls.format_version}")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise ArtifactError(f"{path}: {key}: {message}, got {first['input']!r:.80}") from None
