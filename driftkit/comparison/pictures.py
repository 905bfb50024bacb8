"""Pictures of a comparison: sample grids, nearest real images, and how fixed noise becomes images during training."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torchvision.utils import make_grid

from driftkit.comparison.compare_config import CompareConfig
from driftkit.comparison.run_summary import RunSummary
from driftkit.config.sampling_config import SamplingConfig
from driftkit.config.weights_name import EMA
from driftkit.datasets.packs import ImagePack
from driftkit.errors import ArtifactError, DriftkitError
from driftkit.methods.registry import METHODS
from driftkit.runtime.drawing import Figure
from driftkit.runtime.progress import Report, phase, progress
from driftkit.scoring.extractors import Extractor, load_extractor
from driftkit.storage.images import GRID_COLUMNS, GRID_IMAGES, SampleSet, read_grid, read_samples
from driftkit.training.conditions import grid_labels

GRID_TILE, GRID_WIDTH = 64, 274  # pixels of an image in a file; CSS pixels of a grid on the page
NEIGHBOUR_COLUMNS, NEIGHBOUR_ROWS = 8, 2
MAX_FRAMES, FRAME_IMAGES, FRAME_COLUMNS, FRAME_TILE = 16, 32, 8, 64
FRAME_MS, LAST_FRAME_MS = 700, 2000
WEBP_QUALITY = 82
SEED = 0


@dataclass(frozen=True)
class RunFigure(Figure):
    """Images of one run.

    Attributes:
        nfe: network evaluations per image.
        enlarged: whether the page shows them at a whole multiple of their pixels.
    """

    run: str = ""
    nfe: int | None = None
    enlarged: bool = False


@dataclass(frozen=True)
class Frame:
    """Images from one fixed set of noises at one training step, as WebP."""

    step: int
    image: bytes


@dataclass(frozen=True)
class Evolution:
    """The frames of one run, oldest first, and the same as one looping WebP animation; width and height on the page."""

    run: str
    name: str
    frames: list[Frame]
    animation: bytes
    width: int
    height: int


@dataclass
class Pictures:
    """All pictures, and one sentence for each that could not be made."""

    grids: list[Figure] = field(default_factory=list)
    neighbours: list[Figure] = field(default_factory=list)
    evolutions: list[Evolution] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_pictures(runs: Sequence[RunSummary], config: CompareConfig, device: torch.device, report: Report) -> Pictures:
    """Grids of the same noises for all runs, their nearest real images if `neighbours` is set, and training frames."""
    pictures = Pictures()
    extractor = None
    if config.neighbours and config.neighbours_by == "features":
        with phase(f"loading {config.extractor[0]}"):
            extractor = load_extractor(config.extractor[0], weights=config.extractor_weights, device=device)
    packs: dict[str, ImagePack | str] = {}
    report("pictures of runs", 0, len(runs), unit="runs")
    for number, run in enumerate(runs, start=1):
        try:
            images, info = same_noise_samples(run, device, weights=config.weights)
        except DriftkitError as error:
            pictures.notes.append(f"{run.label} has no grid: {error}")
        else:
            sampler, nfe, weights, step, seed = (info.get(key) for key in ("sampler", "nfe", "weights", "step", "seed"))
            setup = f"{sampler}, {nfe} NFE, {weights} weights, step {step}, seed {seed}"
            alt = f"{len(images)} uncurated samples of {run.label} ({setup})."
            caption = f"{run.label}: {setup}"
            if rows := list(dict.fromkeys(info.get("asked_classes") or ())):
                caption += f"; a row per class: {', '.join(rows)}"
                alt += f" Each row is of one class: {', '.join(rows)}."
            grid = grid_figure(images, name=f"samples-{number}", alt=alt, caption=caption)
            pictures.grids.append(replace(grid, run=run.label, nfe=nfe))
            if config.neighbours:
                try:
                    figure = _neighbours_of_run(images, run, config.neighbours_in, extractor, packs, number)
                    pictures.neighbours.append(replace(figure, run=run.label, nfe=nfe))
                except DriftkitError as error:
                    pictures.notes.append(f"{run.label} has no neighbours: {error}")
        grids, problems = _training_grids(run)
        pictures.notes += problems
        if len(grids) > 1:
            pictures.evolutions.append(evolution(run.label, grids, name=f"evolution-{number}"))
        report("pictures of runs", 1, len(runs), unit="runs")
    return pictures


def same_noise_samples(
    run: RunSummary, device: torch.device, *, weights: str = EMA
) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """The first 64 samples of seed 0 at the last step by the default sampler: from the run, or generated now.

    Image i of seed 0 starts from the same noise in every run of that image size. A class-conditional run has a row of
    8 per class instead.
    """
    from driftkit.training.sampling import generate

    if run.class_conditional:
        known = run.folder.manifest().classes
        # By name, since a number may be the name of another class.
        names = [known[label].name for label in grid_labels(len(known))]
        sampling = SamplingConfig(seed=SEED, weights=weights, classes=tuple(names))
        with progress(f"sampling {run.label}", len(names)) as advance:
            return generate(
                run.folder, sampling, num_images=len(names), batch_size=GRID_IMAGES, device=device, advance=advance
            )
    expected = {
        "seed": SEED,
        "step": run.steps,
        "weights": weights,
        "sampler": METHODS[run.method].default_sampler.name,
    }
    best: SampleSet | None = None
    for path in sorted(Path(run.path, "samples").glob("[!.]*.safetensors")):
        try:
            samples = read_samples(path)
        except ArtifactError:  # not a sample file of driftkit: the run's own samples are generated again
            continue
        matches = samples.record.model_dump(include=set(expected)) == expected
        if matches and not samples.record.sampler_options:
            best = samples if best is None or len(samples.images) > len(best.images) else best
    if best is None or len(best.images) < GRID_IMAGES:
        try:
            with progress(f"sampling {run.label}", GRID_IMAGES) as advance:
                return generate(
                    run.folder, SamplingConfig(seed=SEED, weights=weights), num_images=GRID_IMAGES,
                    batch_size=GRID_IMAGES, device=device, advance=advance,
                )  # fmt: skip
        except ArtifactError:  # its weights are gone: fewer images are better than none
            if best is None or len(best.images) < NEIGHBOUR_COLUMNS:
                raise
    return best.images[:GRID_IMAGES], best.record.model_dump()


def _neighbours_of_run(
    images: torch.Tensor,
    run: RunSummary,
    searched: str | None,
    extractor: Extractor | None,
    packs: dict[str, ImagePack | str],
    number: int,
) -> RunFigure:
    """The figure of one run. `packs` holds those opened before by SPEC, or why one cannot be opened."""
    from driftkit.datasets.sources import open_dataset

    spec = searched or run.data
    if spec is None:
        raise ArtifactError("its manifest names no training images")
    if spec not in packs:
        try:
            packs[spec] = open_dataset(spec, image_size=run.image_size, allow_download=False)
        except DriftkitError as error:
            packs[spec] = str(error)
    pack = packs[spec]
    if isinstance(pack, str):
        raise ArtifactError(f"{pack}; name images with `neighbours_in`")
    if searched is None and run.image_digest not in (None, pack.image_digest):
        raise ArtifactError(f"{spec} holds other images than those it was trained on")
    if len(pack) < NEIGHBOUR_ROWS:
        raise ArtifactError(f"{spec} holds {len(pack)} images, fewer than {NEIGHBOUR_ROWS} neighbours")
    if pack.images.shape[1:] != images.shape[1:]:
        raise ArtifactError(f"the images of {spec} are {pack.images.shape[-1]} pixels wide")
    with progress(f"nearest real images of {run.label}", len(images) + len(pack.images)) as advance:
        indices, distances = nearest(images, pack.images, count=NEIGHBOUR_ROWS, extractor=extractor, advance=advance)
    real = pack.images[indices[:NEIGHBOUR_COLUMNS].flatten()]
    median = float(distances[:, 0].median())
    among = "the training images" if searched is None else spec
    by = "pixels" if extractor is None else extractor.name
    typical = f"{median:.3f} of the range from black to white" if extractor is None else f"{median:.3g}"
    return neighbour_figure(
        images[:NEIGHBOUR_COLUMNS],
        real.unflatten(0, (-1, NEIGHBOUR_ROWS)),
        name=f"neighbours-{number}",
        alt=f"{NEIGHBOUR_COLUMNS} samples of {run.label}, under each the {NEIGHBOUR_ROWS} nearest of {among} by {by}.",
        caption=f"{run.label}: samples, and below them the nearest of {among} by {by}. Half of {len(images)} samples "
        f"have one within {typical}.",
    )


def nearest(
    generated: torch.Tensor,
    real: torch.Tensor,
    *,
    count: int = 3,
    extractor: Extractor | None = None,
    chunk: int = 4096,
    advance: Callable[[int], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` nearest real images of every generated one, uint8 [M, 3, H, W] and [N, 3, H, W].

    Args:
        extractor: compares its features; None compares pixels.
        chunk: real images read at a time, so that a mapped pack need not fit into memory as floats.
        advance: called with the number of images, generated or real, that were just read.

    Returns:
        Indices into the real images, int64 [N, count], nearest first, and distances, float32 [N, count]; of pixels the
        root of the mean square over all values, in units where black is 0 and white is 1; of features Euclidean.

    Raises:
        ValueError: fewer real images than `count`, or images of another size.
    """
    if len(real) < count:
        raise ValueError(f"expected at least {count} real images, got {len(real)}")
    if extractor is None and real.shape[1:] != generated.shape[1:]:
        raise ValueError(f"expected real images of {list(generated.shape[1:])}, got {list(real.shape[1:])}")
    queries = _vectors(generated, extractor, advance)
    distances = torch.empty(len(generated), 0, dtype=torch.float64)
    indices = torch.empty(len(generated), 0, dtype=torch.int64)
    for first in range(0, len(real), chunk):
        part = real[first : first + chunk]
        distances = torch.cat([distances, torch.cdist(queries, _vectors(part, extractor, advance))], dim=1)
        numbers = torch.arange(first, first + len(part)).expand(len(generated), -1)
        indices = torch.cat([indices, numbers], dim=1)
        distances, order = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, order)
    scale = queries.shape[1] ** -0.5 if extractor is None else 1.0
    return indices, (distances * scale).float()


