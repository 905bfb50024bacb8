"""What `toy` writes and prints as JSON."""

from typing import Any, ClassVar

from pydantic import BaseModel, Field

from driftkit.storage.records import Record


class ToyScores(BaseModel):
    """The trained generator, in numbers; floors are those of real points against other real points."""

    drift_norm: float = Field(description="root mean square of V before it is normalised, mean of the last steps")
    drift_norm_floor: float
    energy_distance: float = Field(description="of as many generated and real points")
    energy_distance_floor: float
    modes_covered: int = Field(description="modes with at least half the points that they should have")
    num_modes: int
    on_data: float = Field(description="share of generated points in any mode")
    on_data_floor: float = Field(description="the same of real points")
    spacing: float = Field(description="median distance of a generated point to its nearest, over that of real points")


class ToyPictures(Record):
    """The pictures that a record lies with."""

    kind: ClassVar[str] = "toy pictures"

    path: str = Field("", description="the animation")
    files: dict[str, dict[str, Any]] = Field({}, description="file next to the record -> its sha256 and size in bytes")


class ToyRecord(ToyPictures):
    """A toy: its setup, how far the field came down, and what was reached. The same again for the same settings."""

    kind: ClassVar[str] = "toy"

    points: str
    start: str
    attraction: float
    repulsion: float
    taus: list[float]
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    parameters: int
    drift_norm: list[float] = Field(description="of every step")
    shown_steps: list[int] = Field(description="of the animation's pictures")
    energy_distance: list[float] = Field(description="at these steps, of the points in the pictures")
    scores: ToyScores


class ToyRow(BaseModel):
    """One toy among others."""

    name: str
    points: str
    start: str
    attraction: float
    repulsion: float
    scores: ToyScores


class ToyTable(ToyPictures):
    """Toys side by side."""

    kind: ClassVar[str] = "toys"

    toys: list[ToyRow]
