"""A step that was not finite: repeated to see where it begins, and kept on disk for inspection."""

import contextlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from driftkit import __version__
from driftkit.errors import UNTOUCHED, NonFiniteStepError
from driftkit.protocols import Batch, Execution, Objective, StepLoss
from driftkit.runtime.finite import named, not_finite
from driftkit.runtime.random import seed_global_generators
from driftkit.runtime.ranks import Ranks
from driftkit.storage.files import atomic_folder, write_json, write_tensors
from driftkit.storage.images import save_grid, to_uint8
from driftkit.storage.run_folder import Run, now
from driftkit.training.feed import Feed

FORMAT = 1
MOST_IMAGE_BYTES = 64 * 2**20  # float32 images that are kept
GRID_IMAGES = 64
WEIGHTS_FILE, BATCH_FILE, GRID_FILE, RECORD_FILE = (
    "weights.safetensors",
    "batch.safetensors",
    "batch.png",
    "record.json",
)


@dataclass(frozen=True)
class NonFiniteTensors:
    """What is not finite in a step when it is repeated, in order of cause and effect; all empty where it is finite.

    Attributes:
        weights: parameter or buffer -> how many of its numbers.
        images: numbers of the real images in the pack.
        features: feature groups, "generated" or "real" before their names.
        terms: loss terms. health: other signals, for example those of one temperature.
        gradients: parameter -> how many of the numbers of its gradient, on this rank.
        gradient_norm: before clipping; it overflows where numbers are finite and huge. None: it was not got to.
        largest_gradient: the parameter with the largest number in its gradient, and that number.
        ranks: processes on which any of it was seen.
    """

    weights: dict[str, int]
    images: list[int]
    features: list[str]
    terms: list[str]
    health: list[str]
    gradients: dict[str, int]
    gradient_norm: float | None
    largest_gradient: tuple[str, float] | None
    ranks: list[int]

    @property
    def repeated(self) -> bool:
        """Whether the repeated step was not finite, either."""
        told = (self.weights, self.images, self.features, self.terms, self.gradients)
        return any(told) or (self.gradient_norm is not None and not _finite(self.gradient_norm))

    def cause(self) -> str:
        """A part of a sentence on where it begins."""
        if self.images:
            return f"input images {named(self.images)} of the pack are not finite"
        if self.weights:
            return f"weights are not finite: {named(list(self.weights))}"
        if self.features:
            return f"features: {named(self.features)}"
        if self.terms:
            signals = f" with {named(self.health[::-1])}" if self.health else ""  # the most particular are told last
            return f"loss terms: {named(self.terms)}{signals}"
        if self.gradients:
            return f"gradients of {named(list(self.gradients))}"
        if self.repeated and self.largest_gradient:
            name, value = self.largest_gradient
            return f"the gradient's norm overflows: {value:.3g} in {name}"
        return "repeated, the step is finite: neither images nor weights explain it"


@dataclass(frozen=True)
class Repeated:
    """A repeated step: what was found, and what the objective said if it came to that."""

    findings: NonFiniteTensors
    outcome: StepLoss | None


def repeat(
    objective: Objective,
    model: nn.Module,
    network: nn.Module,
    feed: Feed,
    execution: Execution,
    ranks: Ranks,
    *,
    step: int,
) -> Repeated:
    """Make the step's loss and gradient once more, from the same draws, and look at everything on the way.

    All ranks must call it together. The weights stay as they are; gradients are those of this rank, and left empty.

    Args:
        model: `network`, possibly compiled.
    """
    network.zero_grad(set_to_none=True)
    seed_global_generators(feed.seed, step, ranks.rank)
    weights = not_finite(network.state_dict())
    network.train()
    outcome: StepLoss | None = None
    features: tuple[str, ...] = ()
    try:
        alone = replace(execution, last_backward=contextlib.nullcontext, wait=True)
        outcome = objective.accumulate(model, feed.batch(step), alone)
    except NonFiniteStepError as error:
        features = error.names
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    broken = not_finite(gradients) if outcome else {}
    largest = {name: float(grad.abs().amax()) for name, grad in gradients.items() if name not in broken}
    norm = _norm(list(gradients.values())) if outcome else None
    network.zero_grad(set_to_none=True)
    terms = _names(outcome.terms if outcome else {})
    here = torch.zeros(ranks.world_size, device=feed.device)
    here[ranks.rank] = float(bool(weights or terms or broken or (features and ranks.world_size == 1)))
    found = NonFiniteTensors(
        weights=weights,
        images=broken_images(feed, step),
        features=list(features),
        terms=terms,
        health=_names(outcome.health if outcome else {}),
        gradients=broken,
        gradient_norm=norm,
        largest_gradient=max(largest.items(), key=lambda pair: pair[1]) if largest and outcome else None,
        ranks=ranks.max(here).nonzero().flatten().tolist(),
    )
    return Repeated(found, outcome)


