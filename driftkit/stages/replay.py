"""Repeating the step that a training kept for inspection because something in it was not finite."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from driftkit.artifacts.files import read_json, read_tensors
from driftkit.artifacts.run import Run
from driftkit.datasets.sources import open_dataset
from driftkit.errors import MissingError
from driftkit.objectives.registry import OBJECTIVES, build_network
from driftkit.protocols import Execution
from driftkit.runtime.device import autocast, autocast_dtype, resolve_device
from driftkit.runtime.distributed import Ranks
from driftkit.stages.config import TrainConfig
from driftkit.stages.train import feed_of, setting_of
from driftkit.training.inspection import RECORD_FILE, WEIGHTS_FILE, repeat


def replay(folder: Path | str, *, device: str = "cpu") -> dict[str, Any]:
    """Make the step of RUN/inspect/step-XXXXXXXX again in one process: the same images, weights and draws.

    The batch is that of all processes together. Dropout draws other masks than several processes did.

    Returns:
        `cause` in words, and what was not finite, by kind.

    Raises:
        MissingError: the folder, its run, or the run's images or encoder are absent.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD_FILE)
    if record.get("kind") != "inspection":
        raise MissingError(f"{folder / RECORD_FILE} is no record of an inspection")
    config = TrainConfig.model_validate(Run.open(folder.parent.parent).manifest()["config"])
    place, ranks = resolve_device(device), Ranks()
    trainer = config.trainer.model_copy(update={"batch_size": record["batch_size"] * record["world_size"]})
    config = config.model_copy(update={"trainer": trainer})
    pack = open_dataset(config.data.spec, image_size=config.data.image_size, limit=config.data.limit, ranks=ranks)
    setting = setting_of(config, pack, place, ranks)
    built = OBJECTIVES[config.objective.name].build(config.objective, setting)
    network = build_network(config.model, image_size=pack.image_size)
    network.load_state_dict(read_tensors(folder / WEIGHTS_FILE)[0])
    network = network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    how = Execution(
        micro_batch=trainer.micro_batch, autocast=partial(autocast, place, autocast_dtype(trainer.precision, place))
    )
    feed = feed_of(config, setting, built.objective)
    found = repeat(built.objective, network, network, feed, how, ranks, step=record["step"]).findings
    return {"cause": found.cause(), **asdict(found)}
