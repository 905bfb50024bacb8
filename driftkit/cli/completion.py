"""What the shell offers for the word that is being typed: runs, names and keys. Nothing here loads torch.

Each function takes the beginning of the word and gives every word that begins so; where there is none, the shell offers
files. `driftkit --install-completion` switches it on.
"""

import ast
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path

import typer
from pydantic import BaseModel

from driftkit.config.layers import config_keys
from driftkit.config.pipeline_file import load_pipeline
from driftkit.config.places import ENCODER_PREFIX
from driftkit.encoders.specs import SPECS, TIMM_PREFIX
from driftkit.errors import DriftkitError
from driftkit.methods.registry import METHODS
from driftkit.scoring.extractor_names import NAMES

RUNS = "outputs"  # where runs lie unless another folder is typed
SHOWN = re.compile(r"[\w.@%+=,:/-]+", re.ASCII)  # shells take offered words as typed: none that they would interpret
LONGEST_SEARCH_S = 0.3
DEPTH = 3  # folders below the typed one in which runs are looked for
NETWORK_CONFIG = "NetworkConfig"  # end of the names of the classes that configs of networks extend
EVALUATORS = ("inception", "evaluator:dinov2", "evaluator:clip")
"""Files of extractors that `driftkit prefetch` takes by name."""


def choices(words: Iterable[str]) -> Callable[[str], list[str]]:
    """A completion that offers these words."""
    known = tuple(word for word in words if SHOWN.fullmatch(word))
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Folders with a manifest: below `outputs`, or below what is typed."""
    until = time.monotonic() + LONGEST_SEARCH_S
    if not incomplete:
        return list(_runs_in(RUNS, DEPTH, until))
    parent, name = os.path.split(incomplete)
    near = [os.path.join(parent, folder) for folder in _folders(parent or ".") if folder.startswith(name)]
    return [run for folder in near for run in _runs_in(folder, DEPTH, until)]


def _runs_in(folder: str, depth: int, until: float) -> Iterator[str]:
    """The folder itself where it is a run, else the runs below it that are found until a time."""
    if time.monotonic() > until:
        return
    if os.path.exists(os.path.join(folder, "manifest.json")):
        yield folder
    elif depth:
        for name in _folders(folder):
            yield from _runs_in(os.path.join(folder, name), depth - 1, until)


def _folders(folder: str) -> list[str]:
    """Names of the folders in a folder, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                e.name for e in entries if not e.name.startswith(".") and SHOWN.fullmatch(e.name) and e.is_dir()
            )
    except OSError:
        return []


def encoders(incomplete: str) -> list[str]:
    """Encoders by name, and runs, of which some have one."""
    return [*choices(("pixel", "pixel-pyramid", "pixel-details", *SPECS, TIMM_PREFIX))(incomplete), *runs(incomplete)]


def extractors(incomplete: str) -> list[str]:
    """Extractors by name, and those of runs."""
    if incomplete.startswith(ENCODER_PREFIX):
        return [ENCODER_PREFIX + run for run in runs(incomplete.removeprefix(ENCODER_PREFIX))]
    return choices(name.removesuffix("RUN").removesuffix("MODEL") for name in NAMES)(incomplete)


def fetched(incomplete: str) -> list[str]:
    """What `driftkit prefetch` takes by name."""
    return choices((*SPECS, *EVALUATORS, "cifar10", TIMM_PREFIX))(incomplete)


def samplers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Samplers of the run that is typed before, or of all methods."""
    own = METHODS.get(_method_of(_argument(ctx)))
    methods = [own] if own else METHODS.values()
    return choices(dict.fromkeys(name for method in methods for name in method.samplers))(incomplete)


def _argument(ctx: typer.Context) -> Path:
    """The run or file that is typed before the word."""
    named = [ctx.params[name] for name in ("run", "target", "pipeline") if ctx.params.get(name)]
    return Path(
        next(iter([*named, *ctx.args]), "")
    )  # a line whose last option has no value yet is not parsed to its end


def _method_of(run: Path) -> str:
    """The method in a run's manifest; nothing where that cannot be read."""
    try:
        return str(json.loads((run / "manifest.json").read_text())["config"]["objective"]["name"])
    except (OSError, ValueError, TypeError, LookupError):
        return ""


def pipelines(incomplete: str) -> list[str]:
    """Pipeline files here, in `pipelines`, or in the folder that is typed."""
    folders = dict.fromkeys([Path(), Path("pipelines"), Path(f"{incomplete}.").parent])
    files = (path for folder in folders for path in sorted(folder.glob("*.toml")))
    return choices(dict.fromkeys(str(file) for file in files if _has_stages(file)))(incomplete)


def _has_stages(file: Path) -> bool:
    try:
        return "[[stage]]" in file.read_text()
    except (OSError, ValueError):
        return False


def pipeline_stages(ctx: typer.Context, incomplete: str) -> list[str]:
    """Stages of the pipeline that is typed before."""
    try:
        return choices(stage.name for stage in load_pipeline(_argument(ctx)).stages)(incomplete)
    except DriftkitError:
        return []


def setting_keys(model: type[BaseModel]) -> Callable[[str], list[str]]:
    """A completion for `--set` of a command with these settings."""

    def complete(incomplete: str) -> list[str]:
        keys = config_keys(model)
        if "model" in model.model_fields:
            keys += [f"model.{key}" for key in _network_keys()]
        if model.model_config.get("extra") == "allow":  # options of samplers
            specs = [spec for method in METHODS.values() for spec in method.samplers.values()]
            keys += [key for spec in specs for key in config_keys(spec.options)]
        return choices(f"{key}=" for key in dict.fromkeys(keys))(incomplete)

    return complete


@functools.cache
def _network_keys() -> list[str]:
    """Settings of all networks, read from the source, since importing it would load torch."""
    keys: list[str] = []
    for file in (resources.files("driftkit") / "models").iterdir():
        for node in ast.parse(file.read_text()).body if file.name.endswith(".py") else ():
            if isinstance(node, ast.ClassDef) and any(ast.unparse(b).endswith(NETWORK_CONFIG) for b in node.bases):
                keys += [
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                ]
    return sorted(set(keys))


BY_NAME: dict[str, Callable[..., list[str]]] = {
    "encoder": encoders, "extractor": extractors, "sampler": samplers, "init_from": runs, "stage": pipeline_stages,
    "device": choices(("auto", "cpu", "cuda")),
}  # fmt: skip
"""Name of a setting -> what the shell offers for its option."""
