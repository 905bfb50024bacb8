"""What `fid` is pointed at: a run, which is sampled; a samples file; or images in a folder, an archive or a pack."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from driftkit.errors import ArtifactError, DriftkitError, NotFoundError, RefusedError, UsageError
from driftkit.runtime.device import Precision
from driftkit.runtime.progress import Report
from driftkit.runtime.ranks import Ranks
from driftkit.scoring.extraction import Share
from driftkit.scoring.sanity import require_uint8
from driftkit.storage.files import read_json, read_tensors, state_digest
from driftkit.storage.images import read_samples
from driftkit.storage.run_folder import Run, Weights

DEFAULT_NUM_IMAGES = 50_000
PART_SEED = 2020
FORMAT_NAMES = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "tif": "tiff"}


@dataclass(frozen=True)
class Sampling:
    """How to sample a run that is scored; None where a default holds. No samples file takes any of these."""

    sampler: str | None = None
    nfe: int | None = None
    weights: Weights | None = None
    seed: int | None = None
    step: int | None = None
    precision: Precision | None = None

    def given(self) -> dict[str, Any]:
        """The values that were asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def resolved(self) -> dict[str, Any]:
        """The same, with the defaults of scoring."""
        return {"weights": "ema", "seed": 0, "precision": "float32", **self.given()}


@dataclass(frozen=True)
class Opening:
    """How images are opened.

    Attributes:
        num_images: how many; None takes 50,000 of a run and all of anything else.
        image_size: side in pixels to which images of files are brought; None leaves them.
        part: (k, K): the k-th of K disjoint parts of images that are there already.
        batch_size: images that networks see at a time.
        ranks: that share the work.
    """

    num_images: int | None = None
    image_size: int | None = None
    part: tuple[int, int] = (0, 1)
    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks: Ranks = field(default_factory=Ranks)
    report: Report = lambda what, done, total: None


@dataclass(frozen=True)
class Target:
    """The images to score and what is known of them.

    Attributes:
        images: this rank's, uint8 [n, 3, H, W].
        share: which they are.
        info: the record of a sample set, or `data` and `digest` of plain images.
        run: the run they came from, if it is there.
        path: the file or folder that was named.
        labels: classes of all images, int64 [N], and their names, where they have any.
        formats: files by format where images came from files.
        notes: warnings from opening them.
    """

    images: torch.Tensor
    share: Share
    info: dict[str, Any]
    run: Run | None
    path: Path
    labels: torch.Tensor | None = None
    classes: tuple[str, ...] = ()
    formats: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.images.shape[-2]), int(self.images.shape[-1])


def open_target(target: Path, sampling: Sampling, opening: Opening) -> Target:
    """The images to score: sampled from a run, read from a samples file, or opened as data.

    Raises:
        UsageError: more images wanted than there are, or a run that generates none.
        ArtifactError: nothing readable there.
        RefusedError: floating-point images that are not finite or not in [-1, 1].
    """
    return _sampled(Run.open(target), sampling, opening) if is_run(target) else _opened(target, opening)


def _sampled(run: Run, sampling: Sampling, opening: Opening) -> Target:
    from driftkit.training.sampling import generate

    total = opening.num_images or DEFAULT_NUM_IMAGES
    share = Share.of(total, batch_size=opening.batch_size, ranks=opening.ranks)
    # A rank without work still makes one image: its record says what rank 0's does.
    images, info = generate(
        run,
        num_images=max(1, len(share)),
        first_image=share.first,
        batch_size=opening.batch_size,
        device=opening.device,
        advance=lambda n: opening.report("sample", n, len(share)),
        **sampling.resolved(),
    )
    return Target(images[: len(share)], share, {**info, "num_images": total}, run, run.path)


def _opened(target: Path, opening: Opening) -> Target:
    found = _read(target, opening.image_size)
    images, count = found.images, opening.num_images
    number, parts = opening.part
    if (count or 1) * parts > len(images):
        wanted = f"--num-images {count}" + (f" --repeats {parts}" if parts > 1 else "")
        raise UsageError(f"{wanted}: {target} holds {len(images)} images")
    chosen = _choice(len(images), count or len(images) // parts, number, parts, ordered=found.labels is None)
    share = Share.of(len(chosen), batch_size=opening.batch_size, ranks=opening.ranks)
    mine = chosen[share.first : share.last]
    whole = len(chosen) == len(images)
    return Target(
        images[share.first : share.last] if whole else images[mine],
        share,
        found.info if whole else {**found.info, "digest": None},
        _run_of(target, found.info) if found.is_samples else None,
        target,
        None if found.labels is None else found.labels[chosen],
        found.classes,
        found.formats,
        found.notes,
    )


def _choice(total: int, count: int, number: int, parts: int, *, ordered: bool) -> torch.Tensor:
    """Which images are taken: the first ones of a sequence of samples, random ones of data, which may be sorted."""
    if parts == 1 and (ordered or count == total):
        return torch.arange(count)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(PART_SEED))
    return order[number * count : (number + 1) * count].sort().values


