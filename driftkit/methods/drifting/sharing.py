"""The points of a batch that is spread over ranks: checked, then gathered once for the field of all of them."""

from dataclasses import dataclass

import torch

from driftkit.errors import UsageError
from driftkit.runtime.ranks import Gathering, Ranks


@dataclass(frozen=True)
class Points:
    """The points of all ranks, each [G, *, C] and as wide as they came."""

    x: torch.Tensor
    others: tuple[torch.Tensor, ...]  # further negatives if any, positives
    weight: torch.Tensor | None  # [G, K], of the affinities to y = [x | others]
    num_negatives: int  # the first columns of y; the last are the positives
    num_rows: int  # generated points of this rank
    ranks: Ranks

    @property
    def first_row(self) -> int:
        """The first row of x that belongs to this rank."""
        return self.ranks.rank * self.num_rows

    @property
    def num_columns(self) -> int:
        return self.x.shape[1] + sum(other.shape[1] for other in self.others)


@dataclass(frozen=True)
class SharedFeatures:
    """The features of all ranks on their way, from `share_features`."""

    gathering: Gathering
    ranks: Ranks
    num_rows: int
    weighted: bool

    def points(self) -> Points:
        """Wait for them."""
        x, y_pos, *optional = self.gathering.wait()  # then further negatives, then their weights
        num_negatives = x.shape[1] + (optional[0].shape[1] if optional else 0)
        weight = None
        if self.weighted:
            weight = optional[1].new_ones((x.shape[0], num_negatives + y_pos.shape[1]))
            weight[:, x.shape[1] : num_negatives] = optional[1][..., 0]
        return Points(x, (*optional[:1], y_pos), weight, num_negatives, self.num_rows, self.ranks)


def share_features(
    generated: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    *,
    negative_weight: torch.Tensor | None = None,
    ranks: Ranks | None = None,
    compare: bool = True,
) -> SharedFeatures:
    """Begin to gather the features of all ranks, in one exchange, and return while it runs.

    Args: as `aggregated_drift`, which takes the result as `shared` with the same features; `compare` as for
    `Ranks.start_gather`; without it the values of weights are not looked at either.

    Raises:
        UsageError: shapes or weights that do not fit.
        DriftkitError: the ranks hold features of different shapes.
    """
    ranks = ranks or Ranks()
    if negatives is None:
        negatives = generated.new_empty((generated.shape[0], 0, generated.shape[-1]))
    check_shapes(generated, positives, negatives)
    parts = [generated, positives]
    if negative_weight is not None:
        negative_weight = _checked_weight(negative_weight, negatives, look=compare)
    if negatives.shape[1]:
        parts += [negatives] if negative_weight is None else [negatives, negative_weight[..., None]]
    return SharedFeatures(
        ranks.start_gather(parts, compare=compare), ranks, num_rows=generated.shape[1], weighted=len(parts) == 4
    )


def check_shapes(x: torch.Tensor, y_pos: torch.Tensor, y_neg: torch.Tensor) -> None:
    """Raise UsageError for features that are not [G, *, C] floats, or where there are none."""
    for name, t in (("generated", x), ("positives", y_pos), ("negatives", y_neg)):
        if t.ndim != 3 or t.shape[0] != x.shape[0] or t.shape[-1] != x.shape[-1]:
            raise UsageError(f"{name}: expected [G={x.shape[0]}, *, C={x.shape[-1]}], got {list(t.shape)}")
        if not t.is_floating_point():
            raise UsageError(f"{name}: expected floating-point features, got {t.dtype}")
    if 0 in (*x.shape, y_pos.shape[1]):
        raise UsageError(
            f"expected at least one field, generated, positive and channel, got {list(x.shape)} and {list(y_pos.shape)}"
        )


def _checked_weight(weight: torch.Tensor, negatives: torch.Tensor, *, look: bool) -> torch.Tensor:
    if weight.shape != negatives.shape[:2]:
        raise UsageError(f"negative_weight: expected {list(negatives.shape[:2])}, got {list(weight.shape)}")
    if look and not bool(((weight >= 0) & torch.isfinite(weight)).all()):
        raise UsageError("negative_weight: expected finite weights >= 0")
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).to(negatives.device)
