"""Turning a set of images into what is scored: moments of all features, and the features themselves of up to 100,000.

Ranks share the images of a set. Rank 0 ends up with what one process would have, since every rank takes whole batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from driftkit.encoders.lineage import Lineage
from driftkit.errors import DriftkitError, RefusedError
from driftkit.metrics.base import FeatureStats
from driftkit.metrics.moments import Moments
from driftkit.metrics.survey import Survey, survey_images
from driftkit.runtime.device import IEEE_FLOAT32, copy_to, ieee_float32
from driftkit.runtime.memory import fitting_batch
from driftkit.runtime.ranks import Ranks

MOST_ROWS = 100_000  # features kept of one set; at 2048 dimensions they take 0.8 GB
BLOCK_ROWS = 4096  # features that are checked, summed and moved at a time, whatever the batch size is
BATCH_SIZES = {"cpu": 64, "cuda": 256}  # images at a time, by device type: small batches leave a GPU idle
ROW_SEED = 2020


def default_batch_size(device: torch.device) -> int:
    """Images that an extractor on the device sees at a time unless told otherwise."""
    return BATCH_SIZES.get(device.type, BATCH_SIZES["cpu"])


Embed = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""uint8 images [n, 3, H, W] on the device -> features [n, D] and, from a classifier, logits [n, K]."""


