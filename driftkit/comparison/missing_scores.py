"""Making the evaluations that a comparison lacks: every run, sampler and NFE of the cost curve, scored alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from driftkit.comparison.compare_config import CompareConfig
from driftkit.comparison.run_summary import RunSummary
from driftkit.config.sampling_config import SamplingConfig
from driftkit.errors import DriftkitError
from driftkit.methods.registry import METHODS
from driftkit.runtime.progress import Report
from driftkit.scoring.evaluation_record import read_evaluations
from driftkit.scoring.evaluator import Evaluator, ScoringOptions, evaluate, open_evaluators
from driftkit.scoring.image_set import DEFAULT_NUM_IMAGES, ScoringExecution, default_batch_size
from driftkit.storage.run_folder import Run

SEED = 0


@dataclass(frozen=True)
class SamplerSetup:
    """One score to make."""

    sampler: str
    nfe: int
    step: int


def fill_missing(
    runs: Sequence[RunSummary],
    config: CompareConfig,
    device: torch.device,
    report: Report,
    notify: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Make the evaluations that do not exist yet, where `fid` writes them; one sentence for every one that failed.

    Raises:
        ArtifactError: an extractor or the reference is absent.
        UsageError: a wrong name of either.
    """
    assert config.reference is not None
    image_size = resized_to(runs)
    evaluators = open_evaluators(
        config.reference,
        config.extractor,
        options=ScoringOptions(allow_collapsed=config.allow_collapsed),
        extractor_weights=config.extractor_weights,
        execution=ScoringExecution(default_batch_size(device), device, report=report, notify=notify),
        image_size=image_size,
    )
    num_images = config.num_images or DEFAULT_NUM_IMAGES
    missing: list[tuple[RunSummary, SamplerSetup, list[Evaluator]]] = []
    problems = []
    for run in runs:
        try:
            setups = setups_of(run, sorted(set(config.nfe or ())), all_checkpoints=config.all_checkpoints)
        except DriftkitError as error:
            problems.append(f"{run.label} was not scored: {error}")
            continue
        done = [
            _done(run.folder, evaluator, num_images, run.folder.kept_name(config.weights)) for evaluator in evaluators
        ]
        for setup in setups:
            lacking = [e for e, scored in zip(evaluators, done, strict=True) if setup not in scored]
            missing += [(run, setup, lacking)] if lacking else []
    if missing:
        notify(_announcement(len(missing), num_images, evaluators[0].reference.info.count))
    unit, total = "network evaluations per image", sum(setup.nfe for _, setup, _ in missing)
    for run, setup, lacking in missing:
        report("scores", 0, total, unit=unit)
        sampling = SamplingConfig(
            sampler=setup.sampler, nfe=setup.nfe, weights=config.weights, seed=SEED, step=setup.step
        )
        try:
            evaluate(lacking, run.folder.path, num_images=num_images, sampling=sampling)
        except DriftkitError as error:
            which = f"{setup.sampler} at {setup.nfe} NFE, step {setup.step}"
            problems.append(f"{run.label} was not scored ({which}): {error}")
        report("scores", setup.nfe, total, unit=unit)
    return problems


def resized_to(runs: Sequence[RunSummary]) -> int | None:
    """The side in pixels to which the training images of all runs were resized; None where any was not, or they differ.

    The reference is resized alike, as `fid` does.
    """
    sizes = {run.folder.resized_to for run in runs}
    return sizes.pop() if len(sizes) == 1 else None


def _announcement(scores: int, num_images: int, reference_count: int | None) -> str:
    """How much is about to be sampled, for those who named no count."""
    line = f"{scores} {'score' if scores == 1 else 'scores'} to make, of {num_images:,} images each"
    if reference_count is not None and reference_count < num_images:
        return f"{line}, more than the {reference_count:,} of the reference; --num-images and --nfe ask for less"
    return f"{line}; --num-images and --nfe ask for less"


def setups_of(
    run: RunSummary, nfes: Sequence[int] | None = None, *, all_checkpoints: bool = False
) -> list[SamplerSetup]:
    """The scores of a run: every sampler of the cost curve at the last step, and the default one at the others."""
    method, last = METHODS[run.method], run.folder.checkpoint().step
    setups = [
        SamplerSetup(spec.name, nfe, last)
        for spec in method.samplers.values()
        if spec.curve_nfes
        for nfe in (spec.curve_nfes if spec.fixed_nfe else nfes or spec.curve_nfes)
    ]
    if all_checkpoints:
        spec = method.default_sampler
        default = spec.default_nfe(method.config(name=method.name))
        nfe = default if spec.fixed_nfe else max(nfes or (default,))
        setups += [SamplerSetup(spec.name, nfe, c.step) for c in run.folder.checkpoints() if c.step != last]
    return setups


def _done(run: Run, evaluator: Evaluator, num_images: int, weights: str) -> set[SamplerSetup]:
    """The setups that this evaluator has scored in float32, with that reference, count, seed and weights."""
    expected = evaluator.extractor.info
    done = set()
    for record in read_evaluations(run)[0]:
        sampling, by = record.sampling, record.extractor
        if (
            (by.name, by.weights_digest, by.resize) == (expected.name, expected.weights_digest, expected.resize)
            and record.reference.digest == evaluator.reference.info.digest
            and record.num_images == num_images
            and record.kinship is not None
            and record.selection is None
            and sampling is not None
            and (sampling.weights, sampling.seed, sampling.precision) == (weights, SEED, "float32")
            and sampling.is_plain
            and sampling.sampler is not None
            and sampling.nfe is not None
            and sampling.step is not None
        ):
            done.add(SamplerSetup(sampling.sampler, sampling.nfe, sampling.step))
    return done
