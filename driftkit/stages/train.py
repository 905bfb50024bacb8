"""Training: from a config to a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from driftkit.artifacts.run import Run
from driftkit.config.layers import flatten
from driftkit.datasets.packs import ImagePack
from driftkit.datasets.sources import open_dataset
from driftkit.errors import InterruptedRunError, UsageError
from driftkit.objectives.registry import OBJECTIVES, BuiltObjective, ObjectiveKind, Setting, build_network
from driftkit.runtime.device import autocast_dtype, resolve_device
from driftkit.runtime.distributed import Ranks, local_rank
from driftkit.runtime.random import generator_for, stream_seed
from driftkit.stages.config import FREE_ON_RESUME, TrainConfig
from driftkit.stages.training_memory import TrainingMemory
from driftkit.stages.training_scores import open_scoring
from driftkit.training.feed import Feed
from driftkit.training.loop import Scoring, Trainer

Resume = Literal["auto", "never"]

MOST_HELD_OUT = 1000
FOLLOWS_FROM_DATA = (
    "data.image_size",
    "data.holdout",
    "model.num_classes",
)  # left open in a config, filled in from the images


@dataclass(frozen=True)
class TrainResult:
    """What training left behind."""

    run: Run
    resumed_from: int | None
    ranks: Ranks


def train(
    config: TrainConfig, output: Path, *, origins: dict[str, str], device: str = "auto", resume: Resume = "auto"
) -> TrainResult:
    """Train, or go on training, the run in `output`.

    Args:
        config: the resolved config.
        output: run folder; made if it is not there.
        origins: where the config's values came from, for the manifest.
        device: auto, cpu or cuda.
        resume: "auto" continues what `output` holds, "never" refuses to touch it.

    Raises:
        UsageError: `output` holds another run, or one that must not be resumed.
        MissingError: data or weights are absent.
        ResourceError: memory ran out; the message says what would fit.
        InterruptedRunError: a signal stopped it after saving.
    """
    place = resolve_device(device, local_rank=local_rank())  # first: a rank without a GPU must say so
    _check_collapse(config)
    ranks = Ranks.start(device_type=place.type)
    run = Run(output)
    existing = _existing_run(run, config, resume)
    ranks.barrier()  # no rank may look for a run that another has just begun
    pack = open_dataset(config.data.spec, image_size=config.data.image_size, limit=config.data.limit, ranks=ranks)
    config = _completed(config, pack)
    kind = OBJECTIVES[config.objective.name]
    _check_batch(config, kind, ranks)
    setting = setting_of(config, pack, place, ranks)
    memory = TrainingMemory(config, ranks.world_size, place)
    with memory.explained():
        built = kind.build(config.objective, setting)
    scoring = open_scoring(config, built.encoder, place, is_main=ranks.is_main)
    torch.manual_seed(stream_seed(config.seed, "initial weights"))
    network = build_network(config.model, image_size=pack.image_size)
    document = config.model_dump(mode="json")
    all_origins = {key: origins.get(key, "default") for key in flatten(document)}
    if ranks.is_main and not existing:
        run.create(
            config=document,
            origins=all_origins,
            inputs={"data": {"spec": config.data.spec, "digest": pack.digest, "count": len(pack)}},
            parameters=sum(p.numel() for p in network.parameters()),
            encoder=built.encoder,
        )
    elif existing:
        _require_same_inputs(run, pack, built.encoder, ranks)
    ranks.barrier()
    trainer = _trainer(config, setting, built, network, run, scoring)
    resumed = trainer.resume() if existing else False
    start = trainer.step
    if resumed and start < config.trainer.steps and ranks.is_main:
        run.update(config=document, origins=all_origins)
    try:
        with memory.explained():
            trainer.train()
    except InterruptedRunError:
        raise
    except Exception as error:
        if ranks.is_main:
            run.update(state="failed", failure=f"{type(error).__name__}: {error}")
        raise
    if kind.export and ranks.is_main:
        kind.export(run)
    return TrainResult(run, start if resumed else None, ranks)


def setting_of(config: TrainConfig, pack: ImagePack, device: torch.device, ranks: Ranks) -> Setting:
    """What the objective of a complete config is built in."""
    training, held_out = hold_out(len(pack), config.data.holdout or 0)
    return Setting(
        pack,
        training,
        held_out,
        flips=config.data.horizontal_flip,
        dtype=autocast_dtype(config.trainer.precision, device),
        compile=config.trainer.compile,
        device=device,
        ranks=ranks,
    )


def feed_of(config: TrainConfig, setting: Setting) -> Feed:
    """Where a run's batches come from."""
    return Feed(
        setting.pack.images,
        setting.pack.labels,
        batch_size=config.trainer.batch_size,
        horizontal_flip=config.data.horizontal_flip,
        seed=config.seed,
        ranks=setting.ranks,
        device=setting.device,
        indices=setting.training,
    )