@dataclass(frozen=True)
class Extractor:
    """A frozen network in whose features images are compared.

    Attributes:
        name: inception, dinov2, clip, efficientnet-lite2, pixels, "timm:MODEL", or "encoder:" and the run's folder
            name.
        version: which implementation made the features.
        weights_digest: sha256 of its weights; with `name` and `resize` it says which numbers may be compared.
        resize: how images get to the network's size.
        precision: of its convolutions and matrix products.
        dim: length of a feature vector.
        embed: the network with its resizing.
        device: where `embed` expects its images.
        num_classes: of its classifier; 0 where it has none.
        scores_inception: whether its logits are those that the Inception Score is defined with.
        lineage: what its features come from; None where nobody knows.
    """

    name: str
    version: str
    weights_digest: str
    resize: str
    dim: int
    embed: Embed
    device: torch.device
    num_classes: int = 0
    scores_inception: bool = False
    lineage: Lineage | None = None
    precision: str = IEEE_FLOAT32

    def describe(self) -> dict[str, Any]:
        """What an evaluation records of it."""
        keys = ("name", "version", "weights_digest", "resize", "precision", "dim")
        return {key: getattr(self, key) for key in keys}

    def blocks(
        self, images: torch.Tensor, *, batch_size: int | None = None, advance: Callable[[int], None] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Features of BLOCK_ROWS images after another, on the extractor's device; the last block may be smaller.

        The host waits for the device once per block, to learn whether its features are finite.

        Args:
            images: uint8 [N, 3, H, W].
            batch_size: images at a time; changes nothing beyond float32 rounding. None: `default_batch_size`.
            advance: called with the number of images just handed to the device.

        Yields:
            float32 [n, dim], and the logits [n, K] or None.

        Raises:
            RefusedError: a feature is not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        waiting: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        done = 0
        for batch in images.split(batch_size or default_batch_size(self.device)) if len(images) else ():
            with fitting_batch(self.name, len(batch), partial(self._try, batch), device=self.device):
                waiting.append(self._try(batch, len(batch)))
            done += len(batch)
            if advance:
                advance(len(batch))
            if sum(len(values) for values, _ in waiting) < BLOCK_ROWS and done < len(images):
                continue
            values, logits = _joined(waiting)
            whole = len(values) if done == len(images) else len(values) // BLOCK_ROWS * BLOCK_ROWS
            waiting = [(values[whole:], None if logits is None else logits[whole:])]
            for first in range(0, whole, BLOCK_ROWS):
                which = slice(first, min(first + BLOCK_ROWS, whole))
                yield self._checked(values[which]), None if logits is None else logits[which]

    def _try(self, images: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.inference_mode(), ieee_float32(self.device):
            return self.embed(copy_to(images[:count], self.device))

    def _checked(self, values: torch.Tensor) -> torch.Tensor:
        if not bool(torch.isfinite(values).all()):
            raise RefusedError(f"{self.name} gives features that are not finite for these images; nothing was scored")
        return values

    def features(
        self, images: torch.Tensor, *, batch_size: int | None = None, advance: Callable[[int], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features of all images, float32 [N, dim] on the CPU, and the logits [N, K] or None; as `blocks` otherwise."""
        blocks = [
            (values.cpu(), None if logits is None else logits.cpu())
            for values, logits in self.blocks(images, batch_size=batch_size, advance=advance)
        ]
        logits = [scores for _, scores in blocks if scores is not None]
        return torch.cat([values for values, _ in blocks]), torch.cat(logits) if logits else None


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor | None]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features and logits of several batches as those of all their images, float32."""
    logits = [scores.float() for _, scores in parts if scores is not None]
    return torch.cat([values.float() for values, _ in parts]), torch.cat(logits) if logits else None


@dataclass(frozen=True)
class Share:
    """Which images of a set are this rank's: whole batches, so that every image meets the same ones in any world.

    Attributes:
        first, last: the range of them, without `last`.
        total: of all ranks.
    """

    first: int
    last: int
    total: int

    @classmethod
    def of(cls, total: int, *, batch_size: int, ranks: Ranks) -> "Share":
        batches = -(-total // batch_size)
        first, last = (batches * r // ranks.world_size * batch_size for r in (ranks.rank, ranks.rank + 1))
        return cls(min(first, total), min(last, total), total)

    def __len__(self) -> int:
        return self.last - self.first


Result = TypeVar("Result")


def together(work: Callable[[], Result], ranks: Ranks) -> Result:
    """Do something on every rank that needs no other rank; where one fails, all stop instead of waiting for it.

    Raises:
        Exception: what `work` raised here.
        RefusedError, DriftkitError: it was refused, or failed, elsewhere.
    """
    problem: Exception | None = None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others have to know before it goes on its way
        problem = error
    severity = 0 if problem is None else 1 if isinstance(problem, RefusedError) else 2
    worst = int(ranks.max(torch.tensor([severity])))
    if problem is not None:
        raise problem
    if worst:  # the same kind everywhere, so that all ranks go on alike where a refusal does not end the command
        kind = RefusedError if worst == 1 else DriftkitError
        raise kind("another process of this command failed; its message says why")
    return result


def kept_indices(total: int, most: int = MOST_ROWS) -> torch.Tensor:
    """Which images of a set have their features kept: all, or a fixed random choice; int64, ascending."""
    if total <= most:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(ROW_SEED))[:most].sort().values


@dataclass
class _Part:
    """What one rank made of its images."""

    moments: Moments
    rows: torch.Tensor
    logits: torch.Tensor
    survey: Survey


def extract(
    extractor: Extractor,
    images: torch.Tensor,
    share: Share,
    *,
    batch_size: int | None = None,
    ranks: Ranks | None = None,
    labels: torch.Tensor | None = None,
    advance: Callable[[int], None] | None = None,
    most_rows: int = MOST_ROWS,
) -> FeatureStats:
    """Features of a set that ranks share, streamed: beside `most_rows` of them only moments are held.

    Args:
        images: this rank's part, uint8 [len(share), 3, H, W].
        batch_size: images at a time; None: `default_batch_size`.
        labels: true classes of the whole set, int64 [N].
        advance: called with the number of images just done here.

    Returns:
        Everything, on the CPU of rank 0; nothing elsewhere.

    Raises:
        RefusedError: a feature is not finite.
    """
    ranks = ranks or Ranks()
    kept = kept_indices(share.total, most_rows)
    is_kept = torch.zeros(share.total, dtype=torch.bool)
    is_kept[kept] = True
    mine = is_kept[share.first : share.last]
    part = together(lambda: _extract_part(extractor, images, mine, batch_size=batch_size, advance=advance), ranks)
    moments = _merge(part.moments, ranks)
    rows, logits = gather_rows(part.rows, ranks), gather_rows(part.logits, ranks)
    survey = Survey(
        gather_rows(part.survey.digests, ranks),
        gather_rows(part.survey.flat.to(torch.uint8), ranks).bool(),
        gather_rows(part.survey.steps, ranks),
        gather_rows(part.survey.appearance, ranks),
    )
    if not ranks.is_main:
        kept, labels = kept[:0], None
    classified = extractor.num_classes > 0 and ranks.is_main
    return FeatureStats(
        moments,
        rows,
        kept,
        survey,
        logits.argmax(dim=1) if classified else None,
        logits if classified else None,
        None if labels is None else labels[kept],
    )


def _extract_part(
    extractor: Extractor,
    images: torch.Tensor,
    is_kept: torch.Tensor,
    *,
    batch_size: int | None,
    advance: Callable[[int], None] | None,
) -> _Part:
    moments = Moments(extractor.dim, device=extractor.device)
    rows, logits = [torch.empty(0, extractor.dim)], [torch.empty(0, extractor.num_classes)]
    done = 0
    for values, scores in extractor.blocks(images, batch_size=batch_size, advance=advance):
        moments.update(values)
        here = is_kept[done : done + len(values)]
        done += len(values)
        rows.append(values.cpu()[here])
        logits += [] if scores is None else [scores.cpu()[here]]
    return _Part(moments.to("cpu"), torch.cat(rows), torch.cat(logits), survey_images(images))


def _merge(moments: Moments, ranks: Ranks) -> Moments:
    """The moments of all ranks, merged in their order, on rank 0; empty ones elsewhere."""
    if ranks.world_size == 1:
        return moments
    dim = len(moments.mean)
    flat = torch.cat([torch.tensor([float(moments.count)]).double(), moments.mean, moments.scatter.flatten()])
    merged = Moments(dim)
    for row in gather_rows(flat[None], ranks):
        other = Moments(dim)
        other.count, other.mean, other.scatter = int(row[0]), row[1 : dim + 1], row[dim + 1 :].view(dim, dim)
        merged.merge(other)
    return merged


def gather_rows(rows: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Rows [n_r, *] of all ranks one after another, on the CPU of rank 0; none of them elsewhere.

    Ranks may differ in n_r.
    """
    if ranks.world_size == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks.world_size)]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    most = int(torch.cat(counts).max())
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts] if ranks.is_main else None
    if padded.numel():
        dist.gather(padded, parts)
    if parts is None:
        return rows[:0]
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
