"""Training: from a config to a run folder."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from driftkit.config.layers import flatten
from driftkit.config.settings import OnResume, marked_keys
from driftkit.datasets.cifar10 import Cifar10Source
from driftkit.datasets.packs import ImagePack, is_finished
from driftkit.datasets.sources import import_path, open_dataset, resolve
from driftkit.encoders.autoencoder import Autoencoder
from driftkit.encoders.encoder_config import EncodersConfig
from driftkit.encoders.registry import published_file
from driftkit.errors import ArtifactError, InterruptedRunError, StorageError, UsageError
from driftkit.methods.base import BuiltObjective, Setting
from driftkit.methods.registry import METHODS
from driftkit.models.registry import build_network
from driftkit.runtime.compilation import decide_compilation, tried_convolutions
from driftkit.runtime.device import choose_threads, resolve_device, training_dtype
from driftkit.runtime.progress import phase, warn
from driftkit.runtime.random import stream_seed
from driftkit.runtime.ranks import Ranks, local_rank, together
from driftkit.runtime.terminal import say
from driftkit.scoring.during_training import open_scoring
from driftkit.storage.atomic import require_free
from driftkit.storage.files import digest_json, state_digest, tensor_bytes
from driftkit.storage.lock import locked_folder
from driftkit.storage.records import ClassCount, WeightsOrigin
from driftkit.storage.run_folder import Run
from driftkit.training.checkpoints import Checkpoints
from driftkit.training.conditions import class_counts, conditioned_network, grid_conditions
from driftkit.training.feed import Feed, hold_out
from driftkit.training.hooks import MAX_GRIDS, Hook, Measurement, SampleGrids, Scoring, measure_held_out
from driftkit.training.initialisation import PIXELS, initialise
from driftkit.training.latents import in_latents, latent_shape, open_autoencoder, with_latent_channels
from driftkit.training.memory_estimate import TrainingMemory
from driftkit.training.metrics_log import MetricsLog, TrainingProgress, open_trackers
from driftkit.training.monitors import CollapseMonitor, CollapseWatch, NonFiniteRecorder
from driftkit.training.resume_plan import Resume, ResumePlan, plan_resume, require_same_inputs, with_batch_size
from driftkit.training.train_config import TrainConfig
from driftkit.training.trainer import Trainer

MAX_HELD_OUT = 1000


@dataclass(frozen=True)
class TrainResult:
    """A trained run."""

    run: Run
    resumed_from: int | None  # steps that it had before; None where it is new
    ranks: Ranks


def missing_inputs(config: TrainConfig) -> list[str]:
    """A sentence for the images and for the weights of each encoder that are not on this machine; nothing is fetched.

    Raises UsageError where a name or a setting of the images does not fit.
    """
    missing = []
    try:
        source = resolve(config.data.spec, image_size=config.data.image_size, allow_download=False)
        if isinstance(source, Cifar10Source) and source.path is None and not is_finished(import_path(source)):
            missing.append("CIFAR-10 is not here; `driftkit prefetch cifar10` fetches it")
    except ArtifactError as error:
        missing.append(str(error))
    encoders = config.objective.each() if isinstance(config.objective, EncodersConfig) else ()
    for encoder in encoders:
        if encoder.random_weights:
            continue
        if encoder.encoder_weights is not None:
            if not Path(encoder.encoder_weights).is_file():
                missing.append(f"weights of {encoder.encoder}: {encoder.encoder_weights} is not there")
            continue
        file = published_file(encoder.encoder)
        if file is not None and file.locate() is None:
            name = encoder.encoder
            missing.append(f"weights of {name} are not here; `driftkit prefetch {name}` fetches them")
    return missing


def train(
    config: TrainConfig, output: Path, *, origins: dict[str, str], device: str = "auto", resume: Resume = "auto"
) -> TrainResult:
    """Train, or continue to train, the run in `output`.

    Args:
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
    _require_spread(config)
    ranks = Ranks.start(device_type=place.type, timeout_s=60 * config.trainer.rank_timeout)
    with ranks.first_alone() if config.data.autoencoder else nullcontext():  # one download per cache
        config = with_latent_channels(config)
    run = Run(output)
    plan_resume(run, config, resume, ranks, origins)  # refuse before anything is written
    with ExitStack() as held, ranks.naming_the_lost():
        together(lambda: held.enter_context(locked_folder(output)) if ranks.is_main else None, ranks)
        plan = plan_resume(run, config, resume, ranks, origins)
        ranks.barrier()  # no rank may look for a run that another has just begun
        _require_equal_plan(plan, config, ranks)
        if plan is None or not plan.is_finished:  # else no seconds go into an encoder that nobody needs
            return _train(config, run, plan, origins=origins, device=place, ranks=ranks)
        _finish(config, run, ranks)  # it may have been killed before
        return TrainResult(run, run.checkpoint().step, ranks)


