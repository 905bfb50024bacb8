"""Whether a series stays flat: its slope by least squares, and what that would add up to over the stretch watched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PER_STEPS = 1000
SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Trend:
    """A straight line through a series.

    Attributes:
        name, unit: what was measured.
        mean: of the series.
        slope, error: per 1,000 steps, with its standard error.
        growth: what the line rises over the stretch.
        allowed: most growth that is called flat.
    """

    name: str
    unit: str
    mean: float
    slope: float
    error: float
    growth: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it grows no more than allowed, or so little next to its ups and downs that nobody can tell."""
        return self.growth <= self.allowed or self.slope <= SURE * self.error


def trend(name: str, unit: str, steps: Sequence[float], values: Sequence[float], *, allowed: float) -> Trend:
    """The line through `values` over `steps`, both [N], N >= 3.

    Raises:
        ValueError: too few values, or all at one step.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(x) < 3 or x.max() == x.min():
        raise ValueError(f"{name}: a slope needs at least 3 looks at different steps, got {len(x)}")
    centred = x - x.mean()
    slope = float((centred * (y - y.mean())).sum() / (centred**2).sum())
    residual = y - y.mean() - slope * centred
    error = math.sqrt(float((residual**2).sum()) / (len(x) - 2) / float((centred**2).sum()))
    growth = slope * float(x.max() - x.min())
    return Trend(name, unit, float(y.mean()), slope * PER_STEPS, error * PER_STEPS, growth, allowed)
