"""Names of the weights of a run: `ema`, further averages, `raw`, and the mean of checkpoints."""

import re
from typing import Annotated

from pydantic import AfterValidator

EMA, RAW = "ema", "raw"
_NAME = re.compile(r"ema|raw|ema-\d[\d.e-]*|average:[1-9]\d{0,5}", re.ASCII)
EXPECTED = "ema, ema-DECAY, raw or average:N"


def average_name(decay: float) -> str:
    """Name of an average, for example ema-0.9995; the first of a run is kept as `ema`, and known by this name, too."""
    return f"{EMA}-{decay!r}"


def averaged_checkpoints(name: str) -> int | None:
    """N of `average:N`; None for weights that a checkpoint holds."""
    kind, _, count = name.partition(":")
    return int(count) if kind == "average" else None


def split_weights(text: str) -> tuple[str, str | None]:
    """PATH@WEIGHTS as path and name of weights; None for the name where there is none."""
    path, at, name = text.rpartition("@")
    return (path, name) if path and at and _NAME.fullmatch(name) else (text, None)


def require_weights_name(name: str) -> str:
    """The name of weights, which a run need not have. Raises ValueError where it is none."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected {EXPECTED}")
    return name


WeightsName = Annotated[str, AfterValidator(require_weights_name)]
"""A setting that names weights of a run."""
WEIGHTS_HELP = (
    "weights of the run: ema, ema-DECAY (the average of that decay), raw (the last ones) or average:N (mean of the "
    "last N kept checkpoints)"
)
