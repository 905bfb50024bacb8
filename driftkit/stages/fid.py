"""Scoring: generated images against real ones, with everything the number depends on written beside it."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from driftkit import __version__
from driftkit.artifacts.files import read_json, write_json
from driftkit.artifacts.images import read_samples
from driftkit.artifacts.run import Run, Weights, now
from driftkit.errors import MissingError, RefusedError, UsageError
from driftkit.evaluation.checks import collapse_warning, count_warnings, image_warnings, require_scorable
from driftkit.evaluation.extractors import Extractor, load_extractor
from driftkit.evaluation.moments import Moments
from driftkit.evaluation.scores import real_floor, score_features

FORMAT = 1
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


@dataclass(frozen=True)
class Evaluation:
    """An evaluation and where it was written."""

    document: dict[str, Any]
    path: Path


def evaluate(
    target: Path,
    reference: str,
    *,
    features: str | Extractor = "inception",
    features_weights: Path | None = None,
    num_images: int | None = None,
    sampling: Sampling | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
    device: torch.device | None = None,
    output: Path | None = None,
    allow_collapsed: bool = False,
    report: Report = lambda what, done, total: None,
) -> Evaluation:
    """Score a run, a samples file or any images against real images, and write the evaluation.

    Args:
        target: a run (which is sampled), a samples file, or a folder, archive or pack of images.
        reference: data SPEC of the real images.
        features: inception, dinov2, encoder:RUN, or an extractor.
        features_weights: local weights of the extractor.
        num_images: how many; None takes 50,000 of a run and all of anything else.
        sampling: how to sample a run.
        image_size: side in pixels to which the reference is resized; None takes it as it is.
        batch_size: images at a time, which changes nothing beyond rounding.
        output: where to write; None puts it into the run's evaluations, else beside the target.
        allow_collapsed: score images that are all identical or flat, with a warning, instead of refusing.
        report: told how far it is.

    Raises:
        UsageError: options that do not fit the target.
        MissingError: target, reference or weights are absent.
        RefusedError: a number would mislead: too few, identical or flat images, features that are not finite or do
            not vary, or sizes that differ.
    """
    from driftkit.datasets.sources import open_dataset

    started = time.monotonic()
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected at least 1")
    if num_images is not None and num_images < 1:
        raise UsageError(f"--num-images {num_images}: expected at least 2")
    place = device or torch.device("cpu")
    # The extractor comes first: its weights are what is missing most often, and sampling takes long.
    extractor = (
        features
        if isinstance(features, Extractor)
        else load_extractor(features, weights=features_weights, device=place)
    )
    pack = open_dataset(reference, image_size=image_size)
    _require_target(target, sampling or Sampling(), pack_size=pack.images.shape[-1])
    found = open_target(
        target, num_images, sampling or Sampling(), image_size, batch_size=batch_size, device=place, report=report
    )
    _require_same_size(found, pack.images, reference)
    warnings = require_scorable(found.images, str(target), allow_collapsed=allow_collapsed)
    require_scorable(pack.images, f"reference {reference}")
    warnings += image_warnings(found.images, "generated")
    if found.info.get("digest") == pack.digest:
        warnings.append("the target and the reference are the same images: this score says nothing about a generator")
    real, _ = extractor.features(
        pack.images, batch_size=batch_size, advance=lambda n: report("reference", n, len(pack.images))
    )
    generated, logits = extractor.features(
        found.images, batch_size=batch_size, advance=lambda n: report("generated", n, len(found.images))
    )
    scores = score_features(generated, real, logits=logits, device=place)
    floor = real_floor(real, num_images=len(generated))
    collapse = collapse_warning(Moments.of(generated), Moments.of(real), allow_collapsed=allow_collapsed)
    warnings += ([collapse] if collapse else []) + count_warnings(len(generated), len(real), dim=extractor.dim)
    warnings += scores.omitted + _floor_warnings(floor, len(generated))
    document = {
        **_describe(found, extractor),
        "metrics": scores.metrics,
        "metric_settings": scores.settings,
        "floor": floor,
        "extractor": extractor.describe(),
        "reference": {
            "spec": reference,
            "digest": pack.digest,
            "count": len(pack.images),
            "image_size": int(pack.images.shape[-1]),
            "is_training_data": _training_digest(found.run) == pack.digest,
        },
        "warnings": warnings,
        "precision": "float32",
        "device": str(place),
        "seconds": round(time.monotonic() - started, 3),
    }
    path = output or default_path(found, document)
    write_json(path, document)
    return Evaluation(document, path)


def _require_target(target: Path, sampling: Sampling, *, pack_size: int) -> None:
    """What can be refused before anything is sampled."""
    if not target.exists():
        raise MissingError(f"{target}: expected a run, a samples file or images, found nothing")
    if not _is_run(target):
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
    if _is_run(target):
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


def _is_run(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _is_samples(record: Path) -> bool:
    """Whether the JSON beside a safetensors file says that it holds samples; a pack's card says otherwise."""
    return record.is_file() and read_json(record).get("kind") == "samples"


