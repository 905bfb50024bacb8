"""What a metric is: a row that says which numbers it gives, what it needs, and how to compute them from features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from driftkit.metrics.moments import Moments
from driftkit.metrics.survey import Survey

Direction = Literal["lower", "higher", "one", "none"]
Unit = Literal["distance", "score", "share", "ratio", "nats"]
Need = Literal["features", "rows", "inception_logits", "classes", "training"]


@dataclass(frozen=True)
class FeatureStats:
    """The features of a set of images, as metrics take them.

    Attributes:
        moments: of the features of all images.
        rows: features kept, float32 [R, D].
        indices: which images they belong to, ascending, int64 [R].
        survey: facts about all images; None for statistics that other programs wrote.
        predictions: classes that the extractor's classifier gives the kept images, int64 [R].
        logits: of the kept images, float32 [R, K]; statistics on disk lack them.
        labels: true classes of the kept images, int64 [R].
    """

    moments: Moments
    rows: torch.Tensor
    indices: torch.Tensor
    survey: Survey | None
    predictions: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    @classmethod
    def of_rows(cls, rows: torch.Tensor, *, device: torch.device | str = "cpu", **fields: Any) -> "FeatureStats":
        """Statistics of features [N, D] alone."""
        return cls(Moments.of(rows, device=device), rows, torch.arange(len(rows)), None, **fields)

    @classmethod
    def empty(cls, dim: int) -> "FeatureStats":
        """Of no images: what ranks other than the first hold."""
        return cls(Moments(dim), torch.empty(0, dim), torch.empty(0, dtype=torch.int64), None)

    def __len__(self) -> int:
        return self.moments.count


@dataclass(frozen=True)
class Quantity:
    """One number that a metric gives, with one sentence about what it means.

    Attributes:
        key, label: its name in records and CSV, and in tables and figures, for example "KID".
        direction: which values are better: lower, higher, nearer to one; or none.
        unit: decides how it is formatted.
        column: whether it has a column in tables of runs; the others stand in the record alone.
        spread: key of its standard deviation, where the metric gives one.
    """

    key: str
    label: str
    direction: Direction
    unit: Unit
    help: str
    column: bool = True
    spread: str = ""

    def __post_init__(self) -> None:
        for name, value, words in (("direction", self.direction, Direction), ("unit", self.unit, Unit)):
            if value not in get_args(words):
                raise ValueError(f"quantity {self.key}: {name} {value!r}: expected one of {', '.join(get_args(words))}")


@dataclass(frozen=True)
class Baseline:
    """How far real images are from the nearest training image: the median, and the 1 % quantile `near`.

    Attributes:
        num_images, of: how many real images were asked, and which, in words.
    """

    median: float
    near: float
    num_images: int
    of: str


@dataclass(frozen=True)
class MetricInputs:
    """What metrics are computed from.

    Attributes:
        inception_logits: whether the generated logits are those that the Inception Score is defined with.
        classes: names of the classes that both sets share; empty where there are none.
        predicted_classes: names of the classes of predictions, in their order; empty where nobody knows them.
        training: features of the training images, where copies are looked for.
        baseline: distances of real images to the nearest training image.
    """

    generated: FeatureStats
    reference: FeatureStats
    device: torch.device | str = "cpu"
    inception_logits: bool = False
    classes: Sequence[str] = ()
    predicted_classes: Sequence[str] = ()
    training: FeatureStats | None = None
    baseline: Baseline | None = None

    def count(self, need: Need) -> int | None:
        """How many images there are of what a metric needs, on the smaller side; None: it does not apply."""
        if need == "features":
            return min(len(self.generated), len(self.reference))
        if need == "rows":
            return min(len(self.generated.rows), len(self.reference.rows))
        if need == "inception_logits":
            logits = self.generated.logits
            return len(logits) if self.inception_logits and logits is not None else None
        if need == "training":
            return None if self.training is None or self.baseline is None else len(self.training.rows)
        return len(self.generated)


@dataclass(frozen=True)
class MetricResult:
    """What a metric gives: numbers by the keys of its quantities, none where it does not apply.

    Attributes:
        settings: what the numbers depend on, for example subset sizes.
        real: what real images give in their place, where the metric knows.
        details: everything else for the record, as a dataclass.
    """

    values: dict[str, float] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)
    real: dict[str, float] = field(default_factory=dict)
    details: Any = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """A row of `registry.METRICS`.

    Attributes:
        quantities: the numbers it gives, in the order in which they are shown.
        needs: one of `Need`; see `MetricInputs.count`.
        min_images: least number of images of what it needs, on either side; fewer skip the metric with a warning.
        compute: called only where `needs` and `min_images` are met; its values have the keys of `quantities` alone.
        in_floor: whether it is also computed between real images and the others of them.
    """

    name: str
    label: str
    help: str
    quantities: tuple[Quantity, ...]
    needs: Need
    min_images: int
    compute: Callable[[MetricInputs], MetricResult]
    in_floor: bool = True

    def __post_init__(self) -> None:
        if self.needs not in get_args(Need):
            raise ValueError(f"metric {self.name}: needs {self.needs!r}: expected one of {', '.join(get_args(Need))}")

    def keys(self) -> set[str]:
        """The keys of its numbers, with those of standard deviations."""
        return {key for quantity in self.quantities for key in (quantity.key, quantity.spread) if key}