def _trainer(
    config: TrainConfig, setting: Setting, built: BuiltObjective, network: nn.Module, run: Run, scoring: Scoring | None
) -> Trainer:
    return Trainer(
        built.objective,
        network,
        feed_of(config, setting),
        run,
        config.trainer,
        seed=config.seed,
        image_size=setting.pack.image_size,
        ranks=setting.ranks,
        device=setting.device,
        header={"driftkit": "weights", "config": config.model_dump(mode="json")},
        scoring=scoring,
    )


def _existing_run(run: Run, config: TrainConfig, resume: Resume) -> bool:
    """Whether `run` is there and may be resumed with this config."""
    if not run.path.exists():
        return False
    if run.path.is_dir() and all(".partial" in path.name for path in run.path.iterdir()):
        return False  # empty, or left by a process that was killed while it wrote the first manifest
    if not run.manifest_path.is_file():
        raise UsageError(f"--output {run.path} is not empty and holds no run; give another folder")
    if resume == "never":
        raise UsageError(f"--resume never: {run.path} already holds a run; give another --output or remove it")
    wanted = flatten(config.model_dump(mode="json"))
    saved = {**_before(config), **flatten(Run.open(run.path).manifest()["config"])}
    for key in FOLLOWS_FROM_DATA:
        if wanted.get(key) is None and key in saved:
            wanted[key] = saved[key]
    different = sorted(
        k for k in saved.keys() | wanted.keys() if k not in FREE_ON_RESUME and saved.get(k) != wanted.get(k)
    )
    if different:
        shown = "; ".join(f"{k} is {saved.get(k)!r} there and {wanted.get(k)!r} here" for k in different[:3])
        raise UsageError(f"{run.path} holds a run with another config ({shown}); give another --output")
    reached = max((c.step for c in run.checkpoints()), default=0)
    if reached > config.trainer.steps:
        raise UsageError(
            f"{run.path} is at step {reached}, past --steps {config.trainer.steps}; give more steps or another --output"
        )
    return True


def _before(config: TrainConfig) -> dict[str, Any]:
    """What settings that an older manifest does not have stood for when it was written: their defaults, mostly."""
    defaults = type(config).model_validate(
        {"objective": {"name": config.objective.name}, "model": {"kind": config.model.kind}}
    )
    later: dict[str, Any] = {"data.holdout": 0}
    if config.objective.name == "mae":
        later |= {"objective.min_crop": 1.0}
    return {**flatten(defaults.model_dump(mode="json")), **later}


def _completed(config: TrainConfig, pack: ImagePack) -> TrainConfig:
    """The config with what it leaves to the images."""
    kind = OBJECTIVES[config.objective.name]
    holdout = config.data.holdout
    if holdout is None:
        holdout = min(MOST_HELD_OUT, int(kind.holdout * len(pack)))
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"image_size": pack.image_size, "holdout": holdout}),
            "model": kind.complete(config.objective, config.model, pack),
        }
    )


def hold_out(count: int, held_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the images to train on and of those kept out, the same for every seed.

    Raises:
        UsageError: nothing would be left to train on.
    """
    if held_out >= count:
        raise UsageError(f"data.holdout {held_out}: there are only {count} images; keep out fewer")
    order = torch.randperm(count, generator=generator_for(0, "hold out"))
    return order[held_out:].sort().values, order[:held_out].sort().values


def _check_batch(config: TrainConfig, kind: ObjectiveKind, ranks: Ranks) -> None:
    total = config.trainer.batch_size * ranks.world_size
    if total < kind.min_batch:
        raise UsageError(
            f"--batch-size {config.trainer.batch_size}: {kind.name} needs at least {kind.min_batch} images, "
            "since generated images push one another"
        )


def _check_collapse(config: TrainConfig) -> None:
    if config.trainer.fail_on_collapse and not OBJECTIVES[config.objective.name].tells_spread:
        raise UsageError(
            f"--fail-on-collapse: a step of {config.objective.name} generates no images, so collapse does not show in "
            "training; leave it out (drift only)"
        )


def _require_same_inputs(run: Run, pack: ImagePack, encoder: dict[str, Any] | None, ranks: Ranks) -> None:
    manifest = run.manifest()
    processes = manifest.get("world_size", ranks.world_size)
    if processes != ranks.world_size:
        raise UsageError(
            f"{run.path} was trained by {processes} processes and this is {ranks.world_size}: the field would see "
            f"another batch; start {processes} processes, or give another --output"
        )
    before = manifest["inputs"]["data"]["digest"]
    if before != pack.digest:
        raise UsageError(
            f"{run.path} was trained on other images ({before[:12]}, now {pack.digest[:12]}); give another --output"
        )
    saved = manifest.get("encoder") or {}
    if encoder is not None and saved.get("weights_digest") != encoder["weights_digest"]:
        raise UsageError(f"{run.path} was trained with other weights of {encoder['name']}; give another --output")
