"""Around the plain algorithm of `field`: its fields in chunks, their buffers, and scales shared by fields and ranks.

Memory: a workspace of `chunk_bytes` holds the points, distances, coefficients and V of the fields at hand. Beyond it,
memory is taken by the result; by three more matrices of pairs where kernels are too sharp for sums of exponentials;
and, where more fields share a scale than fit, by V of all of them until their common lambda is known.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from driftkit.errors import NonFiniteError, UsageError
from driftkit.methods.drifting.distance import write_distances
from driftkit.methods.drifting.sharing import Points
from driftkit.runtime.ranks import Ranks

ScaleOver = Literal["map", "location"] | Sequence[int] | torch.Tensor

# On a CPU such a workspace stays in the caches; on a GPU every chunk costs launches and, with ranks, reductions.
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 2 * 2**30}

# V of fields that share a scale is kept for all temperatures at once up to this many workspaces. Beyond, temperatures
# come one after another, and distances are computed again for each.
KEPT_CHUNKS = 8


def workspace_bytes(*, num_rows: int, num_columns: int, channels: int, num_taus: int, wait: bool = True) -> int:
    """Bytes of the workspace that one field takes in float32: its points, distances, coefficients and V.

    Args:
        num_rows: generated features of this rank; num_columns: negatives and positives of all ranks.
        wait: as for `aggregated_drift`; without, points and distances of float64 and the logarithms count, too.
    """
    pairs = num_rows * num_columns
    count = pairs * (1 + num_taus) + num_columns * channels + num_taus * num_rows * channels
    if not wait:
        count += max(2 * (pairs + (num_rows + num_columns) * channels), 3 * num_taus * pairs)
    return 4 * count


def field_flops(*, num_rows: int, num_columns: int, channels: int, num_taus: int) -> int:
    """Floating point operations of one field's matrix products: one of all pairs, and one per temperature."""
    return 2 * num_rows * num_columns * channels * (1 + num_taus)


class ScaleGroups:
    """Which fields share the scales S and lambda. Kept from call to call: nothing here follows from features.

    Args:
        numbers: the group of each field.

    Attributes:
        order: int64 [G] on the device, the fields group by group; None: they come in this order.
        sizes: fields of each group, in that order.
        separate: every field has scales of its own.
    """

    def __init__(self, numbers: tuple[int, ...], device: torch.device):
        self.fields = sorted(range(len(numbers)), key=numbers.__getitem__)
        self.order = None if self.fields == [*range(len(numbers))] else torch.tensor(self.fields, device=device)
        self.sizes = [len([*members]) for _, members in itertools.groupby(sorted(numbers))]
        self.separate = len(self.sizes) == len(numbers)
        self._numbers, self._device = sorted(numbers), device
        self._members: dict[range, tuple[torch.Tensor, torch.Tensor]] = {}

    def members(self, fields: range) -> tuple[torch.Tensor, torch.Tensor]:
        """For fields of whole groups: which of these groups each belongs to [F], and the size of each group."""
        if fields not in self._members:
            numbers = self._numbers[fields.start : fields.stop]
            sizes = [len([*members]) for _, members in itertools.groupby(numbers)]
            index = [number for number, size in enumerate(sizes) for _ in range(size)]
            self._members[fields] = torch.tensor(index, device=self._device), torch.tensor(sizes, device=self._device)
        return self._members[fields]


_scale_groups = functools.lru_cache(maxsize=64)(ScaleGroups)


def scale_groups(scale_over: ScaleOver, num_fields: int, device: torch.device) -> ScaleGroups:
    """The groups that `scale_over` of `aggregated_drift` describes.

    Raises:
        UsageError: neither "map", "location" nor an integer for each field.
    """
    if isinstance(scale_over, str):
        if scale_over not in ("map", "location"):
            raise UsageError(f"scale_over: expected 'map', 'location' or {num_fields} integers, got {scale_over!r}")
        return _scale_groups((0,) * num_fields if scale_over == "map" else tuple(range(num_fields)), device)
    numbers = tuple(scale_over.tolist() if isinstance(scale_over, torch.Tensor) else scale_over)
    if len(numbers) != num_fields or not all(isinstance(number, int) for number in numbers):
        raise UsageError(f"scale_over: expected {num_fields} integers, got {numbers}")
    return _scale_groups(numbers, device)


