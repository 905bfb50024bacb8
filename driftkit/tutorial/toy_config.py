"""Settings of a toy."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from driftkit.config.places import EXPANDED
from driftkit.config.settings import COMMAS, Option, Settings

TOY, TRAINING, FILES = "What drifts", "Training", "Where it goes"
FOLDER = Path("outputs/toy")


class ToyConfig(Settings):
    """Settings of `driftkit toy`."""

    points: Annotated[Literal["checkerboard", "swiss-roll", "two-modes"], Option(TOY)] = Field(
        "checkerboard", description="distribution of the real points"
    )
    start: Annotated[Literal["middle", "far", "collapsed"], Option(TOY)] = Field(
        "middle", description="where the untrained generator's points lie"
    )
    attraction: Annotated[float, Option(TOY)] = Field(
        1.0, ge=0, le=100, description="factor of the pull by real points; 1 in the method"
    )
    repulsion: Annotated[float, Option(TOY)] = Field(
        1.0, ge=0, le=100, description="factor of the push by generated points; 1 in the method"
    )
    taus: Annotated[tuple[Annotated[float, Field(gt=0)], ...], COMMAS, Option(TOY)] = Field(
        (0.05, 0.2), min_length=1, description="temperatures of the kernel, as shares of the mean distance of points"
    )
    steps: Annotated[int, Option(TRAINING)] = Field(300, ge=1, le=100_000, description="training steps")
    batch_size: Annotated[int, Option(TRAINING, ("--batch-size", "-b"))] = Field(
        256, ge=2, le=8192, description="generated points per step; as many real ones are drawn"
    )
    learning_rate: Annotated[float, Option(TRAINING)] = Field(
        4e-3, gt=0, le=1, description="largest learning rate: training rises to it, then falls to 0"
    )
    seed: Annotated[int, Option(TRAINING)] = Field(0, description="seed of all random draws")
    width: int = Field(128, ge=1, le=4096, description="channels of each hidden layer of the generator")
    depth: int = Field(4, ge=1, le=64, description="hidden layers of the generator")
    noise_channels: int = Field(2, ge=1, le=1024, description="dimensions of the noise that points are made from")
    frames: int = Field(30, ge=2, le=500, description="pictures of the animation, denser at the start of training")
    output: Annotated[Path | None, EXPANDED, Option(FILES, ("--output", "-o"), default=f"{FOLDER}/POINTS-START")] = (
        Field(None, description="folder of toy.gif, toy.png and toy.json")
    )

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.attraction == self.repulsion == 0:
            raise ValueError("`attraction` and `repulsion` are both 0: nothing would move; give one of them")
        return self

    @property
    def factors(self) -> str:
        """The factors that are not 1, in words; empty for the method itself."""
        parts = [
            f"no {name}" if not value else f"{value:g}× {name}"
            for name, value in (("attraction", self.attraction), ("repulsion", self.repulsion))
            if value != 1
        ]
        return ", ".join(parts)

    @property
    def folder(self) -> Path:
        """Where the products go."""
        factors = f"-{self.attraction:g}-{self.repulsion:g}" if self.factors else ""
        return self.output or FOLDER / f"{self.points}-{self.start}{factors}"
