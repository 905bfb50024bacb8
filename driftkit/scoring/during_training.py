"""Scores while a generator trains: its averaged weights sampled and scored with few images, for the curve alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from driftkit.config.sampling_config import SamplingConfig
from driftkit.encoders.lineage import kinship, training_encoders_of
from driftkit.errors import RefusedError, UsageError
from driftkit.methods.registry import METHODS
from driftkit.runtime.progress import phase, progress, warn
from driftkit.runtime.terminal import say
from driftkit.scoring.evaluator import ScoringOptions, open_evaluator
from driftkit.scoring.image_set import ScoringExecution, default_batch_size
from driftkit.storage.records import ClassCount, Clustering, RunManifest, WeightsOrigin
from driftkit.training.conditions import sample_conditions
from driftkit.training.hooks import Scoring
from driftkit.training.latents import open_autoencoder
from driftkit.training.sampling import SAMPLE_BATCH, draw_images
from driftkit.training.train_config import TrainConfig

SEED = 0  # the same noise at every score of every run


def open_scoring(
    config: TrainConfig,
    encoder: Mapping[str, Any] | None,
    device: torch.device,
    *,
    initialised_from: WeightsOrigin | None = None,
    is_main: bool,
    classes: Sequence[ClassCount] = (),
    clusters: Clustering | None = None,
) -> Scoring | None:
    """What the training loop calls every `evaluation.every` steps; None where that is 0.

    Weights and real images are opened now, so that what is missing stops the run before it begins. A network whose
    images cannot be scored yet gets a warning and no number. Only the main rank scores. `classes` are those of the
    training images where the network is conditioned on them, and `clusters` says where they come from.

    Raises:
        UsageError: the method generates no images.
        ArtifactError, RefusedError: weights or real images are absent, or of another size.
    """
    settings = config.evaluation
    if not settings.every:
        return None
    if not METHODS[config.objective.name].generates:
        raise UsageError(
            f"`evaluation.every` {settings.every}: a {config.objective.name} run generates no images; remove it"
        )
    if not is_main:
        return Scoring(settings.every, lambda network: {})
    evaluator = open_evaluator(
        settings.reference or config.data.spec,
        extractor=settings.extractor,
        extractor_weights=Path(settings.extractor_weights) if settings.extractor_weights else None,
        image_size=config.data.image_size if settings.reference is None else None,
        options=ScoringOptions(metrics=()),
        execution=ScoringExecution(default_batch_size(device), device, notify=say),
        check_size=lambda size: _require_size(config, size),
    )
    manifest = RunManifest(
        id="", created="", config=config.model_dump(mode="json"), encoder=encoder and dict(encoder),
        initialised_from=initialised_from, classes=tuple(classes), clusters=clusters,
    )  # fmt: skip
    kin = kinship(training_encoders_of(manifest), evaluator.extractor.lineage)
    if not kin.counts:
        warn(f"{settings.extractor} is no independent evaluator of this run, whose scores it flatters: {kin.reason}")
    name = f"fid@{settings.num_images}"
    conditions = sample_conditions(config.objective, config.model, classes)
    autoencoder = open_autoencoder(config, device)

    def score(network: nn.Module) -> dict[str, float]:
        try:
            with progress(f"sampling for {name}", settings.num_images) as advance:
                drawn = draw_images(
                    network, config, range(settings.num_images), SamplingConfig(seed=SEED, precision="float32"),
                    conditions=conditions, batch_size=SAMPLE_BATCH, device=device, autoencoder=autoencoder,
                    advance=advance,
                )  # fmt: skip
            with phase(f"computing {name}"):
                return {name: evaluator.fid(drawn.images)}
        except RefusedError as error:
            warn(f"no {name} at this step: {error}")
            return {}

    return Scoring(settings.every, score, asdict(kin))


def _require_size(config: TrainConfig, size: int | None) -> None:
    if size is not None and size != config.data.image_size:
        raise RefusedError(
            f"`evaluation.reference` {config.evaluation.reference}: its images are {size} pixels wide, the run's "
            f"{config.data.image_size}; name images of that size"
        )
