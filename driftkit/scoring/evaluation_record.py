"""What an evaluation says: the scores of a target, the signs that they mislead, and all that they depend on."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from driftkit import __version__
from driftkit.encoders.lineage import kinship, training_encoders_of
from driftkit.metrics.appearance import compare_appearance
from driftkit.metrics.base import Baseline, FeatureStats, MetricInputs
from driftkit.metrics.memorization import Memorization, baseline_distances
from driftkit.metrics.registry import METRICS, compute_metrics, real_floor
from driftkit.metrics.survey import Survey
from driftkit.scoring.image_set import Target
from driftkit.scoring.reference_statistics import cached_figures
from driftkit.scoring.references import Bench, Reference, Training, training_digest
from driftkit.scoring.sanity import (
    collapse_warning,
    compression,
    count_warnings,
    floor_warnings,
    require_scorable,
    survey_warnings,
)
from driftkit.storage.run_folder import now

FORMAT = 1
SCORES_VERSION = 4  # part of an evaluation's identity: counted up when the same images would get other numbers


@dataclass(frozen=True)
class Judging:
    """How strictly and with what help images are judged.

    Attributes:
        memorisation: look for copies of training images.
        training: data SPEC of the training images; None takes the run's own, else the reference.
        allow_collapsed: score images that are all alike, with a warning, instead of refusing.
        allow_jpeg: score images stored as JPEG against others, with a warning, instead of refusing.
    """

    memorisation: bool = True
    training: str | None = None
    allow_collapsed: bool = False
    allow_jpeg: bool = False


def image_warnings(found: Target, survey: Survey, reference: Reference, judging: Judging) -> tuple[Any, list[str]]:
    """The marks of compression for the record, and sentences about the images.

    Raises:
        RefusedError: images that no score means anything for.
    """
    theirs = reference.statistics
    warnings = [*found.notes, *require_scorable(survey, str(found.path), allow_collapsed=judging.allow_collapsed)]
    warnings += survey_warnings(survey, "generated")
    marks, said = compression(
        survey,
        theirs.features.survey,
        generated_formats=found.formats,
        reference_formats=theirs.data.get("formats") or {},
        allow_jpeg=judging.allow_jpeg,
    )
    if found.info.get("digest") == reference.digest:
        said.append("the target and the reference are the same images: this score says nothing about a generator")
    if theirs.is_foreign:
        said.append("foreign statistics: what made them, of how many images and how resized, is unknown")
    return marks, warnings + said


def evaluation_document(
    found: Target,
    generated: FeatureStats,
    reference: Reference,
    training: Training | None,
    judging: Judging,
    bench: Bench,
) -> tuple[dict[str, Any], Memorization | None]:
    """The document of an evaluation, and the pairs of which a picture belongs beside it.

    Raises:
        RefusedError: a number would mislead.
    """
    theirs, extractor = reference.statistics.features, bench.extractor
    assert generated.survey is not None
    marks, warnings = image_warnings(found, generated.survey, reference, judging)
    kin = None if found.run is None else kinship(training_encoders_of(found.run.manifest()), extractor.lineage)
    if kin and not kin.counts:
        warnings.append(f"{extractor.name} is no independent evaluator of this run: {kin.reason}")
    collapse = collapse_warning(generated.moments, theirs.moments, allow_collapsed=judging.allow_collapsed)
    floor = floor_of(reference, len(generated), bench)
    common = _common_classes(found, reference.statistics.data.get("classes") or [])
    baseline = _baseline(reference, training, bench)
    known = training.statistics.features if training and training.statistics else None
    inputs = MetricInputs(generated, theirs, bench.device, extractor.scores_inception, common, known, baseline)
    scores = compute_metrics(inputs, METRICS.values())
    classes, copies = scores.details.get("per_class"), scores.details.get("memorization")
    warnings += [collapse] if collapse else []
    warnings += count_warnings(len(generated), reference.statistics.data["count"], dim=extractor.dim)
    warnings += scores.warnings + floor_warnings(floor, scores.values["fid"], len(generated))
    metrics = dict(scores.values)
    if not copies and training and training.problem:
        warnings.append(training.problem)
    document = {
        **_describe(found),
        "kinship": None if kin is None else asdict(kin),
        "metrics": metrics,
        "metric_settings": scores.settings,
        "floor": floor,
        "extractor": {
            **extractor.describe(),
            "lineage": None if extractor.lineage is None else extractor.lineage.describe(),
        },
        "appearance": _appearance(generated.survey, theirs.survey),
        "reference": {
            "spec": reference.spec,
            **{key: reference.statistics.data[key] for key in ("digest", "count", "image_size")},
            "is_training_data": training_digest(found.run) == reference.digest,
        },
        "compression": marks,
        "classes": asdict(classes) if classes else None,
        "memorisation": {**asdict(copies), **training.describe()} if copies and training else None,
        "warnings": warnings,
        "precision": extractor.precision,
        "device": str(bench.device),
        "batch_size": bench.batch_size,
        "world_size": bench.ranks.world_size,
    }
    return document, copies


def floor_of(reference: Reference, num_images: int, bench: Bench) -> dict[str, Any] | None:
    """What real images would get at that count; see `real_floor`."""
    statistics = reference.statistics
    rows = statistics.features.rows
    count = min(num_images, len(rows) // 2)
    name = f"floor-{count}-scores{SCORES_VERSION}-{bench.device.type}"

    def compute() -> dict[str, Any] | None:
        floor = real_floor(rows, num_images=count, device=bench.device)
        return floor and {"num_images": floor.num_images, "seed": floor.seed, **floor.metrics}

    return cached_figures(statistics, name, compute, use=bench.cache)


def _baseline(reference: Reference, training: Training | None, bench: Bench) -> Baseline | None:
    if training is None or training.statistics is None:
        return None
    known, real = training.statistics, reference.statistics.features
    held_out = real if len(real.rows) and not training.is_reference else None
    name = f"baseline-{'itself' if held_out is None else reference.digest[:16]}-{bench.device.type}"

    def compute() -> dict[str, Any] | None:
        baseline = baseline_distances(known.features, held_out, device=bench.device)
        return baseline and asdict(baseline)

    figures = cached_figures(known, name, compute, use=bench.cache)
    return None if figures is None else Baseline(**figures)


def _common_classes(found: Target, classes: list[str]) -> list[str]:
    """The reference's classes, unless the target is labelled by other ones."""
    return classes if not found.classes or list(found.classes) == classes else []


