"""Real images that scores refer to: the reference, and the training images among which copies are looked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from driftkit.datasets.packs import ImagePack
from driftkit.errors import DriftkitError, StorageError
from driftkit.runtime.progress import Report
from driftkit.runtime.ranks import Ranks
from driftkit.scoring.extraction import Extractor, Share, extract, together
from driftkit.scoring.image_set import file_formats
from driftkit.scoring.reference_statistics import (
    Statistics,
    cached_path,
    describe_contract,
    find_cached,
    is_statistics_file,
    nothing_here,
    open_statistics_file,
    write_statistics,
)
from driftkit.scoring.sanity import require_scorable
from driftkit.storage.run_folder import Run


@dataclass(frozen=True)
class Bench:
    """With what features are made.

    Attributes:
        batch_size: images the extractor sees at a time.
        device: where scores are computed.
        ranks: that share the work.
        cache: keep statistics of real images on disk, and use those that are there.
        report: told how far it is.
        tell: told in one line what a user should know while it runs.
    """

    extractor: Extractor
    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks: Ranks = field(default_factory=Ranks)
    cache: bool = True
    report: Report = lambda what, done, total: None
    tell: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Reference:
    """Real images that others are scored against.

    Attributes:
        spec: the text that named them.
        statistics: of their features, which only rank 0 holds.
        pack: the images; None where a file of statistics was named.
    """

    spec: str
    statistics: Statistics
    pack: ImagePack | None

    @property
    def digest(self) -> str:
        return str(self.statistics.data["digest"])

    @property
    def image_size(self) -> int | None:
        """Side in pixels; None where nobody knows."""
        size = self.statistics.data["image_size"]
        return None if size is None else int(size)


@dataclass(frozen=True)
class Training:
    """The images among which copies are looked for.

    Attributes:
        statistics: of their features; None where they cannot be had.
        pack: the images.
        problem: why there are none.
        is_reference: whether they are the reference itself.
        known: whether the run or the user says that it was trained on them.
    """

    statistics: Statistics | None
    pack: ImagePack | None
    problem: str = ""
    is_reference: bool = False
    known: bool = True

    @property
    def images(self) -> torch.Tensor:
        """uint8 [M, 3, H, W]."""
        assert self.pack is not None
        return self.pack.images

    def describe(self) -> dict[str, Any]:
        """For the record."""
        assert self.statistics is not None
        data = self.statistics.data
        among = "training images" if self.known else "reference images, since the training images are unknown"
        return {"among": among, **{key: data[key] for key in ("spec", "digest", "count")}}


def open_reference(
    spec: str, image_size: int | None, bench: Bench, check: Callable[[int | None], None] = lambda size: None
) -> Reference:
    """The reference of that SPEC or file of statistics; `check` is told its image size before it is read.

    Raises:
        ArtifactError, UsageError: it is not there, or broken.
        RefusedError: it is not scorable, or statistics of another extractor.
    """
    from driftkit.datasets.sources import open_dataset

    if is_statistics_file(Path(spec)):
        statistics = together(lambda: open_statistics_file(Path(spec), bench.extractor), bench.ranks)
        check(statistics.data["image_size"])
        return Reference(spec, statistics, None)
    pack = open_dataset(spec, image_size=image_size, ranks=bench.ranks)
    check(pack.image_size)
    return Reference(spec, statistics_of(pack, spec, f"reference {spec}", bench), pack)


def statistics_of(pack: ImagePack, spec: str, what: str, bench: Bench) -> Statistics:
    """Statistics of a pack of real images: from the cache, else computed, and kept there.

    Raises:
        RefusedError: the images are not scorable, or their features not finite.
    """
    data = {"digest": pack.digest, "count": len(pack), "image_size": pack.image_size}
    contract = describe_contract(data, bench.extractor)
    found = find_cached(contract, bench.tell) if bench.cache and bench.ranks.is_main else None
    if float(bench.ranks.max(torch.tensor([float(found is not None)]))):
        if bench.ranks.is_main:
            bench.tell(f"{what}: features of {len(pack):,} images from {cached_path(contract)}")
        known = found.contract if found else contract
        named = {**known, "data": {**known["data"], "spec": spec}}
        return Statistics(
            found.features if found else nothing_here(bench.extractor.dim), named, found.path if found else None
        )
    share = Share.of(len(pack), batch_size=bench.batch_size, ranks=bench.ranks)
    features = extract(
        bench.extractor,
        pack.images[share.first : share.last],
        share,
        batch_size=bench.batch_size,
        ranks=bench.ranks,
        labels=pack.labels,
        advance=lambda n: bench.report(f"{what.partition(' ')[0]}, {bench.extractor.name}", n, len(share)),
    )
    about = {"spec": spec, "classes": list(pack.classes), "formats": file_formats(pack.card.source.spec)}
    contract = describe_contract({**data, **about}, bench.extractor)

    def keep() -> Statistics:
        if not bench.ranks.is_main:
            return Statistics(features, contract)
        assert features.survey is not None
        require_scorable(features.survey, what)
        if not bench.cache:
            return Statistics(features, contract)
        try:
            return write_statistics(cached_path(contract), features, contract)
        except (
            OSError,
            SafetensorError,
            StorageError,
        ) as error:  # a full or read-only disk costs the next call time, not this one its score
            bench.tell(f"warning: features of {what} were not kept: {error}")
            return Statistics(features, contract)

    return together(keep, bench.ranks)


def open_training(run: Run | None, named: str | None, reference: Reference, bench: Bench) -> Training:
    """The training images of a run, or those that are named; the reference where nobody knows.

    What cannot be had is a reason in the result, no error: the other scores do not need it.
    """
    from driftkit.datasets.sources import open_dataset

    spec, digest = named, None
    image_size, limit = reference.image_size, None
    if spec is None and run is not None:
        data = run.manifest().config.get("data", {})
        spec, digest = data.get("spec"), training_digest(run)
        image_size, limit = data.get("image_size"), data.get("limit")
    if spec is None or digest == reference.digest:
        if reference.pack is None:
            return Training(None, None, "the reference is statistics alone: copies were not looked for")
        return Training(reference.statistics, reference.pack, is_reference=True, known=spec is not None)
    unsearched = "copies of training images were not looked for"
    try:
        pack = open_dataset(spec, image_size=image_size, limit=limit, ranks=bench.ranks, allow_download=False)
    except DriftkitError as error:
        return Training(None, None, f"{unsearched}: {error}")
    if digest is not None and pack.digest != digest:
        return Training(None, None, f"{unsearched}: {spec} now holds other images than the run was trained on")
    if pack.digest == reference.digest:
        return Training(reference.statistics, pack, is_reference=True)
    return Training(statistics_of(pack, spec, f"training images {spec}", bench), pack)


def training_digest(run: Run | None) -> str | None:
    """Digest of the images a run was trained on, as its manifest has it."""
    return run.manifest().data_digest if run else None
