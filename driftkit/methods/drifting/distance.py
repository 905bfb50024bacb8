"""Euclidean distances between features, exact enough for small temperatures."""

import torch

from driftkit.runtime.device import ieee_float32

# A square below this share of |x|^2 + |y|^2 has lost too many digits in the product that it came from.
CLOSE = 0.05
# Where more of a field's pairs are that close, one product in float64 costs less than gathering them.
MANY = 1 / 64
# With no more channels than these, that product costs less than finding out which pairs are close.
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
    """Write the distances into `out`, [G, N, K].

    Squares come from one product of the points. In float32 that cancels where pairs are much closer than their norms,
    and small temperatures would amplify the error. With `wait` the host finds out where it did, and those pairs are
    computed again, from differences or in float64; without, the whole product is one of float64.

    Where x meets itself, `out` holds the distance to the last y instead: neither least nor greatest values then need a
    mask, and a sum can take it off again. Distances are not finite where features, or their squares, are not.
    """
    if not wait:
        out.copy_(_float64_distances(x, y))
        _cover_self(out, self_at)
        return
    x_square, y_square = _square_norms(x), _square_norms(y)
    torch.add(x_square[:, :, None], y_square[:, None, :], out=out)
    torch.baddbmm(out, x, y.mT, alpha=-2, out=out)
    _cover_self(out, self_at)
    least = out.flatten(1).amin(dim=1)
    doubtful = ~(least >= CLOSE * (x_square.amax(dim=1) + y_square.amax(dim=1)))
    out.sqrt_()
    fields = doubtful.nonzero().flatten()
    if len(fields):
        _mend(fields, x, y, out, x_square, y_square, self_at=self_at)
        _cover_self(out, self_at)


def _cover_self(matrix: torch.Tensor, self_at: int | None) -> None:
    if self_at is not None:
        torch.diagonal(matrix, self_at, 1, 2).copy_(matrix[:, :, -1])


def _square_norms(points: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(points, dim=-1)
    return norms.square_()


def _mend(
    fields: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    distance: torch.Tensor,
    x_square: torch.Tensor,
    y_square: torch.Tensor,
    *,
    self_at: int | None,
) -> None:
    """Compute distances of some fields again where their squares, maybe negative, cancelled."""
    if x.shape[2] > FEW_CHANNELS:
        size = x_square[fields][:, :, None] + y_square[fields][:, None, :]
        close = ~(distance[fields].square() >= CLOSE * size)  # a negative square has become nan
        if self_at is not None:
            torch.diagonal(close, self_at, 1, 2).fill_(False)
        few = close.sum(dim=(1, 2)) <= MANY * close[0].numel()
        _mend_pairs(fields[few], close[few], x, y, distance)
        fields = fields[~few]
    distance[fields] = _float64_distances(x[fields], y[fields]).to(distance.dtype)


def _float64_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.double(), y.double()
    square = _square_norms(x)[:, :, None] + _square_norms(y)[:, None, :]
    return square.baddbmm_(x, y.mT, alpha=-2).clamp_(min=0).sqrt_()


def _mend_pairs(
    fields: torch.Tensor, close: torch.Tensor, x: torch.Tensor, y: torch.Tensor, distance: torch.Tensor
) -> None:
    f, i, k = close.nonzero(as_tuple=True)
    f = fields[f]
    for part in torch.arange(len(f), device=f.device).split(max(1, 2**22 // x.shape[-1])):
        difference = x[f[part], i[part]] - y[f[part], k[part]]
        distance[f[part], i[part], k[part]] = torch.linalg.vector_norm(difference, dim=-1)
