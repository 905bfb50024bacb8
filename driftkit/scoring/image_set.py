"""Sets of images, real and generated alike: sampled from a run, read from a samples file, or opened as data."""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import torch

from driftkit.config.sampling_config import SamplingConfig
from driftkit.datasets.packs import ImagePack
from driftkit.errors import ArtifactError, DriftkitError, NotFoundError, RefusedError, UsageError
from driftkit.runtime.progress import Report, no_report, phase
from driftkit.runtime.ranks import Ranks
from driftkit.scoring.evaluation_record import SamplingInfo
from driftkit.scoring.sanity import require_uint8
from driftkit.storage.checksums import require_checksum
from driftkit.storage.files import read_json, read_tensors
from driftkit.storage.images import read_samples
from driftkit.storage.records import SampleRecord
from driftkit.storage.run_folder import Run

DEFAULT_NUM_IMAGES = 50_000
PART_SEED = 2020
BATCH_SIZES = {"cpu": 64, "cuda": 256}  # images at a time, by device type: small batches leave a GPU idle
FORMAT_NAMES = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "tif": "tiff"}


def default_batch_size(device: torch.device) -> int:
    """Images that an extractor on the device sees at a time unless another number is given."""
    return BATCH_SIZES.get(device.type, BATCH_SIZES["cpu"])


@dataclass(frozen=True)
class ScoringExecution:
    """Where and how scores are computed; changes speed, not scores.

    Attributes:
        batch_size: images that networks see at a time.
        cache: keep statistics of real images on disk, and use those that are there.
        notify: called with lines that a user should see while it runs.
    """

    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks: Ranks = field(default_factory=Ranks)
    cache: bool = True
    report: Report = no_report
    notify: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Share:
    """This rank's images of a set, `last` excluded: whole batches, so that each meets the same ones in any world."""

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


