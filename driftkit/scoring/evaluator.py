"""Scoring: generated images against real ones, with everything the number depends on written beside it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftkit import __version__
from driftkit.errors import RefusedError, UsageError
from driftkit.metrics.frechet import frechet_distance
from driftkit.metrics.memorization import NUM_PAIRS, Memorization
from driftkit.runtime.progress import Report
from driftkit.runtime.ranks import Ranks
from driftkit.scoring.evaluation_record import (
    SCORES_VERSION,
    Judging,
    default_path,
    evaluation_document,
    evaluator_label,
)
from driftkit.scoring.extraction import Extractor, Share, default_batch_size, extract, together
from driftkit.scoring.extractors import load_extractor
from driftkit.scoring.image_set import (
    DEFAULT_NUM_IMAGES,
    Opening,
    Sampling,
    Target,
    is_run,
    open_target,
    require_target,
    sizes_differ,
)
from driftkit.scoring.reference_statistics import write_statistics
from driftkit.scoring.references import Bench, Reference, Training, open_reference, open_training
from driftkit.scoring.sanity import collapse_warning, require_scorable
from driftkit.storage.files import digest_json, sha256_file, write_json
from driftkit.storage.images import save_grid
from driftkit.storage.run_folder import Run

__all__ = [
    "DEFAULT_NUM_IMAGES", "Evaluation", "Judge", "Judging", "Sampling", "evaluate", "evaluate_with", "open_judge",
]  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """An evaluation and where it was written. Of several processes only the first has a document."""

    document: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class Opened:
    """Images to score, how they were sampled if they are a run's, and how long opening or sampling them took."""

    target: Target
    sampling: Sampling
    seconds: float


@dataclass
class Judge:
    """An extractor with a reference: scores one target after another.

    Attributes:
        image_size: side in pixels to which images of files are brought; None leaves them.
    """

    bench: Bench
    reference: Reference
    judging: Judging = field(default_factory=Judging)
    image_size: int | None = None
    _training: dict[str, Training] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.bench.ranks.is_main

    def identity(self, run: Run, num_images: int, sampling: Sampling) -> str:
        """Digest of everything that an evaluation of a run follows from: equal ones need not be made twice."""
        wanted = sampling.resolved()
        checkpoint = run.checkpoint(sampling.step)
        return digest_json(
            {
                "scores": SCORES_VERSION,
                "driftkit": __version__,
                "sampling": {**wanted, "step": checkpoint.step},
                "checkpoint": sha256_file(checkpoint.path / f"{wanted['weights']}.safetensors"),
                "num_images": num_images,
                "extractor": self.bench.extractor.describe(),
                "reference": self.reference.digest,
                "memorisation": [self.judging.memorisation, self.judging.training],
            }
        )

    def score(self, opened: Opened, output: Path | None = None) -> Evaluation:
        """Score images that were opened, and write the evaluation.

        Args:
            output: where to write; None puts it into the run's evaluations, else beside the target.

        Raises:
            RefusedError: a number would mislead.
        """
        bench, found, seconds = self.bench, opened.target, {"images": opened.seconds}
        self._require_same_size(found)
        with timed(seconds, "features"):
            generated = extract(
                bench.extractor,
                found.images,
                found.share,
                batch_size=bench.batch_size,
                ranks=bench.ranks,
                labels=found.labels,
                advance=lambda n: bench.report(bench.extractor.name, n, len(found.share)),
            )
        with timed(seconds, "training images"):
            training = self._training_images(found.run)

        def judged() -> tuple[dict[str, Any], Memorization | None]:
            if not self.is_main:
                return {}, None
            return evaluation_document(found, generated, self.reference, training, self.judging, bench)

        with timed(seconds, "scores"):
            document, copies = together(judged, bench.ranks)
        worst = self._worst_images(found, copies)
        if not self.is_main:
            return Evaluation({}, found.path)
        path = output or default_path(found, document)
        if is_run(found.path) and found.run:
            document["identity"] = self.identity(found.run, len(generated), opened.sampling)
        if copies is not None and training is not None:
            picture = path.with_suffix(".nearest.png")
            nearest = training.images[[pair.training for pair in copies.worst]]
            save_pairs(picture, worst[: len(copies.worst)], nearest)
            document["memorisation"]["picture"] = picture.name
        document["seconds_by_part"] = {name: round(value, 3) for name, value in seconds.items()}
        document["seconds"] = round(sum(seconds.values()), 3)
        write_json(path, document)
        return Evaluation(document, path)

    def write_statistics(self, path: Path) -> None:
        """Write the reference's statistics where they may be given to others.

        Raises:
            UsageError: they were made by another program.
        """
        statistics = self.reference.statistics
        if statistics.is_foreign:
            raise UsageError(
                f"--write-statistics: {self.reference.spec} holds foreign statistics, which stay as they are"
            )
        if self.is_main:
            write_statistics(path, statistics.features, statistics.contract)

    def fid(self, images: torch.Tensor) -> float:
        """The Fréchet distance of uint8 images [N, 3, H, W], in this process alone; nothing is written.

        Raises:
            RefusedError: they are not scorable.
        """
        share = Share(0, len(images), len(images))
        generated = extract(self.bench.extractor, images, share, batch_size=self.bench.batch_size)
        assert generated.survey is not None
        require_scorable(generated.survey, "samples", allow_collapsed=self.judging.allow_collapsed)
        real = self.reference.statistics.features
        collapse_warning(generated.moments, real.moments, allow_collapsed=self.judging.allow_collapsed)
        return frechet_distance(generated.moments, real.moments, device=self.bench.device)

    def _require_same_size(self, found: Target) -> None:
        size = self.reference.image_size
        height, width = found.size
        if size is not None and (height, width) != (size, size):
            raise RefusedError(sizes_differ(width, size))

    def _training_images(self, run: Run | None) -> Training | None:
        """Opened once for all targets that were trained on the same ones."""
        if not self.judging.memorisation or self.reference.statistics.is_foreign:
            return None
        key = str(run.path) if run is not None else ""
        if key not in self._training:
            self._training[key] = open_training(run, self.judging.training, self.reference, self.bench)
        return self._training[key]

    def _worst_images(self, found: Target, copies: Memorization | None) -> torch.Tensor:
        """The generated images that are nearest to training images, from whichever rank has them."""
        wanted = torch.full((NUM_PAIRS,), -1, dtype=torch.int64)
        if copies is not None:
            wanted[: len(copies.worst)] = torch.tensor([pair.generated for pair in copies.worst])
        images = torch.zeros(NUM_PAIRS, *found.images.shape[1:], dtype=torch.int32)
        for row, number in enumerate(self.bench.ranks.max(wanted).tolist()):
            if found.share.first <= number < found.share.last:
                images[row] = found.images[number - found.share.first].int()
        return self.bench.ranks.sum(images).to(torch.uint8)


