"""Features on their way from all ranks to each: the field of a batch that no process holds alone."""

from dataclasses import dataclass

import torch

from driftkit.errors import UsageError
from driftkit.runtime.ranks import Gathering, Ranks


@dataclass(frozen=True)
class Points:
    """The points of all ranks, each [G, *, C] and as wide as they came."""

    x: torch.Tensor
    others: tuple[torch.Tensor, ...]  # further negatives if any, positives
    weight: torch.Tensor | None  # [G, K]
    num_negatives: int
    num_rows: int  # of this rank
    ranks: Ranks

    @property
    def first_row(self) -> int:
        return self.ranks.rank * self.num_rows

    @property
    def num_columns(self) -> int:
        return self.x.shape[1] + sum(other.shape[1] for other in self.others)


class SharedFeatures:
    """The features of all ranks on their way, from `share_features`."""

    def __init__(self, gathering: Gathering, ranks: Ranks, *, num_rows: int, num_extra: int, weighted: bool):
        self._gathering, self._ranks = gathering, ranks
        self._num_rows, self._num_extra, self._weighted = num_rows, num_extra, weighted

    def points(self) -> Points:
        """Wait for them."""
        x, y_pos, *rest = self._gathering.wait()
        num_negatives = x.shape[1] + (rest[0].shape[1] if self._num_extra else 0)
        weight = None
        if self._weighted:
            weight = rest[-1].new_ones((x.shape[0], num_negatives + y_pos.shape[1]))
            weight[:, x.shape[1] : num_negatives] = rest[-1][..., 0]
        others = (rest[0], y_pos) if self._num_extra else (y_pos,)
        return Points(x, others, weight, num_negatives, self._num_rows, self._ranks)


def share_features(
    generated: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    *,
    negative_weight: torch.Tensor | None = None,
    ranks: Ranks | None = None,
    compare: bool = True,
) -> SharedFeatures:
    """Begin to gather the features of all ranks, in one exchange, so that other work can go on meanwhile.

    Args: as `aggregated_drift`, to which the result is given as `shared`, with the same features; `compare` as for
    `Ranks.start_gather`.

    Raises:
        UsageError: shapes or weights that do not fit.
        DriftkitError: the ranks hold features of different shapes.
    """
    ranks = ranks or Ranks()
    extra = generated.new_empty((generated.shape[0], 0, generated.shape[-1])) if negatives is None else negatives
    check_shapes(generated, positives, extra)
    parts = [generated, positives]
    if extra.shape[1]:
        parts.append(extra)
    weighted = negative_weight is not None and extra.shape[1] > 0
    if negative_weight is not None:
        weight = _check_weight(negative_weight, extra)
        parts += [weight[..., None]] if weighted else []
    return SharedFeatures(
        ranks.start_gather(parts, compare=compare),
        ranks,
        num_rows=generated.shape[1],
        num_extra=extra.shape[1],
        weighted=weighted,
    )


def check_shapes(x: torch.Tensor, y_pos: torch.Tensor, y_neg: torch.Tensor) -> None:
    """Raise UsageError for features that are not [G, *, C] floats, or where there are none."""
    for name, t in (("generated", x), ("positives", y_pos), ("negatives", y_neg)):
        if t.ndim != 3 or t.shape[0] != x.shape[0] or t.shape[-1] != x.shape[-1]:
            raise UsageError(f"{name}: expected [G={x.shape[0]}, *, C={x.shape[-1]}], got {list(t.shape)}")
        if not t.is_floating_point():
            raise UsageError(f"{name}: expected floating-point features, got {t.dtype}")
    if 0 in (x.shape[0], x.shape[1], x.shape[2], y_pos.shape[1]):
        raise UsageError(
            f"expected at least one field, generated, positive and channel, got {list(x.shape)} and {list(y_pos.shape)}"
        )


def _check_weight(weight: torch.Tensor | None, negatives: torch.Tensor) -> torch.Tensor:
    if weight is None:
        return negatives.new_ones(negatives.shape[:2])
    if weight.shape != negatives.shape[:2]:
        raise UsageError(f"negative_weight: expected {list(negatives.shape[:2])}, got {list(weight.shape)}")
    if not bool(((weight >= 0) & torch.isfinite(weight)).all()):
        raise UsageError("negative_weight: expected finite weights >= 0")
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).to(negatives.device)
