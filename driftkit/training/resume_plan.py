"""Whether a command may continue the run in its folder, and what has changed around that run.

What decides the numbers must be the same. Fields marked with `OnResume` may differ, and so may the number of ranks
that share the global batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from driftkit.config.layers import flatten
from driftkit.config.settings import OnResume, marked_keys
from driftkit.config.weights_name import RAW
from driftkit.datasets import sources
from driftkit.datasets.packs import ImagePack
from driftkit.encoders import registry
from driftkit.encoders.encoder_config import read_encoder
from driftkit.errors import ArtifactError, UsageError, shortened
from driftkit.runtime.ranks import Ranks
from driftkit.storage.atomic import is_temporary
from driftkit.storage.lock import is_lock
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import config_of
from driftkit.training.train_config import TrainConfig

Resume = Literal["auto", "never"]

NAMED = 3  # settings that differ
BATCH = "trainer.batch_size"
STEPS = "trainer.steps"
INIT = "init_from"
AUTOENCODER = "data.autoencoder"


@dataclass(frozen=True)
class ResumePlan:
    """How a run is continued."""

    config: TrainConfig  # of this command, with the batch size per rank that the run was begun with
    global_batch: int  # images of all ranks per step, as at the beginning
    is_finished: bool  # whether it has been trained to the last step
    notes: list[str]  # sentences on what has changed around it


def plan_resume(
    run: Run, config: TrainConfig, resume: Resume, ranks: Ranks, origins: Mapping[str, str] | None = None
) -> ResumePlan | None:
    """How to continue the run in a folder; None where there is none yet. `origins` of the config order its errors.

    Raises UsageError where the folder holds something else, or a run that this command must not continue.
    """
    if not run.path.exists():
        return None
    if run.path.is_dir() and all(is_temporary(path) or is_lock(path) for path in run.path.iterdir()):
        return None  # empty, or left by a process that was killed while it wrote the first manifest
    if not run.manifest_path.is_file():
        raise UsageError(f"`output` {run.path} is not empty and holds no run; give another folder")
    if resume == "never":
        raise UsageError(f"`resume` never: {run.path} already holds a run; give another `output` or remove it")
    manifest = Run.open(run.path).manifest()
    saved = flatten(manifest.config)
    moved = _require_same_config(run, config, origins or {})
    if manifest.world_size is None or manifest.global_batch is None or not isinstance(saved.get(BATCH), int):
        raise ArtifactError(
            f"{run.manifest_path}: expected world_size, global_batch and {BATCH}, got a manifest without one of them; "
            "it was edited or damaged"
        )
    _require_same_global_batch(run, config, saved[BATCH], manifest.global_batch, ranks)
    saved_steps = run.checkpoints()
    if saved_steps and saved_steps[-1].weights_names() and RAW not in saved_steps[-1].weights_names():
        raise UsageError(
            f"{run.path} is an exported run, which holds averaged weights alone and does not resume; start from it by "
            "`init_from`, with another `output`"
        )
    steps = [checkpoint.step for checkpoint in saved_steps]
    if steps and steps[-1] > config.trainer.steps:
        raise UsageError(
            f"{run.path} is at step {steps[-1]}, past `trainer.steps` {config.trainer.steps}; "
            "give more steps or another `output`"
        )
    before, now, images = manifest.world_size, ranks.world_size, manifest.global_batch
    if before != now:
        moved.append(
            f"{before} processes have trained it and {now} continue, with {images // now} images each: the global "
            f"batch stays {images}. Sums over it are in another order and dropout masks differ, so the numbers are not "
            "bit for bit those of as many processes as before"
        )
    return ResumePlan(
        with_batch_size(config, saved[BATCH]),
        manifest.global_batch,
        is_finished=bool(steps) and steps[-1] == config.trainer.steps and manifest.state == "done",
        notes=moved,
    )


def _require_same_config(run: Run, config: TrainConfig, origins: Mapping[str, str]) -> list[str]:
    """Refuse what decides the numbers; notes on places that differ, whose content `require_same_inputs` compares.

    A key that the manifest lacks, since it is of a version before, has its default.
    """
    saved = flatten(config_of(run).model_dump(mode="json"))
    current = flatten(config.model_dump(mode="json"))
    for key in marked_keys(config, OnResume.FROM_DATA):
        if current[key] is None and key in saved:
            current[key] = saved[key]
    free = marked_keys(config, OnResume.FREE) | {BATCH}
    if config.trainer.schedule != "constant":
        free.remove(STEPS)  # the last step decides the learning rate of those before
    places = marked_keys(config, OnResume.PLACE)
    moved, different = [], []
    typed = ("option", "--set")  # what was typed is named first
    for key in sorted((saved.keys() | current.keys()) - free, key=lambda key: (origins.get(key) not in typed, key)):
        before, now = saved.get(key), current.get(key)
        if before == now:
            continue
        if key in places and _may_move(key, before, now) and (key != INIT or (before and now)):
            moved.append(f"{key} was {before} and is {now} now, with the same content")
        else:
            why = f", and its {config.trainer.schedule} schedule ends at the last step" if key == STEPS else ""
            different.append(f"`{key}` was {before!r} and is {now!r} now{why}")
    if different:
        sources.require_there(config.data.spec)  # a mistyped path is the first thing to say
        raise UsageError(
            f"{run.path} holds a run with another config ({shortened(different, NAMED, '; ')}); to train with the new "
            f"settings, give another `output`, and `init_from` {run.path} to start from its weights"
        )
    return moved


def _may_move(key: str, before: Any, now: Any) -> bool:
    """Whether both values say where something lies, or are encoders of which each does and is used as before."""
    if not isinstance(before, list) or not isinstance(now, list):
        return _is_place(key, before) and _is_place(key, now)
    if len(before) != len(now):
        return False
    for old, new in zip(map(read_encoder, before), map(read_encoder, now), strict=True):
        same_settings = {**old[1], "encoder_weights": None} == {**new[1], "encoder_weights": None}
        if not same_settings or (old[0] != new[0] and not (_is_place(key, old[0]) and _is_place(key, new[0]))):
            return False
    return True


def _is_place(key: str, value: Any) -> bool:
    """Whether a setting is no name of known images or of a known encoder, but says where something lies."""
    if key == AUTOENCODER:
        return value is not None
    if value is None or key == INIT or key.endswith("_weights"):
        return True
    if not isinstance(value, str):
        return False
    return sources.names_a_place(value) if key.startswith("data.") else registry.names_a_place(value)


def _require_same_global_batch(run: Run, config: TrainConfig, saved: int, global_batch: int, ranks: Ranks) -> None:
    """The field sees the global batch, so that must not change; the number of ranks that share it may.

    The same command line is the same global batch on any number of ranks; another `trainer.batch_size` has to give it
    exactly. `saved` are the images per rank that the run was begun with.
    """
    batch_size = config.trainer.batch_size
    begun = f"{run.path} was begun with {global_batch} images per step"
    if batch_size not in (saved, global_batch / ranks.world_size):
        raise UsageError(
            f"{begun}, and `{BATCH}` {batch_size} makes {batch_size * ranks.world_size}; leave it out, or give another "
            "`output`"
        )
    if global_batch % ranks.world_size:
        raise UsageError(
            f"{begun}, which {ranks.world_size} processes cannot share evenly; start another number of them, or give "
            "another `output`"
        )


def with_batch_size(config: TrainConfig, batch_size: int) -> TrainConfig:
    """The config with so many images per rank."""
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"batch_size": batch_size})})


def require_same_inputs(
    run: Run, pack: ImagePack, encoder: dict[str, Any] | None, autoencoder: dict[str, Any] | None = None
) -> None:
    """Refuse images and weights whose content is not that of the beginning. Raises UsageError: they differ."""
    manifest = run.manifest()
    before = manifest.data_digest or "unknown"
    if before != pack.digest:
        raise UsageError(
            f"{run.path} was trained on other images ({before[:12]}, now {pack.digest[:12]}); give another `output`"
        )
    saved = manifest.encoder or {}
    if encoder is not None and saved.get("weights_digest") != encoder["weights_digest"]:
        pairs = zip(encoder.get("parts") or [encoder], saved.get("parts") or [saved], strict=False)
        changed = [now["name"] for now, then in pairs if now["weights_digest"] != then.get("weights_digest")]
        raise UsageError(f"{run.path} was trained with other weights of {', '.join(changed)}; give another `output`")
    if autoencoder is not None and manifest.inputs.get("autoencoder", {}).get("digest") != autoencoder["digest"]:
        raise UsageError(
            f"{run.path} was trained with another autoencoder than {autoencoder['spec']} is now; put its "
            "files back, or give another `output`"
        )
