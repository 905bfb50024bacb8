"""Starting new training from the weights of a run, or of a file that `export` wrote. Only tensors are taken from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from driftkit.config.weights_name import EMA, split_weights
from driftkit.encoders.lineage import lineage_of_run, training_encoders_of
from driftkit.errors import ArtifactError, UsageError, shortened
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
PIXELS = "pixels"  # what a network works on that has no autoencoder
NAMED = 8  # classes that a note names
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
        path=str(run.path), weights=run.kept_name(weights), step=checkpoint.step, run=manifest.id,
        method=run.objective, digest=digest, model=run.config_section("model"),
        classes=tuple(known.name for known in manifest.classes),
        autoencoder=str(manifest.inputs.get("autoencoder", {}).get("digest", PIXELS)), training_encoders=encoders,
        lineage=lineage_of_run(manifest, digest).describe(), **spent,
    )  # fmt: skip


def initialise(
    network: nn.Module,
    config: NetworkConfig,
    source: str,
    *,
    resumed: RunManifest | None = None,
    is_trained: bool = False,
    classes: Sequence[str] = (),
    autoencoder: str = PIXELS,
) -> Initialisation:
    """Load weights into a freshly initialised network.

    Parameters of its condition embedding that the source lacks, or has with another meaning, keep their values, and
    those that only the source has are not taken; classes are matched by name. Everything else must fit.

    Args:
        config: of the network.
        source: RUN, RUN@WEIGHTS or FILE, as `init_from` names it.
        resumed: manifest of the run that is resumed; the source must have the content that it records.
        is_trained: whether that run has a checkpoint. Then nothing is loaded, nor read where `source` is as before.
        classes: names of those that the network is conditioned on, in the order of labels.
        autoencoder: digest of that whose latents the network works on, or "pixels".

    Raises:
        UsageError: weights that do not fit the network, are others than those recorded, or of another autoencoder.
        ArtifactError: they are absent, damaged or unreadable.
        RefusedError: they are not finite.
    """
    recorded = None if resumed is None else resumed.initialised_from
    if resumed and recorded and is_trained and source == resumed.config.get("init_from"):
        return Initialisation(recorded, [])
    tensors, origin = _read(source, None if recorded is None else recorded.step)
    if recorded is not None and recorded.digest != origin.digest:
        raise UsageError(
            f"`init_from` {source}: the run was initialised from other weights ({recorded.digest[:12]}, now "
            f"{origin.digest[:12]}); give another `output`"
        )
    if is_trained and recorded is not None:
        return Initialisation(recorded, [])
    require_finite(tensors, f"`init_from` {source}: weights", fix="take an earlier checkpoint, or other weights")
    if origin.autoencoder not in (None, autoencoder):
        before, now = (
            of if of == PIXELS else f"latents of the autoencoder {of[:12]}" for of in (origin.autoencoder, autoencoder)
        )
        raise UsageError(
            f"`init_from` {source}: its network works on {before}, this one on {now}; expected the same "
            "`data.autoencoder`"
        )
    notes = _load(network, config, tensors, origin, source=source, classes=classes)
    return Initialisation(origin, [*notes, *_other_settings(config, origin)])


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


def _load(
    network: nn.Module,
    config: NetworkConfig,
    tensors: dict[str, torch.Tensor],
    origin: WeightsOrigin,
    *,
    source: str,
    classes: Sequence[str],
) -> list[str]:
    own, taken = network.state_dict(), dict(tensors)
    fresh: dict[str, list[str]] = {}  # why parameters keep their values -> their names
    unused, notes = [], []
    for name, part in network.named_modules():
        if not isinstance(part, ConditionEmbedding):
            continue
        for key in sorted(key for key in own.keys() | tensors.keys() if key.startswith(f"{name}.")):
            if key not in own:
                unused.append(key)
            elif key not in tensors:
                fresh.setdefault("has no such conditions", []).append(key)
            elif key == f"{name}.labels.weight" and _label_rows_are_known(tensors[key], own[key], origin):
                taken[key], said = _labels_by_name(tensors[key], own[key], origin.classes or (), classes, source)
                notes += said
                continue
            elif key == f"{name}.labels.weight":
                fresh.setdefault("does not say which classes they are of", []).append(key)
            elif key == f"{name}.style.weight" and not _same_style(config, origin):
                fresh.setdefault("has other style_tokens or style_codes", []).append(key)
            elif own[key].shape != tensors[key].shape:
                fresh.setdefault("has them in another shape", []).append(key)
            else:
                continue
            taken.pop(key, None)
    kept = {key for keys in fresh.values() for key in keys}
    if problems := tensor_problems({key: tensor.shape for key, tensor in own.items() if key not in kept}, taken):
        raise UsageError(
            f"`init_from` {source} does not hold this network: it {problems}; give the model settings it was trained "
            "with"
        )
    network.load_state_dict(taken, strict=False)
    notes += [f"freshly initialised, since {source} {why}: {', '.join(keys)}" for why, keys in fresh.items()]
    return notes + ([f"not taken, since this network has no such conditions: {', '.join(unused)}"] if unused else [])


def _label_rows_are_known(rows: torch.Tensor, own: torch.Tensor, origin: WeightsOrigin) -> bool:
    """Whether it is known which class each row is of; the last one is of no class."""
    return bool(origin.classes) and rows.ndim == 2 and rows.shape == (len(origin.classes or ()) + 1, own.shape[1])


def _labels_by_name(
    rows: torch.Tensor, own: torch.Tensor, before: Sequence[str], classes: Sequence[str], source: str
) -> tuple[torch.Tensor, list[str]]:
    """The embeddings of this network's classes, by name from the source and else its own, and notes on the others."""
    places = {name: row for row, name in enumerate(before)}
    labels = own.clone()
    labels[-1] = rows[-1]
    for row, name in enumerate(classes):
        if name in places:
            labels[row] = rows[places[name]]
    fresh, unused = [c for c in classes if c not in places], [c for c in before if c not in classes]
    notes = [f"freshly initialised, since {source} has no such classes: {shortened(fresh, NAMED)}"] if fresh else []
    return labels, notes + (
        [f"not taken, since this run has no such classes: {shortened(unused, NAMED)}"] if unused else []
    )


def _same_style(config: NetworkConfig, origin: WeightsOrigin) -> bool:
    """Whether style codes mean the same: 32 tokens of 64 codes have as many rows as 64 of 32."""
    before = origin.model or {}
    return all(before.get(key) == getattr(config, key) for key in ("style_tokens", "style_codes"))


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
