"""Training: from a config to a run folder."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from driftkit.config.layers import flatten
from driftkit.datasets.packs import ImagePack
from driftkit.datasets.sources import open_dataset
from driftkit.errors import InterruptedRunError, StorageError, UsageError
from driftkit.methods.base import BuiltObjective, Method, Setting
from driftkit.methods.registry import METHODS
from driftkit.models.registry import build_network
from driftkit.protocols import Objective
from driftkit.runtime.compilation import decide_compilation, tried_convolutions
from driftkit.runtime.device import autocast_dtype, resolve_device
from driftkit.runtime.progress import warn
from driftkit.runtime.random import generator_for, stream_seed
from driftkit.runtime.ranks import Ranks, local_rank
from driftkit.scoring.during_training import open_scoring
from driftkit.scoring.extraction import together
from driftkit.storage.atomic import require_free
from driftkit.storage.files import digest_json, state_digest
from driftkit.storage.lock import locked_folder
from driftkit.storage.run_folder import Run
from driftkit.training.feed import Feed
from driftkit.training.memory_estimate import TrainingMemory
from driftkit.training.resume_plan import Continuation, Resume, continuation, require_same_inputs
from driftkit.training.train_config import TrainConfig
from driftkit.training.trainer import Scoring, Trainer

MOST_HELD_OUT = 1000

# Where a machine finds what is compared by content.
PLACES = ("data.spec", "objective.encoder", "objective.encoder_weights", "evaluation.reference")


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
        BusyError: another living process trains into `output`.
        StorageError: the disk cannot take a checkpoint.
        ArtifactError: data or weights are absent.
        ResourceError: memory ran out; the message says what would fit.
        InterruptedRunError: a signal stopped it after saving.
    """
    place = resolve_device(device, local_rank=local_rank())  # first: a rank without a GPU must say so
    _check_collapse(config)
    ranks = Ranks.start(device_type=place.type, timeout_s=60 * config.trainer.rank_timeout)
    run = Run(output)
    continuation(run, config, resume, ranks)  # what is refused is refused before anything is made
    with ExitStack() as held, ranks.naming_the_lost():
        together(lambda: held.enter_context(locked_folder(output)) if ranks.is_main else None, ranks)
        return _train(config, run, origins=origins, place=place, resume=resume, ranks=ranks)