@dataclass(frozen=True)
class _Images:
    images: torch.Tensor
    info: dict[str, Any]
    labels: torch.Tensor | None = None
    classes: tuple[str, ...] = ()
    formats: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_samples: bool = False


def _read(target: Path, image_size: int | None) -> _Images:
    from driftkit.datasets.sources import open_dataset

    record = target.with_suffix(".json")
    if target.suffix == ".safetensors" and not _is_pack(target):
        images, notes = require_uint8(_images_in(target), str(target))
        if not _is_samples(record):
            return _Images(images, {"data": str(target), "digest": state_digest({"images": images})}, notes=notes)
        info = read_json(record) if notes else read_samples(target).record.model_dump()
        return _Images(images, dict(info), notes=notes, is_samples=True)
    pack = open_dataset(str(target), image_size=image_size)
    info = {"data": str(target), "digest": pack.digest}
    return _Images(pack.images, info, pack.labels, pack.classes, file_formats(pack.card.source.spec))


def _images_in(path: Path) -> torch.Tensor:
    """The images of a safetensors file, as it holds them."""
    images = read_tensors(path)[0].get("images")
    if images is None or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        got = "none" if images is None else str(list(images.shape))
        raise ArtifactError(f"{path}: expected a tensor `images` [N, 3, H, W], got {got}")
    return images


def _is_pack(path: Path) -> bool:
    card = path.with_suffix(".json")
    return read_tensors(path)[1].get("driftkit") == "pack" or (card.is_file() and read_json(card).get("kind") == "pack")


def _is_samples(record: Path) -> bool:
    """Whether the JSON beside a safetensors file says that it holds samples."""
    return record.is_file() and read_json(record).get("kind") == "samples"


def is_run(path: Path) -> bool:
    """Whether there is a run at that path."""
    return (path / "manifest.json").is_file()


def _run_of(samples: Path, info: dict[str, Any]) -> Run | None:
    """The run that holds the samples file, or the one that its record names."""
    named = info.get("run")
    for folder in (samples.resolve().parent.parent, *([Path(named)] if isinstance(named, str) and named else [])):
        if is_run(folder):
            return Run.open(folder)
    return None


def file_formats(spec: str) -> dict[str, int]:
    """Image files by format where a spec names a folder or a zip that is there; empty for anything else."""
    from driftkit.datasets.containers import open_container
    from driftkit.datasets.decode import SUFFIXES
    from driftkit.datasets.sources import parse_spec

    found: Counter[str] = Counter()
    with contextlib.suppress(DriftkitError):  # images of a pack may be imported from what is gone by now
        path = Path(parse_spec(spec).target)
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
            suffixes = (PurePosixPath(name).suffix.lower() for name in open_container(path).names())
            found.update(FORMAT_NAMES.get(s[1:], s[1:]) for s in suffixes if s in SUFFIXES)
    return dict(found)


def require_target(target: Path, sampling: Sampling, *, reference_size: int | None) -> None:
    """What can be refused before anything is sampled.

    Raises:
        ArtifactError: nothing there.
        UsageError: sampling options for images that are there already.
        RefusedError: a run of another image size than the reference.
    """
    from driftkit.methods.registry import require_sampler

    if not target.exists():
        raise NotFoundError(f"{target}: expected a run, a samples file or images, found nothing")
    if not is_run(target):
        if sampling.given():
            named = ", ".join(f"--{name}" for name in sampling.given())
            raise UsageError(f"{named}: {target} is no run, its images are there already; leave the option out")
        if target.suffix == ".safetensors" and not _is_pack(target):
            width = _images_in(target).shape[-1]
            if reference_size is not None and width != reference_size:
                raise RefusedError(sizes_differ(width, reference_size))
        return
    run = Run.open(target)
    require_sampler(run.objective, sampling.sampler)
    if sampling.step is not None:
        run.checkpoint(sampling.step)
    size = run.image_size
    if reference_size is not None and size != reference_size:
        raise RefusedError(sizes_differ(size, reference_size))


def sizes_differ(generated: int, reference: int) -> str:
    """One line for images of other sizes."""
    return (
        f"the generated images are {generated} pixels wide and the reference {reference}: a score would compare the "
        f"resizing; --image-size {generated} resizes the reference"
    )
