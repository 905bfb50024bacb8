"""The pictures of a comparison that need the runs themselves: samples, nearest real images, frames of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftkit.comparison.neighbours import nearest
from driftkit.comparison.pictures import Evolution, evolution, grid_figure, neighbour_figure
from driftkit.comparison.run_summary import RunSummary
from driftkit.datasets.packs import ImagePack
from driftkit.errors import ArtifactError, DriftkitError
from driftkit.runtime.drawing import Figure
from driftkit.runtime.progress import Report
from driftkit.scoring.extractors import Extractor
from driftkit.storage.images import SampleSet, read_grid, read_samples
from driftkit.storage.run_folder import Run

GRID_IMAGES = 64
SEED = 0
NEIGHBOUR_COLUMNS, NEIGHBOUR_ROWS = 8, 2
MAX_FRAMES = 16


@dataclass
class Pictures:
    """What was made, and what could not be."""

    grids: list[Figure] = field(default_factory=list)
    neighbours: list[Figure] = field(default_factory=list)
    evolutions: list[Evolution] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class NeighbourSearch:
    """Among which images neighbours are sought, and by what.

    Attributes:
        images: data SPEC; None takes the training images of each run.
        extractor: compares features; None compares pixels.
    """

    images: str | None = None
    extractor: Extractor | None = None


def make_pictures(
    generators: Sequence[tuple[Run, RunSummary]], search: NeighbourSearch | None, device: torch.device, report: Report
) -> Pictures:
    """Grids of the same noises for all runs, with neighbours where `search` says so, and frames of their training."""
    pictures = Pictures()
    packs: dict[str, ImagePack | str] = {}
    for number, (run, summary) in enumerate(generators, start=1):
        try:
            images, info = same_noise_samples(run, device)
        except DriftkitError as error:
            pictures.notes.append(f"{summary.label} has no grid: {error}")
        else:
            pictures.grids.append(_grid(images, info, summary, number))
            if search is not None:
                found = _neighbours(images, summary, search, packs, number)
                if isinstance(found, Figure):
                    pictures.neighbours.append(found)
                else:
                    pictures.notes.append(found)
        moving, problems = _evolution(run, summary, number)
        pictures.notes += problems
        pictures.evolutions += [moving] if moving else []
        report("pictures", 1, len(generators))
    return pictures


def same_noise_samples(run: Run, device: torch.device) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """The first 64 samples of seed 0 at the last step by the default sampler: from the run, or made now.

    Image i of seed 0 starts from the same noise in every run of that image size.
    """
    from driftkit.methods.registry import OBJECTIVES
    from driftkit.training.sampling import generate

    default = next(iter(OBJECTIVES[run.objective].samplers))
    best: SampleSet | None = None
    wanted = {"seed": SEED, "step": run.manifest().step, "weights": "ema", "sampler": default}
    for path in sorted((run.path / "samples").glob("[!.]*.safetensors")):
        samples = _readable(path)
        if samples is None or samples.record.sampler_options:
            continue
        if samples.record.model_dump(include=set(wanted)) != wanted:
            continue
        if best is None or len(samples.images) > len(best.images):
            best = samples
    if best is not None and len(best.images) >= NEIGHBOUR_COLUMNS:
        return best.images[:GRID_IMAGES], best.record.model_dump()
    return generate(run, num_images=GRID_IMAGES, seed=SEED, weights="ema", batch_size=GRID_IMAGES, device=device)


def _readable(path: Path) -> SampleSet | None:
    """The samples of a file; None for a file of somebody else, in whose place the run's own are made anew."""
    try:
        return read_samples(path)
    except ArtifactError:
        return None


def _grid(images: torch.Tensor, info: Mapping[str, Any], summary: RunSummary, number: int) -> Figure:
    sampler, nfe, weights, step, seed = (info.get(key) for key in ("sampler", "nfe", "weights", "step", "seed"))
    how = f"{sampler}, {nfe} NFE, {weights} weights, step {step}, seed {seed}"
    return grid_figure(
        images,
        name=f"samples-{number}",
        alt=f"{len(images)} uncurated samples of {summary.label} ({how}).",
        caption=f"{summary.label}: {how}",
        count=GRID_IMAGES,
    )


def _neighbours(
    images: torch.Tensor,
    summary: RunSummary,
    search: NeighbourSearch,
    packs: dict[str, ImagePack | str],
    number: int,
) -> Figure | str:
    """The picture, or a sentence on why there is none. Packs are opened once and kept in `packs`."""
    spec = search.images or summary.data
    if spec is None:
        return f"{summary.label} has no neighbours: its manifest names no training images"
    if spec not in packs:
        packs[spec] = _open(spec, summary.image_size)
    pack = packs[spec]
    if isinstance(pack, str):
        return f"{summary.label} has no neighbours: {pack}; name images with --neighbours-in SPEC"
    if search.images is None and summary.data_digest not in (None, pack.digest):
        return f"{summary.label} has no neighbours: {spec} holds other images than those it was trained on"
    if pack.images.shape[1:] != images.shape[1:]:
        return f"{summary.label} has no neighbours: the images of {spec} are {pack.images.shape[-1]} pixels wide"
    found = nearest(images, pack.images, count=NEIGHBOUR_ROWS, extractor=search.extractor)
    shown = pack.images[found.indices[:NEIGHBOUR_COLUMNS].flatten()]
    median = float(found.distances[:, 0].median())
    what = "the training images" if search.images is None else spec
    unit = " of the range from black to white" if search.extractor is None else ""
    typical = f"{median:.3f}{unit}" if search.extractor is None else f"{median:.3g}"
    return neighbour_figure(
        images[:NEIGHBOUR_COLUMNS],
        shown.unflatten(0, (-1, NEIGHBOUR_ROWS)),
        name=f"neighbours-{number}",
        alt=f"{NEIGHBOUR_COLUMNS} samples of {summary.label}, under each the {NEIGHBOUR_ROWS} nearest of {what} by "
        f"{found.space}.",
        caption=f"{summary.label}: above the first samples, below their nearest of {what}, by {found.space}. Half of "
        f"{len(images)} samples have one within {typical}.",
    )


def _open(spec: str, image_size: int | None) -> ImagePack | str:
    """The images, or why they are not there."""
    from driftkit.datasets.sources import open_dataset

    try:
        return open_dataset(spec, image_size=image_size, allow_download=False)
    except DriftkitError as error:
        return str(error)


def _evolution(run: Run, summary: RunSummary, number: int) -> tuple[Evolution | None, list[str]]:
    """The grids that the training left, as frames; at most 16 of them, evenly spread, the last one always."""
    if summary.image_size is None:
        return None, []
    grids, problems = [], []
    for path in sorted((run.path / "samples").glob("step-*.png")):
        step = path.stem.removeprefix("step-")
        if not step.isdecimal():
            continue
        try:
            grids.append((int(step), read_grid(path, summary.image_size)))
        except ArtifactError as error:
            problems.append(str(error))
    grids.sort(key=lambda grid: grid[0])
    if len(grids) > MAX_FRAMES:
        chosen = [round(i * (len(grids) - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)]
        grids = [grids[i] for i in chosen]
    return evolution(summary.label, grids, name=f"evolution-{number}"), problems