def _run_of(samples: Path, info: dict[str, Any]) -> Run | None:
    """The run that holds the samples file, or the one that its record names."""
    named = info.get("run")
    for folder in (samples.resolve().parent.parent, *([Path(named)] if isinstance(named, str) and named else [])):
        if _is_run(folder):
            return Run.open(folder)
    return None


def _require_same_size(found: Target, real: torch.Tensor, reference: str) -> None:
    if found.images.shape[-2:] != real.shape[-2:]:
        raise RefusedError(_sizes_differ(int(found.images.shape[-1]), int(real.shape[-1])))


def _sizes_differ(generated: int, reference: int) -> str:
    return (
        f"the generated images are {generated} pixels wide and the reference {reference}: a score would compare the "
        f"resizing; --image-size {generated} resizes the reference"
    )


def _describe(found: Target, extractor: Extractor) -> dict[str, Any]:
    info = found.info
    count = len(found.images)
    return {
        "format": FORMAT,
        "kind": "evaluation",
        "driftkit": __version__,
        "created": now(),
        "name": f"fid@{count}",
        "num_images": count,
        "target": str(found.path),
        "run": found.run.name if found.run else None,
        **{key: info.get(key) for key in ("method", "encoder", "sampler", "nfe", "weights", "step", "seed")},
        "sampler_options": info.get("sampler_options") or {},
        "own_teacher": is_own_teacher(found.run, extractor),
    }


def is_own_teacher(run: Run | None, extractor: Extractor) -> bool:
    """Whether the run was trained with the very weights that now judge it."""
    if run is None:
        return False
    encoder = run.manifest().get("encoder")
    digest = encoder.get("weights_digest") if isinstance(encoder, dict) else None
    return digest is not None and digest not in ("random", "none") and digest == extractor.weights_digest


def _training_digest(run: Run | None) -> str | None:
    inputs = run.manifest().get("inputs") if run else None
    data = inputs.get("data") if isinstance(inputs, dict) else None
    return data.get("digest") if isinstance(data, dict) else None


def _floor_warnings(floor: dict[str, Any] | None, num_images: int) -> list[str]:
    if floor is None:
        return ["the reference is too small for a real-vs-real floor"]
    if floor["num_images"] < num_images:
        return [
            f"the floor is of {floor['num_images']} against {floor['num_images']} images, half of the reference: at "
            f"{num_images} it would be lower"
        ]
    return []


def default_path(found: Target, document: dict[str, Any]) -> Path:
    """Where an evaluation belongs: in its run, or beside images that no run here made."""
    if found.run is None:
        return found.path.with_name(f"{found.path.name.removesuffix('.safetensors')}.evaluation.json")
    extractor = document["extractor"]
    options = "".join(f"-{key}{value}" for key, value in sorted(document["sampler_options"].items()))
    parts = (
        f"{extractor['name']}-{extractor['weights_digest'][:8]}",
        f"{document['sampler']}{options}",
        document["nfe"],
        document["weights"],
        f"step{document['step']}",
        f"n{document['num_images']}",
        f"seed{document['seed']}",
        document["reference"]["digest"][:8],
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(str(p) for p in parts))
    return found.run.path / "evaluations" / f"{name}.json"
