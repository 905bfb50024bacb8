"""Features of a set of images: moments of all of them, and the features themselves of up to 100,000.

Ranks share the images of a set. Rank 0 ends up with what one process would have, since every rank takes whole batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from driftkit.encoders.lineage import Lineage
from driftkit.errors import RefusedError
from driftkit.metrics.base import FeatureStats
from driftkit.metrics.moments import Moments
from driftkit.metrics.survey import Survey, survey_images
from driftkit.runtime.device import IEEE_FLOAT32, copy_to, ieee_float32
from driftkit.runtime.memory import fitting_batch
from driftkit.runtime.progress import phase
from driftkit.runtime.ranks import Ranks, together
from driftkit.scoring.evaluation_record import ExtractorInfo
from driftkit.scoring.image_set import ImageSet, ScoringExecution, default_batch_size

MAX_ROWS = 100_000  # features kept of one set; at 2048 dimensions they take 0.8 GB
BLOCK_ROWS = 4096  # features that are checked, summed and moved at a time, whatever the batch size is
ROW_SEED = 2020

Embed = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""uint8 images [n, 3, H, W] on the device -> features [n, D] and, from a classifier, logits [n, K]."""


@dataclass(frozen=True)
class Extractor:
    """A frozen network in whose features images are compared.

    Attributes:
        name: inception, dinov2, clip, efficientnet-lite2, pixels, "timm:MODEL", or "encoder:" and the folder of a run.
        version: which implementation made the features.
        weights_digest: sha256 of its weights; with `name` and `resize` it says which numbers may be compared.
        dim: length of a feature vector.
        num_classes: of its classifier; 0 where it has none.
        classes: their names, in the order of its logits; empty where it has no classifier or nobody knows them.
        inception_logits: whether its logits are those that the Inception Score is defined with.
        lineage: what its features come from; None where nobody knows.
        precision: of its convolutions and matrix products.
        block_rows: features that are checked, summed and moved at a time.
    """

    name: str
    version: str
    weights_digest: str
    resize: str
    dim: int
    embed: Embed
    device: torch.device
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    inception_logits: bool = False
    lineage: Lineage | None = None
    precision: str = IEEE_FLOAT32
    block_rows: int = BLOCK_ROWS

    @property
    def info(self) -> ExtractorInfo:
        """What records say of it."""
        return ExtractorInfo(**{name: getattr(self, name) for name in ExtractorInfo.model_fields})

    def blocks(
        self, images: torch.Tensor, *, batch_size: int | None = None, advance: Callable[[int], None] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Features float32 [n, dim] and logits [n, K] or None of `block_rows` images after another, on the device.

        The host waits for the device once per block, to learn whether its features are finite.

        Args:
            images: uint8 [N, 3, H, W].
            batch_size: images at a time; changes nothing beyond float32 rounding. None: `default_batch_size`.
            advance: called with the number of images just handed to the device.

        Raises:
            RefusedError: a feature is not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        waiting: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        done = 0
        for batch in images.split(batch_size or default_batch_size(self.device)) if len(images) else ():
            with fitting_batch(self.name, len(batch), partial(self._embed, batch), device=self.device):
                waiting.append(self._embed(batch, len(batch)))
            done += len(batch)
            if advance:
                advance(len(batch))
            if sum(len(values) for values, _ in waiting) < self.block_rows and done < len(images):
                continue
            values, logits = _joined(waiting)
            ready = len(values) if done == len(images) else len(values) // self.block_rows * self.block_rows
            waiting = [(values[ready:], None if logits is None else logits[ready:])]
            for first in range(0, ready, self.block_rows):
                rows = slice(first, min(first + self.block_rows, ready))
                if not bool(torch.isfinite(values[rows]).all()):
                    raise RefusedError(
                        f"{self.name} gives features that are not finite for these images; nothing was scored"
                    )
                yield values[rows], None if logits is None else logits[rows]

    def _embed(self, images: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.inference_mode(), ieee_float32(self.device):
            return self.embed(copy_to(images[:count], self.device))

    def features(
        self, images: torch.Tensor, *, advance: Callable[[int], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features of all images, float32 [N, dim] on the CPU, and the logits [N, K] or None; as `blocks`."""
        return _joined([(v.cpu(), None if s is None else s.cpu()) for v, s in self.blocks(images, advance=advance)])


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor | None]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits = [scores.float() for _, scores in parts if scores is not None]
    return torch.cat([values.float() for values, _ in parts]), torch.cat(logits) if logits else None


def kept_indices(total: int, max_rows: int = MAX_ROWS) -> torch.Tensor:
    """Which images of a set have their features kept: all, or a fixed random choice; int64, ascending."""
    if total <= max_rows:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(ROW_SEED))[:max_rows].sort().values


def extract(
    extractor: Extractor,
    images: ImageSet,
    execution: ScoringExecution,
    *,
    task: str | None = None,
    max_rows: int = MAX_ROWS,
) -> FeatureStats:
    """Features of a set that ranks share, streamed: next to `max_rows` of them only moments are held.

    Args:
        task: name for the progress callback; None takes the extractor's.

    Returns:
        Everything, on the CPU of rank 0; nothing elsewhere.

    Raises:
        RefusedError: a feature is not finite.
    """
    ranks, share = execution.ranks, images.share
    kept = kept_indices(share.total, max_rows)
    is_kept = torch.zeros(share.total, dtype=torch.bool)
    is_kept[kept] = True

    def advance(count: int) -> None:
        execution.report(task or extractor.name, count, len(share))

    advance(0)
    mine = is_kept[share.first : share.last]
    part = together(lambda: _extract_share(extractor, images.images, mine, execution.batch_size, advance), ranks)
    moments, survey = _merge(part.moments, ranks), part.survey
    assert part.logits is not None
    assert survey is not None
    rows, logits = gather_rows(part.rows, ranks), gather_rows(part.logits, ranks)
    survey = Survey(
        gather_rows(survey.digests, ranks),
        gather_rows(survey.flat.to(torch.uint8), ranks).bool(),
        gather_rows(survey.steps, ranks),
        gather_rows(survey.appearance, ranks),
    )
    if not ranks.is_main:
        return FeatureStats(moments, rows, kept[:0], survey)
    classified = extractor.num_classes > 0
    labels = None if images.labels is None else images.labels[kept]
    predictions = logits.argmax(dim=1) if classified else None
    return FeatureStats(moments, rows, kept, survey, predictions, logits if classified else None, labels)


def _extract_share(
    extractor: Extractor, images: torch.Tensor, is_kept: torch.Tensor, batch_size: int, advance: Callable[[int], None]
) -> FeatureStats:
    """Features of one rank's images, with logits of no classes where the extractor has no classifier."""
    moments = Moments(extractor.dim, device=extractor.device)
    rows, logits = [torch.empty(0, extractor.dim)], [torch.empty(0, extractor.num_classes)]
    done = 0
    for values, scores in extractor.blocks(images, batch_size=batch_size, advance=advance):
        moments.update(values)
        kept = is_kept[done : done + len(values)]
        done += len(values)
        rows.append(values.cpu()[kept])
        logits += [] if scores is None else [scores.cpu()[kept]]
    indices = is_kept.nonzero().flatten()
    with phase("looking at colours, sharpness and equal images"):
        survey = survey_images(images)
    return FeatureStats(moments.to("cpu"), torch.cat(rows), indices, survey, logits=torch.cat(logits))


def _merge(moments: Moments, ranks: Ranks) -> Moments:
    """The moments of all ranks, merged in their order, on rank 0; empty ones elsewhere."""
    if ranks.world_size == 1:
        return moments
    dim = len(moments.mean)
    flat = torch.cat([torch.tensor([float(moments.count)]).double(), moments.mean, moments.scatter.flatten()])
    merged = Moments(dim)
    for row in gather_rows(flat[None], ranks):
        merged.merge(Moments.of_sums(int(row[0]), row[1 : dim + 1], row[dim + 1 :].view(dim, dim)))
    return merged


def gather_rows(rows: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Rows [n_r, *] of all ranks one after another, on the CPU of rank 0; none elsewhere. Ranks may differ in n_r."""
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