def _train(
    config: TrainConfig,
    run: Run,
    plan: ResumePlan | None,
    *,
    origins: dict[str, str],
    device: torch.device,
    ranks: Ranks,
) -> TrainResult:
    global_batch = config.trainer.batch_size * ranks.world_size
    if plan is not None:
        config, global_batch = plan.config, plan.global_batch
    pack = open_dataset(config.data.spec, image_size=config.data.image_size, limit=config.data.limit, ranks=ranks)
    config = _completed(config, pack)  # as in the manifest; `running` has the batch size of this many ranks
    _require_batch(config, global_batch)
    running = with_batch_size(config, global_batch // ranks.world_size)

    reached = run.checkpoint().step if plan is not None and run.checkpoints() else 0
    compilation = decide_compilation(config.trainer.compile, device=device, steps_left=config.trainer.steps - reached)
    training, held_out = hold_out(len(pack), config.data.holdout or 0)
    dtype = training_dtype(config.trainer.precision, device)
    flips = config.data.horizontal_flip
    setting = Setting(
        pack, config.model, training, held_out, flips, dtype, compilation.compiled, device, ranks, global_batch,
        latents=config.data.autoencoder is not None,
    )  # fmt: skip
    # What can be refused at once comes before an encoder's weights are downloaded and its features are cached.
    memory = TrainingMemory(running, ranks.world_size, device)
    with memory.explained():
        autoencoder = open_autoencoder(config, device)  # initial weights must be of the same
    torch.manual_seed(stream_seed(config.seed, "initial weights"))
    network = build_network(config.model, image_size=config.data.sample_shape[-1])
    classes = class_counts(pack, training) if getattr(config.objective, "class_conditional", False) else ()
    origin = None
    if config.init_from is not None:
        origin = _initialised(network, config, run, plan, ranks, classes=classes, autoencoder=autoencoder)
    held = 3 + len(config.trainer.averages)  # weights, two moments of each, their averages
    checkpoint_bytes = held * tensor_bytes(network.state_dict())
    together(lambda: require_free(run.path, checkpoint_bytes, "one checkpoint"), ranks)
    choose_threads(device, before=None if plan is None else run.manifest().device)
    with memory.explained(), phase(f"preparing {METHODS[config.objective.name].label}"):
        built = METHODS[config.objective.name].build(config.objective, setting)
    for sentence in built.advice if ranks.is_main and plan is None else ():
        warn(sentence)
    scoring = open_scoring(
        config,
        built.encoder,
        device,
        initialised_from=origin,
        is_main=ranks.is_main,
        classes=classes,
        clusters=pack.card.clusters,
    )
    if plan is not None:
        require_same_inputs(run, pack, built.encoder, None if autoencoder is None else autoencoder.describe())
    if autoencoder is not None:  # last, since images may have to be encoded
        with memory.explained():
            built = in_latents(built, autoencoder, config, pack, ranks=ranks, device=device)

    document = config.model_dump(mode="json")
    fields: dict[str, Any] = {
        "config": document,
        "origins": {key: origins.get(key, "default") for key in flatten(document)},
        "global_batch": global_batch,
        "compilation": asdict(compilation),
        **({} if scoring is None else {"scored_on_the_way": dict(scoring.kinship)}),
    }
    if plan is not None:
        ranks.barrier()  # all have read the manifest
        if ranks.is_main:
            run.update(**fields)
    elif ranks.is_main:
        run.create(
            **fields,
            inputs={
                "data": {"spec": config.data.spec, "digest": pack.digest, "count": len(pack)},
                **({} if autoencoder is None else {"autoencoder": autoencoder.describe()}),
            },
            parameters=sum(p.numel() for p in network.parameters()),
            classes=classes,
            label_names=_label_names(config, pack),
            encoder=built.encoder,
            clusters=pack.card.clusters,
            initialised_from=origin,
            world_size=ranks.world_size,
        )
    ranks.barrier()

    feed = Feed(
        pack.images,
        pack.labels,
        batch_size=running.trainer.batch_size,
        horizontal_flip=config.data.horizontal_flip,
        seed=config.seed,
        ranks=ranks,
        device=device,
        indices=training,
        objective=built.objective,
    )
    hooks, checkpoints = _hooks(running, run, scoring, classes, is_main=ranks.is_main)
    trainer = Trainer(built.objective, network, feed, running.trainer, hooks=hooks, compiled=compilation.compiled)
    is_resumed = plan is not None and checkpoints.restore(trainer)
    resumed_from = trainer.step if is_resumed else None
    if plan is not None and is_resumed and ranks.is_main:
        if trainer.step < config.trainer.steps:
            say(f"{run.path}: resumed from step {trainer.step}")
        for note in plan.notes:
            warn(f"{run.path}: {note}")
    eager_gpu = device.type == "cuda" and not compilation.compiled
    with (
        _recorded_failure(run, ranks),
        ranks.naming_the_lost(),
        memory.explained(),
        tried_convolutions(wanted=eager_gpu),
    ):
        _require_equal_start(trainer, built, autoencoder, pack, ranks)
        if checkpoints.saved_step == config.trainer.steps:
            checkpoints.finish(trainer)
        else:
            trainer.train()
    _finish(config, run, ranks)
    return TrainResult(run, resumed_from, ranks)


def _initialised(
    network: nn.Module,
    config: TrainConfig,
    run: Run,
    plan: ResumePlan | None,
    ranks: Ranks,
    *,
    classes: Sequence[ClassCount],
    autoencoder: Autoencoder | None,
) -> WeightsOrigin:
    """Load the weights that `init_from` names, unless the run has a checkpoint, and say which."""
    source, resumed = config.init_from, None if plan is None else run.manifest()
    is_trained = resumed is not None and bool(run.checkpoints())
    assert source is not None
    loaded = together(
        lambda: initialise(
            network, config.model, source, resumed=resumed, is_trained=is_trained,
            classes=tuple(known.name for known in classes),
            autoencoder=PIXELS if autoencoder is None else autoencoder.digest,
        ),
        ranks,
    )  # fmt: skip
    if ranks.is_main and not is_trained:
        origin = loaded.origin
        of = f"{origin.weights} weights of step {origin.step}, {origin.method}" if origin.run else "of unknown training"
        for note in (f"initialised from {source} ({of})", *loaded.notes):
            say(f"{run.path}: {note}")
    return loaded.origin


def _hooks(
    config: TrainConfig, run: Run, scoring: Scoring | None, classes: Sequence[ClassCount], *, is_main: bool
) -> tuple[list[Hook], Checkpoints]:
    """What happens between steps, in this order; the last of the hooks is that of the checkpoints."""
    trainer = config.trainer
    header = {"driftkit": "weights", "config": config.model_dump(mode="json")}
    trackers = open_trackers(trainer.tracker, run.path, header) if is_main else []
    progress = TrainingProgress(total=trainer.steps, shown=is_main)
    collapse = CollapseWatch(threshold=trainer.collapse_spread, patience=trainer.collapse_patience)
    checkpoints = Checkpoints(
        run, every=trainer.checkpoint_every, keep_every=trainer.keep_every, header=header, collapse=collapse
    )
    conditions, shown = grid_conditions(config.model, classes)
    grids = SampleGrids(
        run,
        every=trainer.sample_every,
        trackers=trackers,
        noise_shape=config.data.sample_shape,
        conditions=conditions,
        num_images=shown,
    )
    hooks = [
        NonFiniteRecorder(run),
        Measurement(measure_held_out, every=trainer.measure_every or trainer.sample_every, maximum=MAX_GRIDS),
        *([Measurement(scoring.measure, every=scoring.every)] if scoring else []),
        CollapseMonitor(collapse, fails=trainer.fail_on_collapse, warn=progress.warn),
        MetricsLog(run, progress, trackers=trackers),
        *([grids] if trainer.sample_every else []),
        checkpoints,
    ]
    return hooks, checkpoints


def _finish(config: TrainConfig, run: Run, ranks: Ranks) -> None:
    """Write what the trained run is used for elsewhere."""
    finish = METHODS[config.objective.name].finish
    if finish and ranks.is_main:
        finish(run)


def _completed(config: TrainConfig, pack: ImagePack) -> TrainConfig:
    """The config with what it leaves to the images."""
    method = METHODS[config.objective.name]
    holdout = config.data.holdout
    if holdout is None:
        holdout = min(MAX_HELD_OUT, int(method.holdout * len(pack)))
    known = {
        "image_size": pack.image_size,
        "holdout": holdout,
        "latent_shape": latent_shape(config, pack.image_size),
    }
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=known),
            "model": method.complete(config.objective, conditioned_network(config.objective, config.model, pack), pack),
        }
    )


