"""Euclidean distances between features, exact enough for small temperatures (see `precision`)."""

import torch

from driftkit.methods.drifting.precision import CLOSE_PAIR
from driftkit.runtime.device import ieee_float32

# Above this share of close pairs, or up to so many channels, one product in float64 costs less than picking them out.
MANY_PAIRS = 1 / 64
FEW_CHANNELS = 128


def pairwise_distance(
    x: torch.Tensor, y: torch.Tensor, *, self_at: int | None = None, wait: bool = True
) -> torch.Tensor:
    """Euclidean distances [G, N, K] between x [G, N, C] and y [G, K, C], each to about float32 precision.

    Args:
        self_at: column at which y holds x[:, 0] (then x[:, 1], ...), whose distances are exactly 0.
        wait: as for `write_distances`.
    """
    with ieee_float32(x.device):
        distance = x.new_empty((x.shape[0], x.shape[1], y.shape[1]))
        write_distances(x, y, distance, self_at=self_at, wait=wait)
    if self_at is not None:
        torch.diagonal(distance, self_at, 1, 2).zero_()
    return distance


def write_distances(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor, *, self_at: int | None, wait: bool) -> None:
    """Write the distances into `out`, [G, N, K]; not finite where features or their squares are not.

    Args:
        self_at: as above, but each x gets its distance to the last y in place of that to itself. Minimum and maximum
            then need no mask, and a sum can subtract the last column again.
        wait: the product is one of float32, and the host reads which pairs it cancelled for; else one of float64.
    """
    if not wait:
        out.copy_(_float64_distances(x, y))
        _replace_self(out, self_at)
        return
    x_square, y_square = _square_norms(x), _square_norms(y)  # [G, N], [G, K]
    torch.add(x_square[:, :, None], y_square[:, None, :], out=out)
    torch.baddbmm(out, x, y.mT, alpha=-2, out=out)
    _replace_self(out, self_at)
    min_square = out.flatten(1).amin(dim=1)
    has_close_pairs = ~(min_square >= CLOSE_PAIR * (x_square.amax(dim=1) + y_square.amax(dim=1)))
    out.sqrt_()  # nan where a square has cancelled to below 0
    fields = has_close_pairs.nonzero().flatten()
    if not len(fields):
        return
    if x.shape[2] > FEW_CHANNELS:
        square_sum = x_square[fields][:, :, None] + y_square[fields][:, None, :]
        close = ~(out[fields].square() >= CLOSE_PAIR * square_sum)  # [F, N, K]
        if self_at is not None:
            torch.diagonal(close, self_at, 1, 2).fill_(False)
        few = close.sum(dim=(1, 2)) <= MANY_PAIRS * close[0].numel()
        _recompute_pairs(fields[few], close[few], x, y, out)
        fields = fields[~few]
    out[fields] = _float64_distances(x[fields], y[fields]).to(out.dtype)
    _replace_self(out, self_at)


def _replace_self(distance: torch.Tensor, self_at: int | None) -> None:
    if self_at is not None:
        torch.diagonal(distance, self_at, 1, 2).copy_(distance[:, :, -1])


def _square_norms(points: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(points, dim=-1)
    return norms.square_()


def _float64_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.double(), y.double()
    square = _square_norms(x)[:, :, None] + _square_norms(y)[:, None, :]
    return square.baddbmm_(x, y.mT, alpha=-2).clamp_(min=0).sqrt_()


def _recompute_pairs(
    fields: torch.Tensor, close: torch.Tensor, x: torch.Tensor, y: torch.Tensor, distance: torch.Tensor
) -> None:
    """Distances of the pairs `close`, [F, N, K], of some fields, from the differences of their points."""
    f, i, k = close.nonzero(as_tuple=True)
    f = fields[f]
    for part in torch.arange(len(f), device=f.device).split(max(1, 2**22 // x.shape[-1])):
        difference = x[f[part], i[part]] - y[f[part], k[part]]
        distance[f[part], i[part], k[part]] = torch.linalg.vector_norm(difference, dim=-1)