def evaluate_with(
    judges: Sequence[Judge],
    target: Path,
    *,
    num_images: int | None = None,
    sampling: Sampling | None = None,
    part: tuple[int, int] = (0, 1),
    output: Path | None = None,
) -> list[Evaluation]:
    """Open or sample the images of a target once, and score them by each evaluator.

    Args:
        judges: of one reference and device, at least one.
        num_images, sampling: as in `evaluate`.
        part: (k, K): the k-th of K disjoint parts of images that are there already.
        output: where to write; with several evaluators each adds its name.

    Raises:
        RefusedError: an evaluator's number would mislead; those of the others were written.
    """
    opened = open_once(judges, target, num_images=num_images, sampling=sampling, part=part)
    made, refused = [], []
    for judge in judges:
        try:
            made.append(judge.score(opened, output_of(judge, output, several=len(judges) > 1)))
        except RefusedError as error:
            refused.append(error)
    if refused:
        raise refused[0]
    return made


def open_once(
    judges: Sequence[Judge],
    target: Path,
    *,
    num_images: int | None = None,
    sampling: Sampling | None = None,
    part: tuple[int, int] = (0, 1),
) -> Opened:
    """The images that all of the evaluators are to score; the arguments are those of `evaluate_with`."""
    first, sampling = judges[0], sampling or Sampling()
    bench = first.bench
    require_target(target, sampling, reference_size=first.reference.image_size)
    opening = Opening(
        num_images, first.image_size, part, bench.batch_size, bench.device, bench.ranks, report=bench.report
    )
    started = time.monotonic()
    found = together(lambda: open_target(target, sampling, opening), bench.ranks)
    return Opened(found, sampling, time.monotonic() - started)


def output_of(judge: Judge, output: Path | None, *, several: bool) -> Path | None:
    """Where an evaluator writes: what was named, with the evaluator's name in it where there are several."""
    if output is None or not several:
        return output
    return output.with_name(f"{output.stem}-{evaluator_label(judge.bench.extractor.describe())}.json")