@contextmanager
def _recorded_failure(run: Run, ranks: Ranks) -> Iterator[None]:
    """The manifest names the error that ends a training, unless a signal asked for it."""
    try:
        yield
    except InterruptedRunError:
        raise
    except Exception as error:
        if ranks.is_main:
            try:
                run.update(state="failed", failure=f"{type(error).__name__}: {error}")
            except StorageError as second:  # most likely the same full disk: the first error is the one to raise
                error.add_note(f"the manifest still says that it runs: {second}")
        raise


def _require_equal_plan(plan: ResumePlan | None, config: TrainConfig, ranks: Ranks) -> None:
    """Refuse ranks of which some continue a run that others do not see, or whose settings differ but for places."""
    planned = config if plan is None else plan.config
    places = marked_keys(planned, OnResume.PLACE)
    settings = {key: value for key, value in flatten(planned.model_dump(mode="json")).items() if key not in places}
    ranks.require_equal(
        {
            "the run folder, or the run in it,": f"{plan is not None} {plan and plan.is_finished}",
            "the config": digest_json(settings),
        }
    )


def _require_equal_start(
    trainer: Trainer, built: BuiltObjective, autoencoder: Autoencoder | None, pack: ImagePack, ranks: Ranks
) -> None:
    """Refuse to train ranks that differ: gradients are averaged, so their weights would never become equal."""
    if ranks.world_size > 1:
        ranks.require_equal(
            {
                "the step to continue from": str(trainer.step),
                "the network": state_digest(trainer.network.state_dict()),
                "the encoder": str((built.encoder or {}).get("weights_digest")),
                "the autoencoder": "none" if autoencoder is None else autoencoder.digest,
                "the set of images": pack.digest,
                "the version of torch or timm": f"{torch.__version__} {version('timm')}",
            }
        )


def _label_names(config: TrainConfig, pack: ImagePack) -> tuple[str, ...]:
    """Classes of the head of an encoder that is trained; empty where it has none."""
    has_head = not METHODS[config.objective.name].generates and bool(getattr(config.model, "num_classes", None))
    return pack.classes if has_head else ()


def _require_batch(config: TrainConfig, global_batch: int) -> None:
    method = METHODS[config.objective.name]
    if global_batch < method.min_batch:
        raise UsageError(
            f"`trainer.batch_size` {config.trainer.batch_size}: {method.name} needs at least {method.min_batch} images "
            "per step"
        )


def _require_spread(config: TrainConfig) -> None:
    if config.trainer.fail_on_collapse and not METHODS[config.objective.name].reports_spread:
        raise UsageError(
            f"`trainer.fail_on_collapse`: a step of {config.objective.name} generates no images, so collapse does not "
            "show in training; leave it out"
        )
