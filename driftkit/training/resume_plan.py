"""Whether a command may go on with the run that its folder holds, and what may have changed around that run.

What decides the numbers must be the same. What does not may change: where images and encoder weights lie, as long as
their content is the same, and how many processes share the global batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from driftkit.config.layers import flatten
from driftkit.datasets.packs import ImagePack
from driftkit.datasets.sources import NAMED, parse_spec
from driftkit.encoders.specs import PIXEL, SPECS, TIMM_PREFIX
from driftkit.errors import UsageError
from driftkit.runtime.ranks import Ranks
from driftkit.storage.atomic import is_temporary
from driftkit.storage.lock import is_lock
from driftkit.storage.records import RunManifest
from driftkit.storage.run_folder import Run
from driftkit.training.train_config import FREE_ON_RESUME, TrainConfig

Resume = Literal["auto", "never"]

FOLLOWS_FROM_DATA = (
    "data.image_size",
    "data.holdout",
    "model.num_classes",
    "model.decoder",
)  # left open in a config, filled in from the images
BATCH = "trainer.batch_size"
DONE = "done"


@dataclass(frozen=True)
class Continuation:
    """A run that is gone on with.

    Attributes:
        config: as this command has it, with the batch size per process that the run was begun with.
        global_batch: images that all processes see per step, as from the beginning.
        is_finished: it has been trained to the last step that is wanted.
        notes: sentences on what has changed around it.
    """

    config: TrainConfig
    global_batch: int
    is_finished: bool
    notes: list[str]


def continuation(run: Run, config: TrainConfig, resume: Resume, ranks: Ranks) -> Continuation | None:
    """How to go on with the run in a folder; None where there is none yet.

    Raises:
        UsageError: the folder holds something else, or a run that this command must not go on with.
    """
    if not run.path.exists():
        return None
    if run.path.is_dir() and all(is_temporary(path) or is_lock(path) for path in run.path.iterdir()):
        return None  # empty, or left by a process that was killed while it wrote the first manifest
    if not run.manifest_path.is_file():
        raise UsageError(f"--output {run.path} is not empty and holds no run; give another folder")
    if resume == "never":
        raise UsageError(f"--resume never: {run.path} already holds a run; give another --output or remove it")
    manifest = Run.open(run.path).manifest()
    saved = flatten(manifest.config)
    moved = _require_same_config(run, config, saved)
    config, global_batch, notes = _same_global_batch(run, config, saved, manifest, ranks)
    reached = max((c.step for c in run.checkpoints()), default=0)
    if reached > config.trainer.steps:
        raise UsageError(
            f"{run.path} is at step {reached}, past --steps {config.trainer.steps}; give more steps or another --output"
        )
    finished = bool(run.checkpoints()) and reached == config.trainer.steps and manifest.state == DONE
    return Continuation(config, global_batch, finished, moved + notes)


def _require_same_config(run: Run, config: TrainConfig, saved: dict[str, Any]) -> list[str]:
    """Refuse what decides the numbers; sentences on what only lies elsewhere, which `require_same_inputs` looks at."""
    wanted = flatten(config.model_dump(mode="json"))
    for key in FOLLOWS_FROM_DATA:
        if wanted.get(key) is None and key in saved:
            wanted[key] = saved[key]
    free = {*FREE_ON_RESUME, BATCH}
    different = sorted(k for k in saved.keys() | wanted.keys() if k not in free and saved.get(k) != wanted.get(k))
    moved = [k for k in different if k in PLACES and PLACES[k](saved.get(k)) and PLACES[k](wanted.get(k))]
    if len(moved) < len(different):
        others = [k for k in different if k not in moved]
        shown = "; ".join(f"{k} is {saved.get(k)!r} there and {wanted.get(k)!r} here" for k in others[:3])
        raise UsageError(f"{run.path} holds a run with another config ({shown}); give another --output")
    return [f"{k} was {saved[k]} and is {wanted[k]} now, with the same content" for k in moved]


def _is_own_encoder(name: Any) -> bool:
    """Whether an encoder is named by where it lies, and not by a row of the table."""
    return isinstance(name, str) and name not in SPECS and name != PIXEL and not name.startswith(TIMM_PREFIX)


def _is_image_place(spec: Any) -> bool:
    return isinstance(spec, str) and parse_spec(spec).target not in NAMED


# What only names a place, where the digest of its content decides.
PLACES: dict[str, Callable[[Any], bool]] = {
    "data.spec": _is_image_place,
    "objective.encoder": _is_own_encoder,
    "objective.encoder_weights": lambda path: True,
}


def _same_global_batch(
    run: Run, config: TrainConfig, saved: dict[str, Any], manifest: RunManifest, ranks: Ranks
) -> tuple[TrainConfig, int, list[str]]:
    """The field sees the global batch, so that is what must not change; how it is shared may.

    The same command line counts as the same global batch with any number of processes; another --batch-size has to
    give it exactly.
    """
    begun, before = int(saved[BATCH]), int(manifest.world_size or ranks.world_size)
    total = int(manifest.global_batch or begun * before)
    here = config.trainer.batch_size
    if here not in (begun, total / ranks.world_size):
        raise UsageError(
            f"{run.path} was begun with {total} images per step and --batch-size {here} makes "
            f"{here * ranks.world_size} of them; leave --batch-size out, or give another --output"
        )
    if total % ranks.world_size:
        raise UsageError(
            f"{run.path} was begun with {total} images per step, which {ranks.world_size} processes cannot share "
            "evenly; start another number of them, or give another --output"
        )
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"batch_size": begun})})
    if before == ranks.world_size:
        return config, total, []
    each = total // ranks.world_size
    changed = (
        f"{before} processes trained it so far and {ranks.world_size} go on, with {each} images each: the global batch "
        f"stays {total}. Sums over it are taken in another order and dropout draws other masks, so the numbers are not "
        "bit for bit those of as many processes as before"
    )
    return config, total, [changed]


def require_same_inputs(run: Run, pack: ImagePack, encoder: dict[str, Any] | None) -> None:
    """Refuse images and encoder weights of other content than those the run was begun with.

    Raises:
        UsageError: they differ.
    """
    manifest = run.manifest()
    before = manifest.data_digest or ""
    if before != pack.digest:
        raise UsageError(
            f"{run.path} was trained on other images ({before[:12]}, now {pack.digest[:12]}); give another --output"
        )
    saved = manifest.encoder or {}
    if encoder is not None and saved.get("weights_digest") != encoder["weights_digest"]:
        raise UsageError(f"{run.path} was trained with other weights of {encoder['name']}; give another --output")
