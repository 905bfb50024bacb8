"""What is scored: images sampled from a run, read from a samples file, or opened as data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from driftkit.artifacts.files import read_json
from driftkit.artifacts.images import read_samples
from driftkit.artifacts.run import Run, Weights
from driftkit.errors import MissingError, RefusedError, UsageError

DEFAULT_NUM_IMAGES = 50_000

Report = Callable[[str, int, int], None]
"""(what is being worked on, images done since the last call, images in all)"""


@dataclass(frozen=True)
class Sampling:
    """How to sample a run that is scored; None where its own default holds. No samples file takes any of these."""

    sampler: str | None = None
    nfe: int | None = None
    weights: Weights | None = None
    seed: int | None = None
    step: int | None = None

    def given(self) -> dict[str, Any]:
        """The values that were asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Target:
    """The images to score and what is known of them.

    Attributes:
        images: uint8 [N, 3, H, W].
        info: the record of a sample set, or `data` and `digest` of plain images.
        run: the run they came from, if it is there.
        path: the file or folder that was named.
    """

    images: torch.Tensor
    info: dict[str, Any]
    run: Run | None
    path: Path


def require_target(target: Path, sampling: Sampling, *, pack_size: int) -> None:
    """What can be refused before anything is sampled."""
    if not target.exists():
        raise MissingError(f"{target}: expected a run, a samples file or images, found nothing")
    if not is_run(target):
        if sampling.given():
            named = ", ".join(f"--{name}" for name in sampling.given())
            raise UsageError(f"{named}: {target} is no run, its images are there already; leave the option out")
        return
    size = Run.open(target).manifest()["config"].get("data", {}).get("image_size")
    if isinstance(size, int) and size != pack_size:
        raise RefusedError(_sizes_differ(size, pack_size))


def open_target(
    target: Path,
    num_images: int | None,
    sampling: Sampling,
    image_size: int | None,
    *,
    batch_size: int,
    device: torch.device,
    report: Report,
) -> Target:
    """The images to score: sampled from a run, read from a samples file, or opened as data.

    Raises:
        UsageError: more images wanted than there are, or a run that generates none.
        MissingError: nothing readable there.
    """
    if is_run(target):
        from driftkit.stages.sample import generate

        run = Run.open(target)
        total = num_images or DEFAULT_NUM_IMAGES
        wanted = {"weights": "ema", "seed": 0, **sampling.given()}
        images, info = generate(
            run,
            num_images=total,
            batch_size=batch_size,
            device=device,
            advance=lambda n: report("sample", n, total),
            **wanted,
        )
        return Target(images, dict(info), run, target)
    if target.suffix == ".safetensors" and _is_samples(target.with_suffix(".json")):
        samples = read_samples(target)
        images, info = samples.images, dict(samples.info)
        run_of_samples = _run_of(target, info)
    else:
        from driftkit.datasets.sources import open_dataset

        pack = open_dataset(str(target), image_size=image_size)
        images, info, run_of_samples = pack.images, {"data": str(target), "digest": pack.digest}, None
    if num_images is not None and num_images > len(images):
        raise UsageError(f"--num-images {num_images}: {target} holds {len(images)}")
    return Target(images[:num_images], info, run_of_samples, target)


def is_run(path: Path) -> bool:
    """Whether the folder is a run."""
    return (path / "manifest.json").is_file()


def _is_samples(record: Path) -> bool:
    """Whether the JSON beside a safetensors file says that it holds samples; a pack's card says otherwise."""
    return record.is_file() and read_json(record).get("kind") == "samples"


def _run_of(samples: Path, info: dict[str, Any]) -> Run | None:
    """The run that holds the samples file, or the one that its record names."""
    named = info.get("run")
    for folder in (samples.resolve().parent.parent, *([Path(named)] if isinstance(named, str) and named else [])):
        if is_run(folder):
            return Run.open(folder)
    return None


def require_same_size(found: Target, real: torch.Tensor) -> None:
    """Refuse images [N, 3, H, W] whose sides differ from those of `real`."""
    if found.images.shape[-2:] != real.shape[-2:]:
        raise RefusedError(_sizes_differ(int(found.images.shape[-1]), int(real.shape[-1])))


def _sizes_differ(generated: int, reference: int) -> str:
    return (
        f"the generated images are {generated} pixels wide and the reference {reference}: a score would compare the "
        f"resizing; --image-size {generated} resizes the reference"
    )