def _train(
    config: TrainConfig, run: Run, *, origins: dict[str, str], place: torch.device, resume: Resume, ranks: Ranks
) -> TrainResult:
    going_on = continuation(run, config, resume, ranks)
    ranks.barrier()  # no rank may look for a run that another has just begun
    _require_equal_plan(going_on, config, ranks)
    method = METHODS[config.objective.name]
    if going_on is not None and going_on.is_finished:  # before seconds go into an encoder that nobody needs
        return _finished(run, method, ranks)
    global_batch = config.trainer.batch_size * ranks.world_size
    if going_on is not None:
        config, global_batch = going_on.config, going_on.global_batch
    pack = open_dataset(config.data.spec, image_size=config.data.image_size, limit=config.data.limit, ranks=ranks)
    config = _completed(config, pack)
    _check_batch(config, method, global_batch)
    running = with_batch(config, global_batch // ranks.world_size)
    reached = run.checkpoint().step if going_on is not None and run.checkpoints() else 0
    compilation = decide_compilation(config.trainer.compile, device=place, steps_left=config.trainer.steps - reached)
    setting = setting_of(config, pack, place, ranks, compiled=compilation.compiled)
    memory = TrainingMemory(running, ranks.world_size, place)
    with memory.explained():
        built = method.build(config.objective, setting)
    scoring = open_scoring(config, built.encoder, place, is_main=ranks.is_main)
    torch.manual_seed(stream_seed(config.seed, "initial weights"))
    network = build_network(config.model, image_size=pack.image_size)
    together(lambda: require_free(run.path, checkpoint_bytes(network), "one checkpoint"), ranks)
    document = config.model_dump(mode="json")
    all_origins = {key: origins.get(key, "default") for key in flatten(document)}
    if going_on is not None:
        require_same_inputs(run, pack, built.encoder)
    elif ranks.is_main:
        run.create(
            config=document,
            origins=all_origins,
            inputs={"data": {"spec": config.data.spec, "digest": pack.digest, "count": len(pack)}},
            parameters=sum(p.numel() for p in network.parameters()),
            encoder=built.encoder,
            global_batch=global_batch,
            world_size=ranks.world_size,
        )
    ranks.barrier()
    if scoring is not None and ranks.is_main:
        run.update(scored_on_the_way=dict(scoring.kinship))
    if ranks.is_main:
        run.update(compilation=asdict(compilation))
    trainer = _trainer(running, setting, built, network, run, scoring)
    resumed = trainer.resume() if going_on is not None else False
    start = trainer.step
    if going_on is not None and resumed and ranks.is_main:
        run.update(config=document, origins=all_origins, global_batch=global_batch)
        for sentence in going_on.notes:
            warn(f"{run.path}: {sentence}")
    try:
        eager_gpu = place.type == "cuda" and not compilation.compiled
        with ranks.naming_the_lost(), memory.explained(), tried_convolutions(wanted=eager_gpu):
            _require_equal_start(trainer, built, pack, ranks)
            trainer.train()
    except InterruptedRunError:
        raise
    except Exception as error:
        if ranks.is_main:
            _record_failure(run, error)
        raise
    if method.finish and ranks.is_main:
        method.finish(run)
    return TrainResult(run, start if resumed else None, ranks)


def _require_equal_plan(going_on: Continuation | None, config: TrainConfig, ranks: Ranks) -> None:
    """Refuse ranks of which some go on with a run that others do not see, or whose settings differ but for places.

    Raises:
        DriftkitError: on every rank alike.
    """
    planned = flatten((config if going_on is None else going_on.config).model_dump(mode="json"))
    settings = {key: value for key, value in planned.items() if key not in PLACES}
    ranks.require_equal(
        {
            "the run folder, or the run in it,": f"{going_on is not None} {going_on and going_on.is_finished}",
            "the config": digest_json(settings),
        }
    )


def _require_equal_start(trainer: Trainer, built: BuiltObjective, pack: ImagePack, ranks: Ranks) -> None:
    """Refuse to train ranks that differ: gradients are averaged, so that they would never come to be alike.

    Raises:
        DriftkitError: on every rank alike.
    """
    if ranks.world_size > 1:
        ranks.require_equal(
            {
                "the step to go on from": str(trainer.step),
                "the network": state_digest(trainer.network.state_dict()),
                "the encoder": str((built.encoder or {}).get("weights_digest")),
                "the set of images": pack.digest,
                "the version of torch or timm": f"{torch.__version__} {version('timm')}",
            }
        )


def _finished(run: Run, method: Method, ranks: Ranks) -> TrainResult:
    """A run with nothing left to train; it may have been killed before it exported."""
    if method.finish and ranks.is_main:
        method.finish(run)
    return TrainResult(run, run.checkpoint().step, ranks)


def _record_failure(run: Run, error: Exception) -> None:
    try:
        run.update(state="failed", failure=f"{type(error).__name__}: {error}")
    except StorageError as second:  # most likely the same full disk: the first error is the one to be told
        error.add_note(f"the manifest still says that it runs: {second}")


def checkpoint_bytes(network: nn.Module) -> int:
    """About what a checkpoint takes on the disk: the weights, their average, and two moments of each parameter."""
    weights: int = sum(tensor.nbytes for tensor in network.state_dict().values())
    moments = sum(2 * parameter.nbytes for parameter in network.parameters())
    return 2 * weights + moments


def setting_of(
    config: TrainConfig, pack: ImagePack, device: torch.device, ranks: Ranks, *, compiled: bool = False
) -> Setting:
    """What the objective of a complete config is built in."""
    training, held_out = hold_out(len(pack), config.data.holdout or 0)
    return Setting(
        pack,
        training,
        held_out,
        flips=config.data.horizontal_flip,
        dtype=autocast_dtype(config.trainer.precision, device),
        compile=compiled,
        device=device,
        ranks=ranks,
    )


def with_batch(config: TrainConfig, batch_size: int) -> TrainConfig:
    """The config with so many images per process."""
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"batch_size": batch_size})})


def feed_of(config: TrainConfig, setting: Setting, objective: Objective) -> Feed:
    """Where a run's batches come from, with the draws of its objective."""
    return Feed(
        setting.pack.images,
        setting.pack.labels,
        batch_size=config.trainer.batch_size,
        horizontal_flip=config.data.horizontal_flip,
        seed=config.seed,
        ranks=setting.ranks,
        device=setting.device,
        indices=setting.training,
        objective=objective,
    )


def _trainer(
    config: TrainConfig, setting: Setting, built: BuiltObjective, network: nn.Module, run: Run, scoring: Scoring | None
) -> Trainer:
    return Trainer(
        built.objective,
        network,
        feed_of(config, setting, built.objective),
        run,
        config.trainer,
        seed=config.seed,
        image_size=setting.pack.image_size,
        ranks=setting.ranks,
        device=setting.device,
        header={"driftkit": "weights", "config": config.model_dump(mode="json")},
        scoring=scoring,
        compiled=setting.compile,
    )


def _completed(config: TrainConfig, pack: ImagePack) -> TrainConfig:
    """The config with what it leaves to the images."""
    method = METHODS[config.objective.name]
    holdout = config.data.holdout
    if holdout is None:
        holdout = min(MOST_HELD_OUT, int(method.holdout * len(pack)))
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"image_size": pack.image_size, "holdout": holdout}),
            "model": method.complete(config.objective, config.model, pack),
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


def _check_batch(config: TrainConfig, method: Method, global_batch: int) -> None:
    if global_batch < method.min_batch:
        raise UsageError(
            f"`trainer.batch_size` {config.trainer.batch_size}: {method.name} needs at least {method.min_batch} images "
            "per step"
        )


def _check_collapse(config: TrainConfig) -> None:
    if config.trainer.fail_on_collapse and not METHODS[config.objective.name].reports_spread:
        raise UsageError(
            f"`trainer.fail_on_collapse`: a step of {config.objective.name} generates no images, so collapse does not "
            "show in training; leave it out"
        )
