"""Fetching published files (weights of encoders and evaluators, CIFAR-10) before they are needed."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from driftkit.datasets import cifar10
from driftkit.datasets.sources import data_directory
from driftkit.encoders import weights
from driftkit.encoders.lineage import PIXEL
from driftkit.encoders.specs import SPECS, TIMM_PREFIX, EncoderSpec
from driftkit.encoders.timm_encoder import timm_spec
from driftkit.encoders.weights import PublishedFile
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.scoring import extractors
from driftkit.storage.download import host_of, unreachable_hosts
from driftkit.storage.files import sha256_file
from driftkit.storage.records import Record

EVALUATOR_PREFIX = "evaluator:"
EVALUATORS = {"inception": "Inception v3", "dinov2": "DINOv2 ViT-L/14", "clip": "CLIP ViT-L/14, DataComp-XL"}
WITHOUT_FILES = {PIXEL: "the encoder without weights", "shapes": "drawn, not fetched"}


@dataclass(frozen=True)
class Item:
    """Something that can be fetched by name.

    Attributes:
        name: as on the command line.
        kind: encoder, evaluator or dataset.
        about: what it is, in a few words.
        licence: of the weights; None where the tables say nothing.
        published: the file as others publish it.
        locate: where it lies here, or None; ArtifactError where a variable names a file that is not there.
        option: the command line option that takes a path to it.
    """

    name: str
    kind: str
    about: str
    licence: str | None
    published: PublishedFile
    locate: Callable[[], Path | None]
    option: str


@dataclass(frozen=True)
class Cifar10Archive:
    """The original archive of CIFAR-10, or the folder that was extracted from it, in the data folder."""

    file: str = cifar10.ARCHIVE

    @property
    def url(self) -> str:
        return cifar10.archive_url()

    def locate(self) -> Path | None:
        return cifar10.find_cifar10(data_directory())

    def download(self, *, force: bool = False) -> Path:
        path = None if force else self.locate()
        try:
            return path or cifar10.fetch_archive(self.url, data_directory() / self.file)
        except ArtifactError as error:
            raise ArtifactError(str(error).removesuffix(f"; {self._place_it()}")) from None

    def check(self, path: Path) -> str:
        if path.is_dir():
            return "extracted"
        cifar10.check_md5(path)
        return "published md5"

    def by_hand(self, option: str) -> str:
        return f"download {cifar10.OFFICIAL_URL} elsewhere; {self._place_it()}"

    def _place_it(self) -> str:
        return cifar10.placing_advice(data_directory() / self.file)


class FetchedFile(BaseModel):
    """What `driftkit prefetch` says of one file; see `Fetched`."""

    name: str
    kind: str
    state: str
    file: str
    url: str
    path: str | None
    bytes: int | None
    sha256: str | None
    checked: str | None
    licence: str | None
    reason: str | None


class PrefetchRecord(Record):
    """The result of `driftkit prefetch`."""

    kind: ClassVar[str] = "prefetch"

    ok: bool
    files: list[FetchedFile]

    @classmethod
    def of_items(cls, done: "Sequence[Fetched]") -> "PrefetchRecord":
        return cls(ok=all(one.state != "failed" for one in done), files=[one.describe() for one in done])


@dataclass(frozen=True)
class Fetched:
    """What became of one item.

    Attributes:
        item: which one.
        state: present (it was here already), fetched, or failed.
        path: where it lies; None if it failed.
        sha256: of the file; None if it failed, or is a folder.
        checked: what about it was found to be right.
        reason: why it failed, and how to bring it by hand.
    """

    item: Item
    state: str
    path: Path | None = None
    sha256: str | None = None
    checked: str | None = None
    reason: str | None = None

    def describe(self) -> FetchedFile:
        """What the command prints of it."""
        return FetchedFile(
            name=self.item.name,
            kind=self.item.kind,
            state=self.state,
            file=self.item.published.file,
            url=self.item.published.url,
            path=None if self.path is None else str(self.path),
            bytes=None if self.path is None else size_of(self.path),
            sha256=self.sha256,
            checked=self.checked,
            licence=self.item.licence,
            reason=self.reason,
        )


def items() -> dict[str, Item]:
    """Everything that can be fetched, by name."""
    listed = [_encoder(spec) for spec in SPECS.values()]
    for name, about in EVALUATORS.items():
        locate = partial(extractors.locate_weights, name)
        file = extractors.published_weights(name)
        listed.append(Item(evaluator_name(name), "evaluator", about, None, file, locate, "--features-weights"))
    archive = Cifar10Archive()
    listed.append(Item("cifar10", "dataset", "CIFAR-10, original archive", None, archive, archive.locate, "--data"))
    return {item.name: item for item in listed}


def _encoder(spec: EncoderSpec) -> Item:
    file = weights.published(spec)
    return Item(spec.name, "encoder", spec.trained_by, spec.licence, file, file.locate, "--encoder-weights")


def evaluator_name(features: str) -> str:
    """How an evaluator is named here: with a prefix where the bare name is that of an encoder, another network."""
    return f"{EVALUATOR_PREFIX}{features}" if features in SPECS else features


def select(names: Sequence[str], *, everything: bool = False) -> list[Item]:
    """The items of those names, each once, in the order given; all of them if `everything`.

    Raises:
        UsageError: an unknown name, or none; timm:MODEL is known where timm knows the model.
    """
    known = items()
    if everything and names:
        raise UsageError(f"--all: brings {names[0]} with everything else; give either names or --all")
    if everything:
        return list(known.values())
    if not names:
        raise UsageError(f"nothing to fetch is named; expected --all or some of {', '.join(known)}")
    picked = {}
    for name in names:
        if name.startswith(TIMM_PREFIX):
            picked[name] = _encoder(timm_spec(name))
            continue
        features = name.removeprefix(EVALUATOR_PREFIX)
        full = evaluator_name(features) if name != features and features in EVALUATORS else name
        if full not in known:
            raise UsageError(_unknown(name, list(known)))
        picked[full] = known[full]
    return list(picked.values())


def prefetch(
    chosen: Sequence[Item], *, force: bool = False, report: Callable[[str], None] | None = None
) -> list[Fetched]:
    """Fetch what is not here and check all of it; one that fails does not keep the others from coming.

    Args:
        chosen: see `select`.
        force: fetch again what is here.
        report: called with one line for each file that is about to be fetched.
    """
    for item in chosen:
        evaluator = evaluator_name(item.name)
        if report and item.kind == "encoder" and item.name in EVALUATORS and evaluator not in {i.name for i in chosen}:
            report(f"{item.name} is the encoder; the evaluator of that name is {evaluator}")
    silent = unreachable_hosts(item.published.url for item in chosen if force or not _is_here(item))
    # Asked once: ten files of a host that never answers must not take ten timeouts.
    done: list[Fetched] = []
    for number, item in enumerate(chosen, start=1):
        try:
            path = item.locate()
            # Several encoders read one network: even --force fetches its file once.
            fetched = any(one.state == "fetched" and one.item.published == item.published for one in done)
            if path is not None and (fetched or not force):
                done.append(_present(item, path))
                continue
            host = host_of(item.published.url)
            if host in silent:
                raise NotFoundError(f"{host} cannot be reached ({silent[host]}); {item.published.by_hand(item.option)}")
            if report:
                report(f"{number} of {len(chosen)}: {item.name} from {item.published.url}")
            done.append(_fetch(item))
        except ArtifactError as error:
            done.append(Fetched(item, "failed", reason=str(error)))
    return done


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _is_here(item: Item) -> bool:
    try:
        return item.locate() is not None
    except ArtifactError:
        return True  # it is kept elsewhere, where it is not: no download fixes that


def _present(item: Item, path: Path) -> Fetched:
    try:
        return _checked(item, "present", path)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; driftkit prefetch {item.name} --force fetches it again") from None


def _fetch(item: Item) -> Fetched:
    try:
        return _checked(item, "fetched", item.published.download(force=True))
    except ArtifactError as error:
        raise ArtifactError(f"{error}; {item.published.by_hand(item.option)}") from None


def _checked(item: Item, state: str, path: Path) -> Fetched:
    checked = item.published.check(path)
    return Fetched(item, state, path, None if path.is_dir() else sha256_file(path), checked)


def _unknown(name: str, known: list[str]) -> str:
    if name in WITHOUT_FILES:
        return f"{name} needs no files ({WITHOUT_FILES[name]}); leave it out"
    evaluator = difflib.get_close_matches(name.partition(":")[2], EVALUATORS, n=1)
    close = [evaluator_name(evaluator[0])] if evaluator else difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{name}: nothing of that name can be fetched{hint}; expected {', '.join(known)}"
