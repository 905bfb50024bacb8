"""Gradients of several ranks, in a few flat buffers whose averaging overlaps with the backward pass.

DistributedDataParallel does so for one forward and one backward pass per step. Objectives here call a network several
times before a backward pass, and let parameters join in at a later step, which it takes for errors.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from driftkit.runtime.ranks import Ranks

BUCKET_BYTES = 25 * 2**20  # as DistributedDataParallel has it: large enough for bandwidth, small enough to begin early


@dataclass
class _Bucket:
    """Gradients that are exchanged together."""

    flat: torch.Tensor  # all of them, one after another
    views: dict[nn.Parameter, torch.Tensor]  # parameter -> its gradient, with the strides of the parameter
    missing: int = 0  # how many of them the last backward pass has not computed yet
    work: dist.Work | None = None  # the reduction, once it has begun


class GradientExchange:
    """Averages the gradients of a network over ranks.

    Between `clear` and `finish` the gradients are views of flat buffers of at least `bucket_bytes`, into which backward
    passes add. Buffers are sent in one order on all ranks, each as soon as the last backward pass has filled it and
    those before. Parameters without a gradient in the previous step have buffers of their own at the end, so that no
    other buffer waits for them. In a world of one this leaves gradients to torch. Frozen parameters are skipped.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks, *, bucket_bytes: int = BUCKET_BYTES):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.ranks, self.bucket_bytes = ranks, bucket_bytes
        self._buckets: list[_Bucket] = []  # none in a world of one
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._received: set[nn.Parameter] = set()  # those with a gradient in this step
        self._expected: set[nn.Parameter] = set()  # those with one in the step that the buffers were laid out for
        self._is_last = False  # whether the last backward pass runs
        if ranks.world_size > 1:
            for parameter in self.parameters:
                parameter.register_post_accumulate_grad_hook(self._receive)
            self._lay_out(set(self.parameters))
            self.clear()

    def _lay_out(self, expected: set[nn.Parameter]) -> None:
        """Make buffers in the order in which a backward pass fills them: about that of the parameters, backwards."""
        backwards, self._buckets = self.parameters[::-1], []
        for together in ([p for p in backwards if p in expected], [p for p in backwards if p not in expected]):
            self._buckets += _buckets(together, self.bucket_bytes)
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.views}
        self._expected = expected

    def clear(self) -> None:
        """Forget all gradients before the next step."""
        if not self._buckets:
            for parameter in self.parameters:
                parameter.grad = None
            return
        if self._received and self._received != self._expected:
            self._lay_out(set(self._received))
        for bucket in self._buckets:
            bucket.flat.zero_()
            for parameter, view in bucket.views.items():
                parameter.grad = view
        self._received.clear()

    @contextlib.contextmanager
    def last_backward(self) -> Iterator[None]:
        """The context of a step's last backward pass: complete buffers are sent during it, the others afterwards."""
        if not self._buckets:
            yield
            return
        for bucket in self._buckets:
            bucket.missing = len(bucket.views)
        self._is_last = True
        try:
            yield
        finally:
            self._is_last = False
        self._send_all()

    def finish(self) -> None:
        """Wait until every gradient is the mean over ranks; on CUDA, have the stream wait.

        Parameters that no backward pass of the step has reached get none, so that the optimizer skips them. They must
        be the same on all ranks.
        """
        if not self._buckets:
            return
        self._send_all()
        for bucket in self._buckets:
            assert bucket.work is not None
            bucket.work.wait()
            bucket.work = None
            bucket.flat /= self.ranks.world_size
        for parameter in self.parameters:
            if parameter not in self._received:
                parameter.grad = None

    def _receive(self, parameter: nn.Parameter) -> None:
        self._received.add(parameter)
        if not self._is_last:
            return
        self._bucket_of[parameter].missing -= 1
        for bucket in self._buckets:
            if bucket.missing:
                break
            self._send(bucket)

    def _send_all(self) -> None:
        for bucket in self._buckets:
            self._send(bucket)

    def _send(self, bucket: _Bucket) -> None:
        if bucket.work is None:
            assert all(p.grad is view for p, view in bucket.views.items()), "gradients were replaced during the step"
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)


def _buckets(parameters: list[nn.Parameter], min_bytes: int) -> list[_Bucket]:
    """The parameters in order, in as few buckets of at least `min_bytes` as that makes; the last may be smaller."""
    groups: list[list[nn.Parameter]] = []
    for parameter in parameters:
        if not groups or sum(p.nbytes for p in groups[-1]) >= min_bytes:
            groups.append([])
        groups[-1].append(parameter)
    buckets = []
    for group in groups:
        sizes = [p.numel() for p in group]
        flat = group[0].new_zeros(sum(sizes))
        # Strides of the parameter (channels_last): accumulation and fused updates would copy others.
        views = {p: part.as_strided(p.size(), p.stride()) for p, part in zip(group, flat.split(sizes), strict=True)}
        buckets.append(_Bucket(flat, views))
    return buckets
