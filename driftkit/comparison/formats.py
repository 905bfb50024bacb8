"""How numbers and names are shown to people, in the terminal, in the report and in the figures alike."""

import math
from collections.abc import Sequence
from itertools import pairwise

from driftkit.methods.registry import METHODS
from driftkit.metrics.base import Quantity
from driftkit.runtime.progress import duration

BLOCKS = "▁▂▃▄▅▆▇█"


def short_name(name: str) -> str:
    """An encoder's name without the folders of a run's path."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def method_label(name: str) -> str:
    """The method as people write it; the name itself where it is unknown."""
    return METHODS[name].label if name in METHODS else name


def sampler_label(sampler: str | None, nfe: int | None) -> str:
    """The sampler setup, for example "ddim, 50 NFE"."""
    return f"{sampler or 'images'}, {nfe} NFE" if nfe is not None else (sampler or "images")


def format_count(value: float | None) -> str:
    """1234 -> 1,234 and from a million on 1.23 M; a dash for None."""
    if value is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def format_seconds(value: float | None) -> str:
    """42 s, 12 min, 3.5 h; a dash for None."""
    return "–" if value is None else duration(value)


def format_score(value: float | None) -> str:
    """Two decimals from 1 on and one from 100 on, four below, powers of ten below 0.001; a dash for None."""
    if value is None:
        return "–"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{decimals}f}"


def format_metric(value: float | None, quantity: Quantity) -> str:
    """Shares with three decimals, all other numbers as `format_score`; a dash for None."""
    return f"{value:.3f}" if value is not None and quantity.unit == "share" else format_score(value)


def format_rate(value: float | None) -> str:
    """Images per second with three digits, whole from 100 on; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def format_spread(value: float) -> str:
    """A standard deviation with two digits."""
    return f"{value:.2g}"


def sparkline(values: Sequence[float | None], *, width: int = 12) -> str:
    """A curve of at most `width` blocks, each the mean of neighbouring values; from the lowest to the highest value.

    A constant curve is drawn at half height. Empty where there are fewer than two finite values.
    """
    numbers = [v for v in values if v is not None and math.isfinite(v)]
    if len(numbers) < 2:
        return ""
    count = min(width, len(numbers))
    bounds = [i * len(numbers) // count for i in range(count + 1)]
    means = [sum(numbers[first:last]) / (last - first) for first, last in pairwise(bounds)]
    low, high = min(means), max(means)
    if high == low:
        return BLOCKS[3] * count
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int((v - low) / (high - low) * len(BLOCKS)))] for v in means)
