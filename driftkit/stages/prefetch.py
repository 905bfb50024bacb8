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
from driftkit.encoders.autoencoder import hub_files
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
AUTOENCODER_PREFIX = "autoencoder:"
EVALUATORS = {"inception": "Inception v3", "dinov2": "DINOv2 ViT-L/14", "clip": "CLIP ViT-L/14, DataComp-XL"}
WITHOUT_FILES = {PIXEL: "the encoder without weights", "shapes": "drawn, not fetched"}


@dataclass(frozen=True)
class Item:
    """Something that can be fetched by name."""

    name: str
    kind: str  # encoder, evaluator, autoencoder or dataset
    about: str
    licence: str | None  # of the weights; None where the tables say nothing
    published: PublishedFile
    locate: Callable[[], Path | None]  # ArtifactError where a variable names a file that is not there
    option: str  # of the command line, that takes a path to it


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
    """What became of one file."""

    name: str
    kind: str
    state: str  # present (it was here already), fetched, or failed
    file: str
    url: str
    path: Path | None  # None where it failed, like the next three
    bytes: int | None
    sha256: str | None  # None of a folder, too
    checked: str | None  # what about it was found to be right
    licence: str | None
    reason: str | None  # why it failed, and how to bring it by hand


class PrefetchRecord(Record):
    """The result of `driftkit prefetch`."""

    kind: ClassVar[str] = "prefetch"

    ok: bool
    files: list[FetchedFile]


def items() -> dict[str, Item]:
    """Everything that can be fetched, by name."""
    listed = [_encoder(spec) for spec in SPECS.values()]
    for name, about in EVALUATORS.items():
        locate = partial(extractors.locate_weights, name)
        file = extractors.published_weights(name)
        listed.append(Item(evaluator_name(name), "evaluator", about, None, file, locate, "--extractor-weights"))
    archive = Cifar10Archive()
    listed.append(Item("cifar10", "dataset", "CIFAR-10, original archive", None, archive, archive.locate, "--data"))
    return {item.name: item for item in listed}


def _encoder(spec: EncoderSpec) -> Item:
    file = weights.published(spec)
    return Item(spec.name, "encoder", spec.trained_by, spec.licence, file, file.locate, "--encoder-weights")


def _autoencoder(name: str) -> list[Item]:
    files = hub_files(name.removeprefix(AUTOENCODER_PREFIX))
    if files is None:
        raise UsageError(f"{name}: expected {AUTOENCODER_PREFIX} and a hub id OWNER/NAME, or OWNER/NAME/FOLDER")
    about = "autoencoder in the format of diffusers"
    return [Item(name, "autoencoder", about, None, file, file.locate, "--autoencoder") for file in files]


def evaluator_name(features: str) -> str:
    """How an evaluator is named here: with a prefix where the bare name is that of an encoder, another network."""
    return f"{EVALUATOR_PREFIX}{features}" if features in SPECS else features


def select(names: Sequence[str], *, everything: bool = False) -> list[Item]:
    """The items of those names, each once, in the order given; all of them if `everything`.

    Raises:
        UsageError: an unknown name, or none; timm:MODEL is known where timm knows the model, and autoencoder:ID is two
            files of any repository on the hub.
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
        if name.startswith(AUTOENCODER_PREFIX):
            picked |= {f"{name}/{item.published.file}": item for item in _autoencoder(name)}
            continue
        features = name.removeprefix(EVALUATOR_PREFIX)
        full = evaluator_name(features) if name != features and features in EVALUATORS else name
        if full not in known:
            raise UsageError(_unknown(name, list(known)))
        picked[full] = known[full]
    return list(picked.values())


def prefetch(
    chosen: Sequence[Item], *, force: bool = False, report: Callable[[str], None] = lambda line: None
) -> list[FetchedFile]:
    """Fetch what is not here and check all of it; one that fails does not keep the others from coming.

    Args:
        chosen: see `select`.
        force: fetch again what is here.
        report: called with one line for each file that is about to be fetched.
    """
    for item in chosen:
        evaluator = evaluator_name(item.name)
        if item.kind == "encoder" and item.name in EVALUATORS and evaluator not in {i.name for i in chosen}:
            report(f"{item.name} is the encoder; the evaluator of that name is {evaluator}")
    # Asked once: ten files of a host that never answers must not take ten timeouts.
    silent = unreachable_hosts(item.published.url for item in chosen if force or not _is_here(item))
    done: list[FetchedFile] = []
    fetched: list[PublishedFile] = []  # several encoders read one network: even --force fetches its file once
    for number, item in enumerate(chosen, start=1):
        published = item.published
        try:
            path = item.locate()
            is_present = path is not None and (published in fetched or not force)
            advice = f"driftkit prefetch {item.name} --force fetches it again"
            if path is None or not is_present:
                advice = published.by_hand(item.option)
                if reason := silent.get(host_of(published.url)):
                    raise NotFoundError(f"{host_of(published.url)} cannot be reached ({reason}); {advice}")
                report(f"{number} of {len(chosen)}: {item.name} from {published.url}")
            try:
                if path is None or not is_present:
                    path = published.download(force=True)
                checked = published.check(path)
            except ArtifactError as error:
                raise ArtifactError(f"{error}; {advice}") from None
        except ArtifactError as error:
            done.append(_describe(item, "failed", reason=str(error)))
        else:
            done.append(_describe(item, "present" if is_present else "fetched", path, checked=checked))
            fetched += [] if is_present else [published]
    return done


def _describe(
    item: Item, state: str, path: Path | None = None, *, checked: str | None = None, reason: str | None = None
) -> FetchedFile:
    return FetchedFile(
        name=item.name,
        kind=item.kind,
        state=state,
        file=item.published.file,
        url=item.published.url,
        path=path,
        bytes=None if path is None else size_of(path),
        sha256=None if path is None or path.is_dir() else sha256_file(path),
        checked=checked,
        licence=item.licence,
        reason=reason,
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _is_here(item: Item) -> bool:
    try:
        return item.locate() is not None
    except ArtifactError:
        return True  # a variable names a file that is not there, and no download would change that


def _unknown(name: str, known: list[str]) -> str:
    if name in WITHOUT_FILES:
        return f"{name} needs no files ({WITHOUT_FILES[name]}); leave it out"
    evaluator = difflib.get_close_matches(name.partition(":")[2], EVALUATORS, n=1)
    close = [evaluator_name(evaluator[0])] if evaluator else difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{name}: nothing of that name can be fetched{hint}; expected {', '.join(known)}"
