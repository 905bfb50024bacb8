"""Gradients of losses that are sums over images, chunk by chunk."""

from collections.abc import Callable

from driftkit.protocols import Batch, Execution, StepLoss


def accumulate_parts(loss: Callable[[Batch, slice], StepLoss], batch: Batch, execution: Execution) -> StepLoss:
    """Add up the gradients of the parts of a batch.

    Args:
        loss: (part, its slice of the batch) -> its summand of the loss of the whole batch; `total` with gradient.

    Returns:
        The sums over the parts, detached.
    """
    outcome: StepLoss | None = None
    for chunk in execution.chunks(len(batch.slots)):
        with execution.autocast():
            part = loss(batch.part(chunk), chunk)
        with execution.backward_of(chunk, len(batch.slots)):
            part.total.backward()
        part = StepLoss(
            part.total.detach(),
            {name: value.detach() for name, value in part.terms.items()},
            {name: value.detach() for name, value in part.health.items()},
        )
        outcome = part if outcome is None else _sum(outcome, part)
    assert outcome is not None, "a batch has at least one image"
    execution.clock.mark("network")
    return outcome


def _sum(one: StepLoss, other: StepLoss) -> StepLoss:
    return StepLoss(
        one.total + other.total,
        {name: value + other.terms[name] for name, value in one.terms.items()},
        {name: value + other.health[name] for name, value in one.health.items()},
    )