@dataclass(frozen=True)
class ImageSet:
    """A set of images that ranks share, and where they come from.

    Attributes:
        images: this rank's, uint8 [len(share), 3, H, W].
        digest: of a whole pack; None for anything else.
        labels: classes of all images, int64 [N], -1 where unlabelled; None where there are none.
        formats: image files by format ("jpeg", "png", ...), where images came from files.
        run: the run that generated them, if it is there.
        notes: warnings from opening them.
    """

    name: str
    images: torch.Tensor
    share: Share
    digest: str | None = None
    labels: torch.Tensor | None = None
    classes: tuple[str, ...] = ()
    formats: dict[str, int] = field(default_factory=dict)
    run: Run | None = None
    sampling: SamplingInfo | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_pack(cls, pack: ImagePack, name: str, execution: ScoringExecution) -> "ImageSet":
        """All images of a pack."""
        share = Share.of(len(pack), batch_size=execution.batch_size, ranks=execution.ranks)
        source, images = pack.card.source, pack.images[share.first : share.last]
        formats = file_formats(source.spec) if source.kind in ("folder", "archive") else {}
        return cls(name, images, share, pack.digest, pack.labels, pack.classes, formats)

    @classmethod
    def of_tensor(cls, images: torch.Tensor, name: str = "samples") -> "ImageSet":
        """uint8 images [N, 3, H, W] that this process alone has."""
        return cls(name, images, Share(0, len(images), len(images)))

    def __len__(self) -> int:
        return self.share.total

    def gather(self, numbers: list[int], count: int, ranks: Ranks) -> torch.Tensor:
        """Images of up to `count` numbers, which rank 0 gives, from whichever rank has them: uint8 [n, 3, H, W]."""
        wanted = torch.full((count,), -1, dtype=torch.int64)
        wanted[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        images = torch.zeros(count, *self.images.shape[1:], dtype=torch.int32)
        for row, number in enumerate(ranks.max(wanted).tolist()):
            if self.share.first <= number < self.share.last:
                images[row] = self.images[number - self.share.first].int()
        return ranks.sum(images).to(torch.uint8)[: len(numbers)]


def open_target(
    target: Path,
    sampling: SamplingConfig,
    execution: ScoringExecution,
    *,
    num_images: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> ImageSet:
    """The images to score: sampled from a run, read from a samples file, or opened as data.

    Args:
        num_images: how many; None takes 50,000 of a run and all of anything else.
        part: (k, K): the k-th of K disjoint parts of images that exist already.

    Raises:
        UsageError: more images than there are, or a run that generates none.
        ArtifactError: nothing readable there.
        RefusedError: floating-point images that are not finite or not in [-1, 1].
    """
    if is_run(target):
        return _sample(Run.open(target), sampling, execution, num_images or DEFAULT_NUM_IMAGES)
    with phase(f"reading {target}"):
        whole = _read(target)
    number, parts = part
    total = len(whole)
    if (num_images or 1) * parts > total:
        asked = {"num_images": num_images, "repeats": parts if parts > 1 else None}
        wanted = " ".join(f"`{name}` {number}" for name, number in asked.items() if number is not None)
        raise UsageError(f"{wanted}: {target} holds {total} images")
    count = num_images or total // parts
    if parts == 1 and (whole.labels is None or whole.sampling is not None or count == total):
        chosen = torch.arange(count)  # the first ones of a sequence of samples
    else:  # random ones of data, which may be sorted
        order = torch.randperm(total, generator=torch.Generator().manual_seed(PART_SEED))
        chosen = order[number * count : (number + 1) * count].sort().values
    share = Share.of(count, batch_size=execution.batch_size, ranks=execution.ranks)
    if count == total:
        return replace(whole, images=whole.images[share.first : share.last], share=share)
    labels = None if whole.labels is None else whole.labels[chosen]
    images = whole.images[chosen[share.first : share.last]]
    return replace(whole, images=images, share=share, digest=None, labels=labels)


def _sample(run: Run, sampling: SamplingConfig, execution: ScoringExecution, num_images: int) -> ImageSet:
    from driftkit.training.sampling import conditions_of, generate

    conditions = conditions_of(run, sampling)
    share = Share.of(num_images, batch_size=execution.batch_size, ranks=execution.ranks)
    # A rank without work still makes one image: its record is that of rank 0.
    images, info = generate(
        run,
        sampling.model_copy(update={"precision": sampling.precision or "float32"}),
        num_images=max(1, len(share)),
        first_image=share.first,
        batch_size=execution.batch_size,
        device=execution.device,
        advance=lambda count: execution.report("sampling", count, len(share)),
    )
    return ImageSet(
        str(run.path),
        images[: len(share)],
        share,
        labels=conditions.labels(range(num_images)),
        classes=conditions.names,
        run=run,
        sampling=SamplingInfo.of(info),
    )


def read_target(target: Path, *, reference_size: int | None) -> None:
    """Read images that exist already, so that broken ones are refused before features of others are computed.

    Args:
        reference_size: side in pixels of the reference; None where nobody knows it.

    Raises:
        ArtifactError, RefusedError: as `open_target`, or of another size than the reference.
    """
    if not is_run(target):
        require_size(_read(target).images.shape[-2:], reference_size)


def _read(target: Path) -> ImageSet:
    """All images of a samples file, a tensors file or data, in their own size: resized ones would get another score."""
    from driftkit.datasets.sources import names_a_place, open_dataset

    if not _is_samples_file(target):
        # A folder that is called as a source is meant as a folder.
        spec = str(target) if names_a_place(str(target)) else f"./{target}"
        pack = open_dataset(spec)
        return _with_record(ImageSet.of_pack(pack, str(target), ScoringExecution()), target)
    images, notes = require_uint8(_images_in(target), str(target))
    whole = replace(ImageSet.of_tensor(images, str(target)), notes=notes)
    path = target.with_suffix(".json")
    if not (path.is_file() and read_json(path).get("kind") == SampleRecord.kind):
        return whole
    if notes:
        record, labels = SampleRecord.read(path), None
    else:
        samples = read_samples(target)
        record, labels = samples.record, samples.labels
    run, sampling = _origin(record, target)
    return replace(whole, run=run, sampling=sampling, labels=labels, classes=() if labels is None else record.classes)


def _with_record(images: ImageSet, target: Path) -> ImageSet:
    """The images of a folder, archive or array, with what the record of `driftkit sample` next to it says of them."""
    path = target.with_name(f"{target.name}.json") if target.is_dir() else target.with_suffix(".json")
    if not (target.exists() and path.is_file() and read_json(path).get("kind") == SampleRecord.kind):
        return images
    record = SampleRecord.read(path)
    require_checksum(target, record.sha256, num_bytes=record.bytes)
    run, sampling = _origin(record, target)
    labels, classes = images.labels, images.classes
    if record.classes and labels is not None and classes:  # files hold the numbers of the classes
        numbers = torch.tensor([int(name) for name in classes])
        labels, classes = numbers[labels], record.classes
    return replace(images, run=run, sampling=sampling, labels=labels, classes=classes)


def _origin(record: SampleRecord, target: Path) -> tuple[Run | None, SamplingInfo]:
    """The run that made samples, if it is there, and how. A run is known by its id: another may have its place now."""
    folders = (target.resolve().parent.parent, *([Path(record.run)] if record.run else []))
    made_by = record.request.get("run id")
    runs = (Run.open(folder) for folder in folders if is_run(folder))
    run = next((run for run in runs if made_by in (None, run.manifest().id)), None)
    return run, SamplingInfo.of(record.model_dump())


def _images_in(path: Path) -> torch.Tensor:
    """The images of a samples file, as it holds them."""
    images = read_tensors(path)[0].get("images")
    if images is None or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        got = "none" if images is None else str(list(images.shape))
        raise ArtifactError(f"{path}: expected a tensor `images` [N, 3, H, W], got {got}")
    return images


def _is_samples_file(path: Path) -> bool:
    """Whether a file is one of `driftkit sample`, or its like: nothing but images [N, 3, H, W], no pack of data."""
    if path.suffix != ".safetensors":
        return False
    tensors, header = read_tensors(path)
    card = path.with_suffix(".json")
    kind = read_json(card).get("kind") if card.is_file() else None
    if header.get("driftkit") == "pack" or kind == "pack":
        return False
    alone = tensors.keys() == {"images"} and tensors["images"].ndim == 4 and tensors["images"].shape[1] == 3
    return alone or kind == SampleRecord.kind


def is_there(target: Path) -> bool:
    """Whether there is what a target names: a path or a range of shards, maybe with `?key=value` or `:split`."""
    from driftkit.datasets.shards import is_shards
    from driftkit.datasets.sources import parse_spec

    path = parse_spec(str(target)).path
    return target.exists() or path.exists() or is_shards(path)


def is_run(path: Path) -> bool:
    """Whether there is a run at that path."""
    return (path / "manifest.json").is_file()


def file_formats(spec: str) -> dict[str, int]:
    """Image files by format where a SPEC names a folder or a zip that is there; empty for anything else."""
    from driftkit.datasets.containers import open_container
    from driftkit.datasets.decode import SUFFIXES
    from driftkit.datasets.sources import parse_spec

    formats: Counter[str] = Counter()
    with contextlib.suppress(DriftkitError):  # images of a pack may be imported from what is gone by now
        path = Path(parse_spec(spec).target)
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
            suffixes = (PurePosixPath(name).suffix.lower() for name in open_container(path).names())
            formats.update(FORMAT_NAMES.get(s[1:], s[1:]) for s in suffixes if s in SUFFIXES)
    return dict(formats)


def require_target(target: Path, sampling: SamplingConfig, *, reference_size: int | None) -> None:
    """Refuse before anything is sampled: nothing there, settings that do not fit, another size than the reference."""
    from driftkit.methods.registry import find_sampler
    from driftkit.training.sampling import conditions_of

    if not is_there(target):
        raise NotFoundError(f"{target}: expected a run, a samples file or images, found nothing")
    if not is_run(target):
        chosen = [f"`{name}`" for name in SamplingConfig.model_fields if name in sampling.model_fields_set]
        if chosen:
            raise UsageError(f"{', '.join(chosen)}: {target} is no run, so that nothing is sampled; remove the setting")
        return
    run = Run.open(target)
    find_sampler(run.objective, sampling.sampler)
    if sampling.classes is not None or sampling.guidance is not None:
        conditions_of(run, sampling)
    if sampling.step is not None:
        run.checkpoint(sampling.step)
    require_size((run.image_size, run.image_size), reference_size)


def require_size(size: Sequence[int], reference: int | None) -> None:
    """Refuse images that are not squares of the reference's side."""
    height, width = size
    if reference is not None and not height == width == reference:
        raise RefusedError(
            f"the generated images are {width} pixels wide and the reference {reference}: a score would compare the "
            f"resizing; `image_size` {width} resizes the reference"
        )