def _vectors(images: torch.Tensor, extractor: Extractor | None, advance: Callable[[int], None] | None) -> torch.Tensor:
    """float64 [N, D], in which distances of equal images come out near 0: pixels in [0, 1], or features."""
    if extractor is not None:
        return extractor.features(images, advance=advance)[0].double()
    if advance:
        advance(len(images))
    return images.flatten(1).double() / 255


def _training_grids(run: RunSummary) -> tuple[list[tuple[int, torch.Tensor]], list[str]]:
    """(step, images) of the grids that training left, at most 16, evenly spread and with the last; and problems."""
    grids, problems = [], []
    for path in sorted(Path(run.path, "samples").glob("step-*.png")) if run.image_size is not None else ():
        step = path.stem.removeprefix("step-")
        if not step.isdecimal():
            continue
        try:
            grids.append((int(step), read_grid(path, run.image_size or 1)))
        except ArtifactError as error:
            problems.append(str(error))
    grids.sort(key=lambda grid: grid[0])
    if len(grids) > MAX_FRAMES:
        grids = [grids[round(i * (len(grids) - 1) / (MAX_FRAMES - 1))] for i in range(MAX_FRAMES)]
    return grids, problems


def evolution(run: str, grids: Sequence[tuple[int, torch.Tensor]], *, name: str) -> Evolution:
    """The first 32 images of every grid as frames, of (step, uint8 [N, 3, H, W]) from the same noises, oldest first."""
    pictures = []
    for _, images in grids:
        grid = make_grid(_resized(images[:FRAME_IMAGES], FRAME_TILE), nrow=FRAME_COLUMNS, padding=2, pad_value=255)
        pictures.append(Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy()))
    frames = [
        Frame(step, _encoded(picture, "WEBP", quality=WEBP_QUALITY, method=6))
        for (step, _), picture in zip(grids, pictures, strict=True)
    ]
    first, *others = [_labelled(p, f"step {step:,}") for (step, _), p in zip(grids, pictures, strict=True)]
    durations = [*[FRAME_MS] * len(others), LAST_FRAME_MS]
    animation = _encoded(
        first, "WEBP", save_all=True, append_images=others, loop=0, quality=WEBP_QUALITY, duration=durations
    )
    width, height = pictures[0].size
    return Evolution(run, name, frames, animation, width // 2, height // 2)


def _labelled(picture: Image.Image, label: str) -> Image.Image:
    """The picture with a line of text below it."""
    taller = Image.new("RGB", (picture.width, picture.height + 18), "white")
    taller.paste(picture)
    ImageDraw.Draw(taller).text((4, picture.height + 2), label, fill="black", font_size=12)
    return taller


def grid_figure(images: torch.Tensor, *, name: str, alt: str, caption: str) -> RunFigure:
    """uint8 images [N, 3, H, W] in rows of 8; small ones are enlarged by whole pixels."""
    return _tiled(images, GRID_COLUMNS, name=name, alt=alt, caption=caption)


def neighbour_figure(
    generated: torch.Tensor, neighbours: torch.Tensor, *, name: str, alt: str, caption: str
) -> RunFigure:
    """Generated images [N, 3, H, W] in the upper row, under each its nearest real ones, of [N, K, 3, H, W]."""
    images = torch.cat([generated, *neighbours.unbind(1)])
    return _tiled(images, len(generated), name=name, alt=alt, caption=caption, gap_after_first_row=True)


def _tiled(
    images: torch.Tensor, columns: int, *, name: str, alt: str, caption: str, gap_after_first_row: bool = False
) -> RunFigure:
    """Images on a transparent ground; on the page small ones keep their pixels, which the browser enlarges."""
    tiles = _resized(images, min(GRID_TILE, images.shape[-1]))
    side = tiles.shape[-1]
    gap = max(1, side // 16)
    opaque = torch.cat([tiles, torch.full_like(tiles[:, :1], 255)], dim=1)
    grid = make_grid(opaque, nrow=columns, padding=gap, pad_value=0)
    if gap_after_first_row:
        at = side + 2 * gap
        grid = torch.cat([grid[:, :at], torch.zeros_like(grid[:, : 2 * gap]), grid[:, at:]], dim=1)
    picture = Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())
    ground = Image.new("RGBA", picture.size, "white")
    on_white = Image.alpha_composite(ground, picture).convert("RGB")
    on_white = ImageOps.scale(on_white, -(-GRID_TILE // side), Image.Resampling.NEAREST)
    light, png = (_encoded(image, "PNG", optimize=True) for image in (picture, on_white))
    width, height = picture.size
    enlarged = width <= GRID_WIDTH
    factor = GRID_WIDTH // width if enlarged else GRID_WIDTH / width
    width, height = round(factor * width), round(factor * height)
    return RunFigure(name, alt, caption, light, png, width=width, height=height, enlarged=enlarged)


def _resized(images: torch.Tensor, tile: int) -> torch.Tensor:
    """uint8 [N, 3, H, W] enlarged by whole pixels to at least `tile`, or shrunk to it from twice as large on."""
    side = images.shape[-1]
    if side >= 2 * tile:
        return F.interpolate(images.float(), size=(tile, tile), mode="area").round().to(torch.uint8)
    factor = max(1, -(-tile // side))
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    memory = io.BytesIO()
    picture.save(memory, format=kind, **options)
    return memory.getvalue()
