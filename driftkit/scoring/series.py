"""Several evaluations of one target: over disjoint seeds, and over all checkpoints of a run."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from driftkit import __version__
from driftkit.errors import DriftkitError, NotFoundError, RefusedError, UsageError
from driftkit.scoring.evaluator import (
    DEFAULT_NUM_IMAGES,
    Evaluation,
    Judge,
    Opened,
    Sampling,
    evaluate_with,
    open_once,
    output_of,
)
from driftkit.scoring.image_set import is_run
from driftkit.scoring.score_curve import score_curve
from driftkit.storage.files import atomic_path, read_json, write_json
from driftkit.storage.run_folder import Run, now

FORMAT = 1


def evaluate_repeats(
    judges: Sequence[Judge],
    target: Path,
    repeats: int,
    *,
    num_images: int | None = None,
    sampling: Sampling | None = None,
    output: Path | None = None,
) -> list[Evaluation]:
    """Score a run with `repeats` seeds from its seed on, or as many disjoint parts of images that are there.

    Every score is written as an evaluation of its own; the summary of each evaluator has mean, standard deviation and
    all values.

    Raises:
        UsageError: fewer than two repeats, or too few images for disjoint parts.
    """
    if repeats < 2:
        raise UsageError(f"--repeats {repeats}: expected at least 2")
    sampling = sampling or Sampling()
    made: list[list[Evaluation]] = []
    for number in range(repeats):
        each = None if output is None else output.with_name(f"{output.stem}-{number}.json")
        if is_run(target):
            chosen = replace(sampling, seed=(sampling.seed or 0) + number)
            made.append(evaluate_with(judges, target, num_images=num_images, sampling=chosen, output=each))
        else:
            if each is None and judges[0].is_main:
                each = target.with_name(f"{target.name.removesuffix('.safetensors')}-{number}.evaluation.json")
            part = (number, repeats)
            made.append(evaluate_with(judges, target, num_images=num_images, sampling=sampling, part=part, output=each))
    if not judges[0].is_main:
        return [Evaluation({}, target)]
    summaries = []
    for judge, of_judge in zip(judges, zip(*made, strict=True), strict=True):
        document = repeats_summary(of_judge)
        path = output_of(judge, output, several=len(judges) > 1) or _beside(of_judge[0].path, f"repeats-{repeats}")
        write_json(path, document)
        summaries.append(Evaluation(document, path))
    return summaries


def repeats_summary(made: Sequence[Evaluation]) -> dict[str, Any]:
    """Means as metrics, beside the standard deviation and all values of each; the rest is that of the first one."""
    documents = [m.document for m in made]
    names = [n for n in documents[0]["metrics"] if all(n in d["metrics"] for d in documents)]
    spread = {name: spread_of([d["metrics"][name] for d in documents]) for name in names}
    shared = ("name", "num_images", "target", "run", "method", "encoder", "sampler", "nfe", "weights", "step",
              "sampler_precision", "kinship", "floor", "extractor", "reference")  # fmt: skip
    return {
        "format": FORMAT,
        "kind": "evaluation repeats",
        "driftkit": __version__,
        "created": now(),
        **{key: documents[0][key] for key in shared},
        "metrics": {name: entry["mean"] for name, entry in spread.items()},
        "repeats": {"seeds": [d["seed"] for d in documents], "metrics": spread},
        "warnings": list(dict.fromkeys(w for d in documents for w in d["warnings"])),
        "evaluations": [str(m.path) for m in made],
    }


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """`mean`, `sd` (of the sample, over n - 1) and `values`."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values), "values": list(values)}