def _describe(found: Target) -> dict[str, Any]:
    info = found.info
    count = found.share.total
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
        "sampler_precision": info.get("precision"),
    }


def _appearance(generated: Survey, real: Survey | None) -> dict[str, Any] | None:
    """What the images look like beside real ones; None beside statistics of others, which hold no images."""
    return None if real is None else compare_appearance(generated.appearance, real.appearance)


def default_path(found: Target, document: dict[str, Any]) -> Path:
    """Where an evaluation belongs: in its run, or beside images that no run here made."""
    if found.run is None:
        name = f"{found.path.name.removesuffix('.safetensors')}.{evaluator_label(document['extractor'])}"
        return found.path.with_name(f"{name}.evaluation.json")
    extractor = document["extractor"]
    options = "".join(f"-{key}{value}" for key, value in sorted(document["sampler_options"].items()))
    parts = (
        evaluator_label(extractor),
        f"{document['sampler']}{options}",
        document["nfe"],
        document["weights"],
        f"step{document['step']}",
        f"n{document['num_images']}",
        f"seed{document['seed']}",
        *([] if document["sampler_precision"] in (None, "float32") else [document["sampler_precision"]]),
        document["reference"]["digest"][:8],
    )
    return found.run.path / "evaluations" / f"{_file_label('-'.join(str(p) for p in parts))}.json"


def evaluator_label(extractor: Mapping[str, Any]) -> str:
    """An evaluator in file names: its name, and the beginning of its weights' digest."""
    return _file_label(f"{extractor['name']}-{extractor['weights_digest'][:8]}")


def _file_label(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words)
