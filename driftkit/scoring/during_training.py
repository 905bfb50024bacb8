"""Scores while a generator trains: its averaged weights sampled and judged with few images, for the curve alone."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from driftkit.encoders.lineage import kinship, training_encoders_of
from driftkit.errors import RefusedError, UsageError
from driftkit.methods.registry import METHODS
from driftkit.runtime.progress import warn
from driftkit.runtime.terminal import say
from driftkit.scoring.evaluator import Judging, open_judge
from driftkit.storage.records import RunManifest
from driftkit.training.sampling import SAMPLE_BATCH, draw_images
from driftkit.training.train_config import TrainConfig
from driftkit.training.trainer import Scoring

SEED = 0  # the same noise at every score of every run


def open_scoring(
    config: TrainConfig, encoder: Mapping[str, Any] | None, device: torch.device, *, is_main: bool
) -> Scoring | None:
    """What the training loop calls every `evaluation.every` steps; None where that is 0.

    Weights and real images are opened now, so that what is missing stops the run before it begins. A network whose
    images cannot be scored yet gets a warning and no number.

    Args:
        encoder: what the manifest says of the run's own encoder.
        is_main: whether this is the rank that scores; the others only keep step with it.

    Raises:
        UsageError: the method generates no images.
        ArtifactError, RefusedError: weights or real images are absent, or of another size.
    """
    wanted = config.evaluation
    if not wanted.every:
        return None
    if not METHODS[config.objective.name].generates:
        raise UsageError(
            f"--eval-every {wanted.every}: a {config.objective.name} run generates no images; leave it out"
        )
    if not is_main:
        return Scoring(wanted.every, lambda network: {})
    weights = Path(wanted.features_weights) if wanted.features_weights else None
    judge = open_judge(
        wanted.reference or config.data.spec,
        features=wanted.features,
        features_weights=weights,
        image_size=config.data.image_size if wanted.reference is None else None,
        device=device,
        judging=Judging(memorisation=False),
        check_size=lambda size: _require_size(config, size),
        tell=say,
    )
    manifest = RunManifest(id="", created="", config=config.model_dump(mode="json"), encoder=encoder and dict(encoder))
    kin = kinship(training_encoders_of(manifest), judge.bench.extractor.lineage)
    if not kin.counts:
        warn(f"{wanted.features} is no independent evaluator of this run, whose scores it flatters: {kin.reason}")
    name = f"fid@{wanted.num_images}"

    def score(network: nn.Module) -> dict[str, float]:
        try:
            drawn = draw_images(
                network, config, range(wanted.num_images), seed=SEED, precision="float32", batch_size=SAMPLE_BATCH,
                device=device,
            )  # fmt: skip
            return {name: judge.fid(drawn.images)}
        except RefusedError as error:
            warn(f"no {name} at this step: {error}")
            return {}

    return Scoring(wanted.every, score, asdict(kin))


def _require_size(config: TrainConfig, size: int | None) -> None:
    if size is not None and size != config.data.image_size:
        raise RefusedError(
            f"evaluation.reference {config.evaluation.reference}: its images are {size} pixels wide, the run's "
            f"{config.data.image_size}; name images of that size"
        )
