"""Making the evaluations that a comparison lacks: every run, sampler and NFE of the cost curve, scored alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from driftkit.comparison.reading import count, mapping, text
from driftkit.comparison.run_summary import RunSummary
from driftkit.comparison.score_table import read_evaluations
from driftkit.config.sampling_config import SamplingConfig
from driftkit.errors import DriftkitError
from driftkit.runtime.progress import Report
from driftkit.scoring.evaluator import Evaluator, ScoringOptions, evaluate, open_evaluator
from driftkit.scoring.image_set import DEFAULT_NUM_IMAGES, Execution, default_batch_size
from driftkit.storage.run_folder import Run

CURVE_NFE = (1, 2, 5, 10, 20, 50, 100)
# Samplers whose quality is shown over their cost; None stands for a sampler with nothing to choose.
CURVE_SAMPLERS = {"one-step": None, "ddim": CURVE_NFE, "dpm-solver": CURVE_NFE}


@dataclass(frozen=True)
class MissingScores:
    """Which scores are made where they are missing, the same for all runs.

    Attributes:
        reference: data SPEC of the real images, or a file of statistics.
        features: the evaluators, as in `fid`.
        features_weights: local weights of it.
        num_images: per score.
        nfe: evaluations per image at which samplers of many steps are scored; None takes 1, 2, 5, 10, 20, 50, 100.
        seed: of the noise.
        all_checkpoints: score every checkpoint that is kept (at the sampler's own NFE), not only the last.
        allow_collapsed: score even images that are all alike.
        batch_size: images at a time; None: `default_batch_size`.
    """

    reference: str
    features: tuple[str, ...] = ("inception",)
    features_weights: Path | None = None
    num_images: int | None = None
    nfe: tuple[int, ...] | None = None
    seed: int = 0
    all_checkpoints: bool = False
    allow_collapsed: bool = False
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Way:
    """One score to make: a sampler at an NFE and a step; None where the default holds."""

    sampler: str
    nfe: int | None
    step: int


def fill_missing(
    generators: Sequence[tuple[Run, RunSummary]],
    wanted: MissingScores,
    report: Report,
    tell: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Evaluate what is not there yet; the results go into the runs, where `fid` would put them.

    Args:
        tell: told in one line what a user should know while it runs.

    Returns:
        One sentence for every score that could not be made.

    Raises:
        ArtifactError: the judge or the reference is not there.
        UsageError: a wrong name of either.
    """
    execution = Execution(
        wanted.batch_size or default_batch_size(wanted.device), wanted.device, report=report, notify=tell
    )
    options = ScoringOptions(allow_collapsed=wanted.allow_collapsed)
    judges = [
        open_evaluator(
            wanted.reference,
            extractor=features,
            extractor_weights=wanted.features_weights,
            options=options if number == 0 else options.without_memorization(),
            execution=execution,
        )
        for number, features in enumerate(wanted.features)
    ]
    num_images = wanted.num_images or DEFAULT_NUM_IMAGES
    missing: list[tuple[Run, RunSummary, Way, list[Evaluator]]] = []
    problems = []
    for run, summary in generators:
        try:
            ways = ways_of(run, wanted)
        except DriftkitError as error:
            problems.append(f"{summary.label} was not scored: {error}")
            continue
        done = [_done(run, judge, num_images, wanted.seed) for judge in judges]
        for way in ways:
            lacking = [judge for judge, known in zip(judges, done, strict=True) if way not in known]
            missing += [(run, summary, way, lacking)] if lacking else []
    for run, summary, way, lacking in missing:
        report("scores", 0, len(missing))
        try:
            evaluate(
                lacking,
                run.path,
                num_images=num_images,
                sampling=SamplingConfig(sampler=way.sampler, nfe=way.nfe, seed=wanted.seed, step=way.step),
            )
        except DriftkitError as error:
            at = f"{way.sampler}{f' at {way.nfe} NFE' if way.nfe else ''}, step {way.step}"
            problems.append(f"{summary.label} was not scored ({at}): {error}")
        report("scores", 1, len(missing))
    return problems


def ways_of(run: Run, wanted: MissingScores) -> list[Way]:
    """What is to be scored of a run: every sampler of the cost curve at the last step, and the default at the others.

    Raises:
        ArtifactError: the run has no checkpoint.
    """
    from driftkit.methods.registry import OBJECTIVES

    samplers = OBJECTIVES[run.objective].samplers
    last = run.checkpoint().step
    ways = []
    for name in samplers:
        if name not in CURVE_SAMPLERS:
            continue
        for nfe in (1,) if CURVE_SAMPLERS[name] is None else wanted.nfe or CURVE_NFE:
            ways.append(Way(name, nfe, last))
    if wanted.all_checkpoints:
        name = next(iter(samplers))
        nfe = 1 if CURVE_SAMPLERS[name] is None else max(wanted.nfe or (50,))
        ways += [Way(name, nfe, c.step) for c in run.checkpoints() if c.step != last]
    return ways


def _done(run: Run, judge: Evaluator, num_images: int, seed: int) -> list[Way]:
    """The ways that were scored by this judge in float32, against these images, with that count and seed."""
    found = []
    for document in read_evaluations(run)[0]:
        theirs, ours = mapping(document.get("extractor")), judge.extractor.info
        same = (
            all(theirs.get(key) == getattr(ours, key) for key in ("name", "weights_digest", "resize"))
            and mapping(document.get("reference")).get("digest") == judge.reference.info.digest
            and count(document.get("num_images")) == num_images
            and document.get("weights") == "ema"
            and document.get("seed") == seed
            and not document.get("sampler_options")
            and document.get("sampler_precision") == "float32"
            and isinstance(document.get("kinship"), dict)
        )
        sampler, step = text(document.get("sampler")), count(document.get("step"))
        if same and sampler is not None and step is not None:
            found.append(Way(sampler, count(document.get("nfe")), step))
    return found