def broken_images(feed: Feed, step: int) -> list[int]:
    """Numbers in the pack of the images of the global batch that are not finite."""
    found: list[int] = []
    for rank in range(feed.ranks.world_size):
        batch = feed.batch(step, rank=rank)
        assert batch.indices is not None
        wrong = (~torch.isfinite(batch.images)).flatten(1).any(dim=1).cpu()
        found += batch.indices[wrong].tolist()
    return found


def save_inspection(
    run: Run,
    network: nn.Module,
    feed: Feed,
    repeated: Repeated,
    *,
    error: NonFiniteStepError,
    header: Mapping[str, Any],
) -> Path:
    """Write RUN/inspect/step-XXXXXXXX whole or not at all, in place of an earlier one.

    It holds the weights before the update, the real images of the global batch (64 MiB at most) with their numbers in
    the pack, a picture of the first of them, and record.json, which says what is wrong and how to repeat the step.

    Raises:
        OSError: it cannot be written.
    """
    folder = run.path / "inspect" / f"step-{error.step:08d}"
    batch = _global_batch(feed, error.step)
    assert batch.indices is not None
    assert batch.flips is not None
    assert batch.labels is not None
    with atomic_folder(folder) as made:
        write_tensors(
            made / WEIGHTS_FILE, network.state_dict(), header={**header, "weights": "raw", "step": error.step}
        )
        tensors = {"images": batch.images, "indices": batch.indices, "flips": batch.flips, "labels": batch.labels}
        write_tensors(made / BATCH_FILE, tensors)
        save_grid(made / GRID_FILE, to_uint8(batch.images[:GRID_IMAGES].nan_to_num(nan=1.0)).cpu(), columns=8)
        write_json(made / RECORD_FILE, _record(folder, run, feed, repeated, error))
    for old in folder.parent.glob("step-*"):
        if old != folder:
            shutil.rmtree(old)
    return folder


def explained(error: NonFiniteStepError, findings: NonFiniteTensors, saved: Path | str) -> NonFiniteStepError:
    """The same error with the cause, and where the step was saved, or in words why it was not."""
    where = f"saved for inspection in {saved}" if isinstance(saved, Path) else saved
    ranks = f", on ranks {', '.join(map(str, findings.ranks))}" if findings.ranks not in ([], [0]) else ""
    first = str(error).removesuffix(f"; {UNTOUCHED}")
    return error.retold(f"{first} ({findings.cause()}{ranks}); {UNTOUCHED}; {where}")


def _record(folder: Path, run: Run, feed: Feed, repeated: Repeated, error: NonFiniteStepError) -> dict[str, Any]:
    outcome, findings = repeated.outcome, asdict(repeated.findings)
    saved = run.checkpoints()
    code = f"from driftkit.stages.replay import replay; print(replay({str(folder)!r}))"
    return {
        "format": FORMAT,
        "kind": "inspection",
        "driftkit": __version__,
        "created": now(),
        "message": str(error),
        "cause": repeated.findings.cause(),
        "step": error.step,
        "seed": feed.seed,
        "world_size": feed.ranks.world_size,
        "batch_size": feed.batch_size,
        "not_finite": {**findings, "gradient_norm": _storable(findings["gradient_norm"]),
                       "largest_gradient": _storable(findings["largest_gradient"])},
        "repeated": repeated.findings.repeated,
        "loss": _storable(outcome.total) if outcome else None,
        "terms": {name: _storable(value) for name, value in outcome.terms.items()} if outcome else {},
        "health": {name: _storable(value) for name, value in outcome.health.items()} if outcome else {},
        "last_checkpoint": saved[-1].step if saved else None,
        "replay": f"python -c {shlex.quote(code)}",
        "random_draws": "images, flips, noise, masks and dropout follow from seed, step, rank and slot alone",
    }  # fmt: skip


def _global_batch(feed: Feed, step: int) -> Batch:
    """As many images of all ranks as are kept, those that are not finite first, on the CPU."""
    parts = [feed.batch(step, rank=rank) for rank in range(feed.ranks.world_size)]
    images = torch.cat([part.images.cpu() for part in parts])
    indices = torch.cat([part.indices for part in parts if part.indices is not None])
    flips = torch.cat([part.flips for part in parts if part.flips is not None])
    labels = feed.labels[indices]
    wrong = (~torch.isfinite(images)).flatten(1).any(dim=1)
    kept = max(1, min(len(images), MOST_IMAGE_BYTES // images[0].nbytes))
    order = wrong.long().argsort(descending=True, stable=True)[:kept]
    return Batch(images[order], labels[order], range(kept), feed.seed, step, indices=indices[order], flips=flips[order])


def _names(values: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name, value in values.items() if not bool(torch.isfinite(value).all())]


def _norm(gradients: Sequence[torch.Tensor]) -> float:
    return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _storable(value: Any) -> Any:
    """As JSON can hold it: NaN and infinities become text."""
    if isinstance(value, torch.Tensor):
        value = float(value)
    if isinstance(value, tuple):
        return [_storable(item) for item in value]
    return value if not isinstance(value, float) or _finite(value) else str(value)
