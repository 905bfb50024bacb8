"""Training: from a config to a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from driftkit.artifacts.run import Run
from driftkit.config.layers import flatten
from driftkit.datasets.packs import ImagePack
from driftkit.datasets.sources import open_dataset
from driftkit.errors import InterruptedRunError, UsageError
from driftkit.objectives.registry import OBJECTIVES, ObjectiveKind, Setting, build_network
from driftkit.runtime.device import autocast_dtype, resolve_device
from driftkit.runtime.distributed import Ranks, local_rank
from driftkit.runtime.random import generator_for, stream_seed
from driftkit.stages.config import FREE_ON_RESUME, TrainConfig
from driftkit.training.feed import Feed
from driftkit.training.loop import Trainer

Resume = Literal["auto", "never"]

FOLLOWS_FROM_DATA = ("data.image_size", "model.num_classes")  # left open in a config, filled in from the images


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
        InterruptedRunError: a signal stopped it after saving.
    """
    place = resolve_device(device, local_rank=local_rank())  # first: a rank without a GPU must say so
    ranks = Ranks.start(device_type=place.type)
    run = Run(output)
    existing = _existing_run(run, config, resume)
    ranks.barrier()  # no rank may look for a run that another has just begun
    pack = open_dataset(config.data.spec, image_size=config.data.image_size, limit=config.data.limit, ranks=ranks)
    config = _completed(config, pack)
    kind = OBJECTIVES[config.objective.name]
    _check_batch(config, kind, ranks)
    training, held_out = hold_out(len(pack), config.data.holdout)
    setting = Setting(
        pack,
        training,
        held_out,
        flips=config.data.horizontal_flip,
        dtype=autocast_dtype(config.trainer.precision, place),
        compile=config.trainer.compile,
        device=place,
        ranks=ranks,
    )
    built = kind.build(config.objective, setting)
    torch.manual_seed(stream_seed(config.seed, "initial weights"))
    network = build_network(config.model, image_size=pack.image_size)
    document = config.model_dump(mode="json")
    if ranks.is_main and not existing:
        run.create(
            config=document,
            origins={key: origins.get(key, "default") for key in flatten(document)},
            inputs={"data": {"spec": config.data.spec, "digest": pack.digest, "count": len(pack)}},
            parameters=sum(p.numel() for p in network.parameters()),
            encoder=built.encoder,
        )
    elif existing:
        _require_same_inputs(run, pack, built.encoder, ranks)
    ranks.barrier()
    feed = Feed(
        pack.images,
        pack.labels,
        batch_size=config.trainer.batch_size,
        horizontal_flip=config.data.horizontal_flip,
        seed=config.seed,
        ranks=ranks,
        device=place,
        indices=training,
    )
    trainer = Trainer(
        built.objective,
        network,
        feed,
        run,
        config.trainer,
        seed=config.seed,
        image_size=pack.image_size,
        ranks=ranks,
        device=place,
        header={"driftkit": "weights", "config": document},
    )
    resumed = trainer.resume() if existing else False
    start = trainer.step
    if resumed and start < config.trainer.steps and ranks.is_main:
        run.update(config=document, origins={key: origins.get(key, "default") for key in flatten(document)})
    try:
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
    saved = flatten(Run.open(run.path).manifest()["config"])
    wanted = flatten(config.model_dump(mode="json"))
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


def _completed(config: TrainConfig, pack: ImagePack) -> TrainConfig:
    """The config with what it leaves to the images."""
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"image_size": pack.image_size}),
            "model": OBJECTIVES[config.objective.name].complete(config.objective, config.model, pack),
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
