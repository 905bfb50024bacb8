"""Scoring: generated images against real ones, with everything the number depends on written beside it."""

import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from driftkit import __version__
from driftkit.artifacts.files import write_json
from driftkit.artifacts.run import Run, now
from driftkit.errors import UsageError
from driftkit.evaluation.checks import collapse_warning, count_warnings, image_warnings, require_scorable
from driftkit.evaluation.extractors import Extractor, load_extractor
from driftkit.evaluation.moments import Moments
from driftkit.evaluation.scores import Scores, real_floor, score_features
from driftkit.evaluation.statistics_cache import ReferenceStatistics, contract, reference_statistics
from driftkit.stages.fid_target import (
    DEFAULT_NUM_IMAGES,
    Report,
    Sampling,
    Target,
    is_run,
    open_target,
    require_same_size,
    require_target,
)

__all__ = ["DEFAULT_NUM_IMAGES", "Evaluation", "Report", "Sampling", "evaluate"]

FORMAT = 1


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
    repeats: int = 1,
    use_cache: bool = True,
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
        repeats: how often a run is sampled and scored, with the seeds s, s + 1, ... after the seed s of `sampling`. The
            scores are then means, beside the standard deviation and all values.
        use_cache: read and keep the reference's features in the cache folder.
        report: told how far it is. That the cache was used is a line on stderr.

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
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: expected at least 1")
    if repeats > 1 and target.exists() and not is_run(target):
        raise UsageError(f"--repeats {repeats}: {target} is no run, its images are there already; leave the option out")
    place = device or torch.device("cpu")
    # The extractor comes first: its weights are what is missing most often, and sampling takes long.
    extractor = (
        features
        if isinstance(features, Extractor)
        else load_extractor(features, weights=features_weights, device=place)
    )
    pack = open_dataset(reference, image_size=image_size)
    require_target(target, sampling or Sampling(), pack_size=pack.images.shape[-1])
    rounds: list[_Round] = []
    real: ReferenceStatistics | None = None
    for found in _targets(
        target,
        num_images,
        sampling or Sampling(),
        image_size,
        repeats,
        batch_size=batch_size,
        device=place,
        report=report,
    ):
        require_same_size(found, pack.images)
        warnings = require_scorable(found.images, str(target), allow_collapsed=allow_collapsed)
        if real is None:
            require_scorable(pack.images, f"reference {reference}")
            real = _real_statistics(extractor, pack, batch_size=batch_size, use_cache=use_cache, report=report)
        warnings += image_warnings(found.images, "generated")
        if found.info.get("digest") == pack.digest:
            warnings.append(
                "the target and the reference are the same images: this score says nothing about a generator"
            )
        of = f" {len(rounds) + 1}/{repeats}" if repeats > 1 else ""
        scored = _score(found, real, extractor, warnings, f"generated{of}", batch_size, allow_collapsed, report=report)
        # The images of later repeats are let go: only those of the first are described.
        rounds.append(replace(scored, target=replace(found, images=found.images[:0].clone())) if rounds else scored)
    assert real is not None  # at least one repeat
    first, scores = rounds[0].target, rounds[0].scores
    count = len(first.images)
    floor = real_floor(real.features, num_images=count)
    warnings = list(dict.fromkeys(warning for one in rounds for warning in one.warnings))
    warnings += count_warnings(count, len(pack.images), dim=extractor.dim)
    warnings += scores.omitted + _floor_warnings(floor, count)
    repeated = _repeated([one.scores for one in rounds])
    document = {
        **_describe(first, extractor),
        "metrics": {name: entry["mean"] for name, entry in repeated.items()},
        "metric_settings": scores.settings,
        **(
            {"repeats": {"seeds": [one.target.info.get("seed") for one in rounds], "metrics": repeated}}
            if repeats > 1
            else {}
        ),
        "floor": floor,
        "extractor": extractor.describe(),
        "reference": {
            "spec": reference,
            "digest": pack.digest,
            "count": len(pack.images),
            "image_size": int(pack.images.shape[-1]),
            "is_training_data": _training_digest(first.run) == pack.digest,
            "from_cache": real.cached,
        },
        "warnings": warnings,
        "precision": "float32",
        "device": str(place),
        "seconds": round(time.monotonic() - started, 3),
    }
    path = output or default_path(first, document)
    write_json(path, document)
    return Evaluation(document, path)


@dataclass(frozen=True)
class _Round:
    """One sampling, scored."""

    target: Target
    scores: Scores
    warnings: list[str]


def _targets(
    target: Path,
    num_images: int | None,
    sampling: Sampling,
    image_size: int | None,
    repeats: int,
    *,
    batch_size: int,
    device: torch.device,
    report: Report,
) -> Iterator[Target]:
    """The images of each repeat in turn; image i is a function of (seed, i), so no two seeds share one."""
    for number in range(repeats):
        seeded = replace(sampling, seed=(sampling.seed or 0) + number) if repeats > 1 else sampling
        of = f" {number + 1}/{repeats}" if repeats > 1 else ""

        def numbered(what: str, done: int, total: int, of: str = of) -> None:
            report(f"{what}{of}", done, total)

        yield open_target(target, num_images, seeded, image_size, batch_size=batch_size, device=device, report=numbered)


def _real_statistics(
    extractor: Extractor, pack: Any, *, batch_size: int, use_cache: bool, report: Report
) -> ReferenceStatistics:
    count = len(pack.images)

    def compute() -> torch.Tensor:
        advance = lambda n: report("reference", n, count)  # noqa: E731
        return extractor.features(pack.images, batch_size=batch_size, advance=advance)[0]

    agreed = contract(extractor, digest=pack.digest, count=count, image_size=int(pack.images.shape[-1]))
    return reference_statistics(
        agreed, compute, use_cache=use_cache, notice=lambda line: print(line, file=sys.stderr, flush=True)
    )


def _score(
    found: Target,
    real: ReferenceStatistics,
    extractor: Extractor,
    warnings: list[str],
    label: str,
    batch_size: int,
    allow_collapsed: bool,
    *,
    report: Report,
) -> _Round:
    total = len(found.images)
    generated, logits = extractor.features(
        found.images, batch_size=batch_size, advance=lambda n: report(label, n, total)
    )
    scores = score_features(
        generated, real.features, logits=logits, device=extractor.device, reference_moments=real.moments
    )
    collapse = collapse_warning(Moments.of(generated), real.moments, allow_collapsed=allow_collapsed)
    return _Round(found, scores, warnings + ([collapse] if collapse else []))


def _repeated(rounds: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    """Score name -> mean, sample standard deviation (None of one value) and all values in order of the seeds."""
    found: dict[str, dict[str, Any]] = {}
    for name in rounds[0].metrics:
        values = [scores.metrics[name] for scores in rounds]
        sd = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "sd": sd, "values": values}
    return found


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
        f"seed{document['seed']}" + (f"x{len(document['repeats']['seeds'])}" if "repeats" in document else ""),
        document["reference"]["digest"][:8],
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(str(p) for p in parts))
    return found.run.path / "evaluations" / f"{name}.json"
