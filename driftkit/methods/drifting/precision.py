"""The precision rule of the field: V agrees with float64 to 1e-5 of its norm, at any temperature and for any features.

(Where push and pull cancel to less than a hundredth, to 1e-7 of theirs: the features themselves hold no more. Where one
channel is a hundred times as large as all others, to 5e-5.)

V is computed in float32, or in float64 where a feature is float64. Plain float32 breaks the rule by orders of magnitude
(`python -m tests.benchmarks field` shows by how many). It fails in four places, and only there is something wider used:

| what fails in float32                                | where           | instead                                 |
| ---------------------------------------------------- | --------------- | --------------------------------------- |
| |x|^2 + |y|^2 - 2 x.y cancels for close pairs        | `CLOSE_PAIR`    | differences, or products in float64     |
| exp(-d / tau) multiplies the rounding of d by 1 / tau | `MAX_SHARPNESS` | all of it in float64                    |
| exp(-d / tau) underflows                             | `MAX_EXPONENT`  | sums of exp in float64, then logarithms |
| squares of tiny or huge features leave the range     | `MIN_DISTANCE`  | features times a power of two (exact)   |

These are questions about values. A CPU answers them and takes the cheapest form that suffices. On a GPU the host would
have to wait for the answers (`wait`), so there all fields take float64 products, logarithms and powers of two.
"""

from collections.abc import Iterable

import torch

# Device types on which the host reads values without waiting.
WAITS = ("cpu",)

# A squared distance below this share of |x|^2 + |y|^2 has lost too many digits.
CLOSE_PAIR = 0.05

# Steepest kernel, -d(log k) / d(distance over mean distance), that float32 distances are exact enough for.
MAX_SHARPNESS = 64.0

# exp(-e) up to these exponents e, and where needed its square, lies within the range of the type.
MAX_EXPONENT = {torch.float32: 80.0, torch.float64: 300.0}

# Least and largest mean distances of which float32 holds the sums of squares.
MIN_DISTANCE, MAX_DISTANCE = 1e-14, 1e14

# Up to this many multiplications, float64 costs nothing that is noticed.
SMALL_PROBLEM = 2**22


def result_dtype(features: Iterable[torch.Tensor]) -> torch.dtype:
    """float64 if any of the features are, else float32: half precision is too coarse for distances and softmax."""
    return torch.float64 if any(t.dtype == torch.float64 for t in features) else torch.float32


def compute_dtype(result: torch.dtype, *, sharpness: float, multiplications: int) -> torch.dtype:
    """The type of distances, coefficients and V for a result of that type."""
    return torch.float64 if sharpness > MAX_SHARPNESS or multiplications <= SMALL_PROBLEM else result