def evaluate(
    target: Path,
    reference: str,
    *,
    features: str | Extractor = "inception",
    features_weights: Path | None = None,
    num_images: int | None = None,
    sampling: Sampling | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    device: torch.device | None = None,
    output: Path | None = None,
    allow_collapsed: bool = False,
    judging: Judging | None = None,
    cache: bool = True,
    report: Report = lambda what, done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score a run, a samples file or any images against real images, and write the evaluation.

    Args:
        target: a run (which is sampled), a samples file, or a folder, archive or pack of images.
        reference: data SPEC of the real images, or a file of statistics.
        features: a name that `load_extractor` knows, or an extractor.
        features_weights: local weights of the extractor.
        num_images: how many; None takes 50,000 of a run and all of anything else.
        sampling: how to sample a run.
        image_size: side in pixels to which the reference is resized; None takes it as it is.
        batch_size: images at a time, which changes nothing beyond rounding; None: `default_batch_size`.
        output: where to write; None puts it into the run's evaluations, else beside the target.
        allow_collapsed: as in `judging`, where that is None.
        judging: how strictly it is judged.
        cache: keep statistics of real images on disk, and use those that are there.
        report: told how far it is.
        tell: told in one line what a user should know while it runs.

    Raises:
        UsageError: options that do not fit the target.
        ArtifactError: target, reference or weights are absent.
        RefusedError: a number would mislead: too few, identical or flat images, values or features that are not
            finite or hardly vary, another size or file format than the reference.
    """
    if num_images is not None and num_images < 1:
        raise UsageError(f"--num-images {num_images}: expected at least 10")
    judge = open_judge(
        reference,
        features=features,
        features_weights=features_weights,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        judging=judging or Judging(allow_collapsed=allow_collapsed),
        cache=cache,
        first_target=(target, sampling or Sampling()),
        report=report,
        tell=tell,
    )
    return evaluate_with([judge], target, num_images=num_images, sampling=sampling, output=output)[0]


def open_judge(
    reference: str,
    *,
    features: str | Extractor = "inception",
    features_weights: Path | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    device: torch.device | None = None,
    judging: Judging | None = None,
    cache: bool = True,
    first_target: tuple[Path, Sampling] | None = None,
    check_size: Callable[[int | None], None] = lambda size: None,
    ranks: Ranks | None = None,
    report: Report = lambda what, done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Judge:
    """Load the extractor, and the statistics of the reference or the images they are made of.

    Args:
        batch_size: images at a time; None: `default_batch_size`.
        cache: keep statistics of real images on disk, and use those that are there.
        first_target: what will be scored first, so that what does not fit is refused before the reference is read.
        check_size: told the side in pixels of the reference before that is read; refuses it by raising.
        ranks: that share the work.

    Raises:
        UsageError, ArtifactError, RefusedError: as `evaluate`.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected at least 1")
    ranks, place = ranks or Ranks(), device or torch.device("cpu")
    batch_size = batch_size or default_batch_size(place)
    # The extractor comes first: its weights are what is missing most often, and sampling takes long.
    extractor = _load_in_turn(features, features_weights, place, ranks)
    bench = Bench(extractor, batch_size, place, ranks, cache, report, tell)

    def check(size: int | None) -> None:
        check_size(size)
        if first_target is not None:
            require_target(*first_target, reference_size=size)

    found = open_reference(reference, image_size, bench, check)
    return Judge(bench, found, judging or Judging(), image_size)


def _load_in_turn(features: str | Extractor, weights: Path | None, device: torch.device, ranks: Ranks) -> Extractor:
    """The extractor; where it has to be downloaded, rank 0 does so before the others look for it."""
    if isinstance(features, Extractor):
        return features
    if not ranks.is_main:
        ranks.barrier()
    try:
        return load_extractor(features, weights=weights, device=device)
    finally:
        if ranks.is_main:
            ranks.barrier()


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of the block to `seconds[name]`."""
    started = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started


def save_pairs(path: Path, generated: torch.Tensor, training: torch.Tensor) -> None:
    """Write pairs of uint8 [n, 3, H, W] images as one PNG: rows of eight generated images, each above its neighbour."""
    columns = 8
    blocks = []
    for first in range(0, len(generated), columns):
        for images in (generated[first : first + columns], training[first : first + columns]):
            missing = columns - len(images)
            blocks += [images, images.new_full((missing, *images.shape[1:]), 255)] if missing else [images]
    save_grid(path, torch.cat(blocks), columns=columns)