class Workspace:
    """Buffers of one call of `aggregated_drift`, for `chunk_fields` fields at a time.

    Fields are numbered in the order of their scale groups; a `range` of them is what the methods take.

    Attributes:
        y: [F, K, C], the points of all ranks, centred at the mean of x, which the field does not depend on.
        distance: [F, n, K]; coefficients: [F, T, n, K]; v_tau: [F, T, n, C].
    """

    def __init__(
        self,
        points: Points,
        groups: ScaleGroups,
        *,
        num_taus: int,
        dtype: torch.dtype,
        chunk_bytes: int,
        wait: bool,
        scale_ranks: Ranks,
    ):
        self.points, self.ranks, self.groups, self.scale_ranks = points, points.ranks, groups, scale_ranks
        self.chunk_bytes, self.wait = chunk_bytes, wait
        g, _, c = points.x.shape
        n, k, t = points.num_rows, points.num_columns, num_taus
        one_field = workspace_bytes(num_rows=n, num_columns=k, channels=c, num_taus=t, wait=wait)
        self.chunk_fields = max(1, min(g, chunk_bytes // (one_field * (dtype.itemsize // 4))))
        new = functools.partial(points.x.new_empty, dtype=dtype)
        self.y = new((self.chunk_fields, k, c))
        self.distance = new((self.chunk_fields, n, k))
        self.coefficients = new((self.chunk_fields, t, n, k))
        self.v_tau = new((self.chunk_fields, t, n, c))

    def whole_groups(self) -> Iterator[range]:
        """All fields in ranges of whole scale groups, of at most one chunk where a group allows it."""
        start = size = 0
        for group in self.groups.sizes:
            if size and size + group > self.chunk_fields:
                yield range(start, start + size)
                start, size = start + size, 0
            size += group
        yield range(start, start + size)

    def chunks(self, fields: range) -> list[tuple[range, slice]]:
        """The fields in chunks, and where each chunk lies among them."""
        starts = range(0, len(fields), self.chunk_fields)
        return [(fields[i : i + self.chunk_fields], slice(i, i + self.chunk_fields)) for i in starts]

    def kept_drifts(self, fields: range) -> Iterator[tuple[slice, torch.Tensor]]:
        """Temperatures to compute together, and room for V of all the fields at these, [F, T, n, C]."""
        f, (_, t, n, c) = len(fields), self.v_tau.shape
        if f <= self.chunk_fields:
            yield slice(0, t), self.v_tau[:f]
        elif self.v_tau[0].nbytes * f <= KEPT_CHUNKS * self.chunk_bytes:
            yield slice(0, t), self.v_tau.new_empty((f, t, n, c))
        else:
            kept = self.v_tau.new_empty((f, 1, n, c))
            for one in range(t):
                yield slice(one, one + 1), kept

    def load(self, chunk: range, prescale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fill y with features times `prescale` [F], and the distances of this rank's x to them. Returns both."""
        y, distance, points = self.y[: len(chunk)], self.distance[: len(chunk)], self.points
        start = 0
        for source in (points.x, *points.others):
            stop = start + source.shape[1]
            torch.mul(self.select(source, chunk), prescale[:, None, None], out=y[:, start:stop])
            start = stop
        y.sub_(y[:, : points.x.shape[1]].mean(dim=1, keepdim=True))
        x = y[:, points.first_row : points.first_row + points.num_rows]
        write_distances(x, y, distance, self_at=points.first_row, wait=self.wait)
        return y, distance

    def weight(self, fields: range) -> torch.Tensor | None:
        """[F, K], of the affinities."""
        return None if self.points.weight is None else self.select(self.points.weight, fields).to(self.y.dtype)

    def prescale(self, fields: range) -> torch.Tensor:
        """[F], powers of two that bring the features of every scale group near 1; 1 where they are not finite."""
        largest = self.group_max(fields, self._largest(fields))
        usable = torch.isfinite(largest) & (largest > 0)
        return torch.where(usable, torch.exp2(-torch.frexp(largest).exponent.to(self.y.dtype)), 1.0)

    def require_finite(self, fields: range) -> None:
        """Raise NonFiniteError for features that are not finite, on all ranks that share scales."""
        finite = torch.isfinite(self._largest(fields))
        if bool(self.scale_ranks.max((~finite).any().float())):
            bad = [self.groups.fields[f] for f, good in zip(fields, finite.tolist(), strict=True) if not good]
            raise NonFiniteError(bad)

    def _largest(self, fields: range) -> torch.Tensor:
        """[F], the greatest size of a feature; not finite where one of them is not."""
        largest = [self.select(p, fields).abs().amax(dim=(1, 2)) for p in (self.points.x, *self.points.others)]
        return torch.stack(largest).to(self.y.dtype).amax(dim=0)  # a maximum with nan is nan

    def group_mean(self, fields: range, values: torch.Tensor) -> torch.Tensor:
        """Every field's value [F, ...] replaced by the mean over its scale group, equally many fields on each rank."""
        return self.scale_ranks.mean(self._local_mean(fields, values))

    def _local_mean(self, fields: range, values: torch.Tensor) -> torch.Tensor:
        if self.groups.separate:
            return values
        index, sizes = self.groups.members(fields)
        sums = torch.segment_reduce(values, "sum", lengths=sizes, axis=0, unsafe=True)  # in one order on all ranks
        return (sums / sizes.to(values).view(-1, *[1] * (values.ndim - 1)))[index]

    def group_max(self, fields: range, values: torch.Tensor) -> torch.Tensor:
        """Every field's value [F, ...] replaced by the greatest of its scale group."""
        return self.scale_ranks.max(self._local_max(fields, values))

    def _local_max(self, fields: range, values: torch.Tensor) -> torch.Tensor:
        if self.groups.separate:
            return values
        index, sizes = self.groups.members(fields)
        lowest = values.new_full((len(sizes), *values.shape[1:]), -torch.inf)
        index_of = index.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
        return lowest.scatter_reduce_(0, index_of, values, "amax")[index]

    def select(self, tensor: torch.Tensor, fields: range) -> torch.Tensor:
        """Rows of a tensor [G, ...] that holds the fields as they came."""
        order = self.groups.order
        return tensor[fields.start : fields.stop] if order is None else tensor[order[fields.start : fields.stop]]

    def store(self, tensor: torch.Tensor, fields: range, values: torch.Tensor) -> None:
        """The opposite of `select`: tensor[fields] = values."""
        order = self.groups.order
        if order is None:
            tensor[fields.start : fields.stop] = values
        else:
            tensor.index_copy_(0, order[fields.start : fields.stop], values.to(tensor.dtype))