def evaluate_checkpoints(
    judges: Sequence[Judge], target: Path, *, num_images: int | None = None, sampling: Sampling | None = None
) -> list[Evaluation]:
    """Score all checkpoints of a run, and write each evaluator's curve of score against step with its figure.

    Evaluations that are there already, of the same weights, images, extractor and seed, are not made again. A
    checkpoint whose score is refused (a network that has just begun) is a point without a score that says why.

    Raises:
        UsageError: no run, or a step given.
        ArtifactError: the run has no checkpoint.
        RefusedError: no checkpoint could be scored.
    """
    sampling = sampling or Sampling()
    if not is_run(target):
        raise UsageError(f"--all-checkpoints: {target} is no run")
    if sampling.step is not None:
        raise UsageError("--all-checkpoints and --step exclude each other: leave one out")
    run, count = Run.open(target), num_images or DEFAULT_NUM_IMAGES
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise NotFoundError(f"{target} holds no checkpoint yet")
    known = known_evaluations(run)
    points: list[list[dict[str, Any]]] = [[] for _ in judges]
    last: list[dict[str, Any]] = [{} for _ in judges]
    for checkpoint in checkpoints:
        chosen = replace(sampling, step=checkpoint.step)
        state = checkpoint.state()
        point = {"step": checkpoint.step, "images_seen": state.images_seen, "train_seconds": state.train_seconds}
        opened: Opened | None = None  # sampled once, and only if an evaluator has not scored it before
        for number, judge in enumerate(judges):
            found = known.get(judge.identity(run, count, chosen))
            if found is not None and judge.is_main:
                judge.bench.tell(f"step {checkpoint.step}: evaluated before")
            try:
                if found is None:
                    opened = opened or open_once(judges, target, num_images=num_images, sampling=chosen)
                    found = judge.score(opened)
            except RefusedError as error:
                points[number].append({**point, "metrics": None, "refused": str(error)})
                judge.bench.tell(f"step {checkpoint.step}: {error}")
                continue
            last[number] = found.document or last[number]
            points[number].append({**point, "metrics": found.document.get("metrics"), "evaluation": str(found.path)})
    if not judges[0].is_main:
        return [Evaluation({}, target)]
    curves = [_write_curve(run, document, curve) for document, curve in zip(last, points, strict=True) if document]
    if not curves:
        raise RefusedError(
            f"{target}: none of {len(points[0])} checkpoints could be scored: {points[0][-1]['refused']}"
        )
    return curves


def known_evaluations(run: Run) -> dict[str, Evaluation]:
    """Evaluations in a run by identity; files that are none are passed over."""
    found = {}
    for path in run.evaluation_paths():
        try:
            document = read_json(path)
        except DriftkitError:
            continue  # cut off or foreign: it is evaluated anew
        if document.get("kind") == "evaluation" and isinstance(document.get("identity"), str):
            found[document["identity"]] = Evaluation(document, path)
    return found


def _write_curve(run: Run, last: dict[str, Any], points: list[dict[str, Any]]) -> Evaluation:
    keys = ("name", "num_images", "run", "method", "encoder", "sampler", "nfe", "weights", "seed",
            "sampler_precision", "floor", "extractor", "reference", "kinship")  # fmt: skip
    document = {
        "format": FORMAT,
        "kind": "evaluation curve",
        "driftkit": __version__,
        "created": now(),
        **{key: last[key] for key in keys},
        "points": points,
    }
    extractor = last["extractor"]
    label = "-".join(
        str(part)
        for part in (extractor["name"], extractor["weights_digest"][:8], last["sampler"], last["nfe"], last["weights"],
                     f"n{last['num_images']}", f"seed{last['seed']}", last["reference"]["digest"][:8])
    )  # fmt: skip
    path = run.path / "evaluations" / "curves" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}.json"
    figure = score_curve(document)
    with atomic_path(path.with_suffix(".png")) as temporary:
        temporary.write_bytes(figure)
    document["figure"] = path.with_suffix(".png").name
    write_json(path, document)
    return Evaluation(document, path)


def _beside(path: Path, suffix: str) -> Path:
    """A file in the folder `repeats` beside evaluations, whose readers expect nothing else among them."""
    return path.parent / "repeats" / f"{path.stem}-{suffix}.json"
