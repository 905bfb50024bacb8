"""The card of an exported model: its training, its scores, and how to use it."""

import shlex
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from driftkit.comparison.formats import format_count, format_score, format_seconds, method_label
from driftkit.comparison.run_summary import summarise
from driftkit.comparison.score_table import score_tables
from driftkit.config.weights_name import RAW, averaged_checkpoints
from driftkit.encoders.encoder_config import read_encoder
from driftkit.encoders.registry import encoder_licence, published_file
from driftkit.methods.registry import METHODS, MethodConfig
from driftkit.scoring.evaluation_record import read_evaluations
from driftkit.storage.records import RunManifest
from driftkit.storage.run_folder import Run
from driftkit.training.train_config import TrainConfig


def describe_run(run: Run, config: TrainConfig, *, weights: str, step: int) -> dict[str, Any]:
    """The fields of the card that describe a run, as JSON data."""
    manifest = run.manifest()
    data = manifest.inputs.get("data", {})
    encoder = manifest.encoder
    objective = config.objective.model_dump(mode="json")
    trained = step == manifest.step
    return {
        "run": run.name,
        "method": config.objective.name,
        "objective": objective,
        "model": config.model.model_dump(mode="json"),
        "image_size": config.data.image_size,
        "parameters": manifest.parameters,
        "weights": weights,
        "averaging": _averaging(weights),
        "step": step,
        "images_seen": manifest.images_seen if trained else None,
        "train_seconds": manifest.train_seconds if trained else None,
        "device": manifest.device,
        "seed": config.seed,
        "data": {"spec": config.data.spec, "digest": data.get("digest"), "count": data.get("count")},
        "initialised_from": origin.model_dump(mode="json") if (origin := manifest.initialised_from) else None,
        "encoder": _encoder(encoder) if encoder else None,
        "label_encoder": _label_encoder(manifest),
        "classes": [known.name for known in manifest.classes],
        "trains_without_class": getattr(config.objective, "trains_without_class", False),
        "max_guidance": getattr(config.objective, "max_guidance", None),
        "nfe": _nfe(config.objective),
        "scores": _scores(run, weights=weights, step=step),
        "versions": manifest.versions,
    }


def _averaging(weights: str) -> str:
    """What the weights of that name are, in words."""
    if (count := averaged_checkpoints(weights)) is not None:
        return f"mean of the last {count} kept checkpoints" if count > 1 else "the last ones, not averaged"
    return "the last ones, not averaged" if weights == RAW else "averaged over training"


def _encoder(encoder: Mapping[str, Any]) -> dict[str, Any]:
    parts = encoder.get("parts")
    if isinstance(parts, list) and parts:
        described = [_encoder(part) for part in parts]
        known = {key: encoder.get(key) for key in ("name", "feature_set", "weights_digest", "random_weights")}
        return {**known, "parts": described}
    name = encoder.get("name") or "unknown"
    random = encoder.get("random_weights") is True
    return {
        "name": name,
        "feature_set": encoder.get("feature_set"),
        "weights_digest": encoder.get("weights_digest"),
        "random_weights": random,
        "licence": "none: the weights were drawn at random" if random else encoder_licence(name),
        "source": None if random or (file := published_file(name)) is None else file.url,
    }


def _label_encoder(manifest: RunManifest) -> dict[str, Any] | None:
    """The encoder whose clusters of images are the classes of the network."""
    if manifest.clusters is None or manifest.label_encoder is None:
        return None
    random = manifest.label_encoder.get("weights") == "random"
    return _encoder({"name": read_encoder(manifest.clusters.encoder)[0], "random_weights": random})


def _nfe(config: MethodConfig) -> str:
    samplers = METHODS[config.name].samplers
    if all(spec.fixed_nfe for spec in samplers.values()):
        return ", ".join(str(spec.default_nfe(config)) for spec in samplers.values())
    return f"as many as the sampler takes ({', '.join(samplers)})"


def _scores(run: Run, *, weights: str, step: int) -> list[dict[str, Any]]:
    """The evaluations of exactly these weights, best first within each evaluator."""
    matching = [
        (run.name, record)
        for record in read_evaluations(run)[0]
        if record.sampling and (record.sampling.weights, record.sampling.step) == (weights, step)
    ]
    return [
        {
            "score": table.name,
            "value": row.score,
            "sd": row.score_sd,
            "floor": row.floor,
            "evaluator": table.extractor.name,
            "evaluator_weights": table.extractor.weights_digest,
            "reference": table.reference.spec,
            "num_images": table.num_images,
            "sampler": row.sampler,
            "nfe": row.nfe,
            "warnings": row.badges,
        }
        for table in score_tables(matching, [summarise(run, label=run.name)])
        for row in table.all_rows
    ]


def to_markdown(document: Mapping[str, Any]) -> str:
    """The card as Markdown. Names that came from outside are inline code, so that none of them is markup."""
    environment = Environment(
        loader=PackageLoader("driftkit.stages"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=format_count,
        score=format_score,
        seconds=format_seconds,
        method=method_label,
        code=code,
        quote=shlex.quote,
    )
    return environment.get_template("model_card.md.j2").render(document)


def code(value: Any) -> str:
    """Text as inline code of Markdown, whatever it holds: on one line, fenced by more backticks than it has."""
    line = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`"
    while fence in line:
        fence += "`"
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"
