"""Starting new training from the weights of a run, or of a file that `export` wrote. Only tensors are taken from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from driftkit.config.weights_name import EMA, split_weights
from driftkit.encoders.lineage import lineage_of_run, training_encoders_of
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.models.conditioning import ConditionEmbedding
from driftkit.models.contract import GeneratorNetworkConfig, NetworkConfig
from driftkit.models.registry import tensor_problems
from driftkit.runtime.readback import require_finite
from driftkit.storage.files import read_tensors, state_digest
from driftkit.storage.json_text import from_json
from driftkit.storage.records import RunManifest, WeightsOrigin
from driftkit.storage.run_folder import Run

EXPORT = "export"  # what the header of an exported file says that it is
ORIGIN = "origin"  # key in that header of what the weights come from
EXPECTED = "expected a run folder or the safetensors file of driftkit export"


@dataclass(frozen=True)
class Initialisation:
    """What a network was initialised from, and sentences on what of it was not taken."""

    origin: WeightsOrigin
    notes: list[str]


def origin_of(
    run: Run, *, weights: str = EMA, step: int | None = None
) -> tuple[dict[str, torch.Tensor], WeightsOrigin]:
    """Weights of a run, of its last checkpoint where `step` is None, and what they come from.

    Raises ArtifactError where the run, its checkpoint or these weights are absent or damaged.
    """
    tensors, checkpoint = run.weights(weights, step)
    manifest, state = run.manifest(), checkpoint.state()
    before, digest = manifest.initialised_from, state_digest(tensors)
    spent: dict[str, Any] = {
        "steps": state.step, "images_seen": state.images_seen, "train_seconds": state.train_seconds,
    }  # fmt: skip
    if before is not None:  # what was spent before counts, and is unknown where that is
        costs = {key: getattr(before, key) for key in spent}
        spent = {key: None if costs[key] is None else value + costs[key] for key, value in spent.items()}
    encoders = [None if each is None else each.describe() for each in training_encoders_of(manifest)]
    return tensors, WeightsOrigin(
        path=str(run.path), weights=weights, step=checkpoint.step, run=manifest.id, method=run.objective, digest=digest,
        model=run.config_section("model"), training_encoders=encoders,
        lineage=lineage_of_run(manifest, digest).describe(), **spent,
    )  # fmt: skip


def initialise(
    network: nn.Module,
    config: NetworkConfig,
    source: str,
    *,
    resumed: RunManifest | None = None,
    is_trained: bool = False,
) -> Initialisation:
    """Load weights into a freshly initialised network.

    Parameters of its condition embedding that the source lacks, or has in another shape, keep their values, and those
    that only the source has are not taken. Everything else must fit.

    Args:
        config: of the network.
        source: RUN, RUN@WEIGHTS or FILE, as `init_from` names it.
        resumed: manifest of the run that is resumed; the source must have the content that it records.
        is_trained: whether that run has a checkpoint. Then its source may be gone, and nothing is loaded.

    Raises:
        UsageError: weights that do not fit the network, or are others than those recorded.
        ArtifactError: they are absent, damaged or unreadable.
        RefusedError: they are not finite.
    """
    recorded = None if resumed is None else resumed.initialised_from
    try:
        tensors, origin = _read(source, None if recorded is None else recorded.step)
    except NotFoundError:
        if resumed and recorded and is_trained and source == resumed.config.get("init_from"):
            return Initialisation(recorded, [])
        raise
    if recorded is not None and recorded.digest != origin.digest:
        raise UsageError(
            f"`init_from` {source}: the run was initialised from other weights ({recorded.digest[:12]}, now "
            f"{origin.digest[:12]}); give another `output`"
        )
    if is_trained and recorded is not None:
        return Initialisation(recorded, [])
    require_finite(tensors, f"`init_from` {source}: weights", fix="take an earlier checkpoint, or other weights")
    return Initialisation(origin, [*_load(network, tensors, source), *_other_settings(config, origin)])


def _read(source: str, step: int | None) -> tuple[dict[str, torch.Tensor], WeightsOrigin]:
    path, name = split_weights(source)
    if not Path(path).is_file():
        return origin_of(Run.open(Path(path)), weights=name or EMA, step=step)
    if name is not None:
        raise UsageError(f"`init_from` {source}: a file has one set of weights; leave @{name} out")
    if Path(path).suffix != ".safetensors":
        raise UsageError(f"`init_from` {path}: {EXPECTED}")
    tensors, header = read_tensors(Path(path))
    if header.get("driftkit") != EXPORT:
        raise UsageError(f"`init_from` {path}: {EXPECTED}")
    digest = state_digest(tensors)
    try:
        origin = WeightsOrigin.model_validate(from_json(header.get(ORIGIN, "")))
    except (ValueError, RecursionError, ValidationError):  # nobody knows what they come from
        return tensors, WeightsOrigin(path=path, weights="unknown", digest=digest, training_encoders=[None])
    if origin.digest != digest:
        raise ArtifactError(f"{path} is damaged: its weights are not those it was written with; export them again")
    return tensors, origin.model_copy(update={"path": path})


def _load(network: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> list[str]:
    own = {key: tensor.shape for key, tensor in network.state_dict().items()}
    embeddings = tuple(f"{name}." for name, part in network.named_modules() if isinstance(part, ConditionEmbedding))
    differing = {key for key in own.keys() | tensors.keys() if key not in own or key not in tensors}
    differing |= {key for key in own.keys() & tensors.keys() if own[key] != tensors[key].shape}
    conditions = {key for key in differing if embeddings and key.startswith(embeddings)}
    taken = {key: tensor for key, tensor in tensors.items() if key not in conditions}
    if problems := tensor_problems({key: shape for key, shape in own.items() if key not in conditions}, taken):
        raise UsageError(
            f"`init_from` {source} does not hold this network: it {problems}; give the model settings it was trained "
            "with"
        )
    network.load_state_dict(taken, strict=False)
    fresh, unused = sorted(conditions & own.keys()), sorted(conditions - own.keys())
    notes = [f"freshly initialised, since {source} has no such conditions: {', '.join(fresh)}"] if fresh else []
    return notes + ([f"not taken, since this network has no such conditions: {', '.join(unused)}"] if unused else [])


def _other_settings(config: NetworkConfig, origin: WeightsOrigin) -> list[str]:
    """Settings of the network that its tensors do not show, for example heads or dropout, and that differ."""
    known = set(GeneratorNetworkConfig.model_fields)
    own = {key: value for key, value in config.model_dump(mode="json").items() if key not in known}
    before = origin.model or {}
    return [
        f"model.{key} was {before[key]!s:.80} where the weights come from, and is {value} now"
        for key, value in own.items()
        if key in before and before[key] != value
    ]
