"""Gradients of losses that are sums over images, chunk by chunk."""

from collections.abc import Callable

from driftkit.protocols import Batch, Execution, StepLoss


def accumulate_parts(loss: Callable[[Batch, slice], StepLoss], batch: Batch, how: Execution) -> StepLoss:
    """Add up the gradients of the parts of a batch.

    Args:
        loss: what a part, which stands at a slice of the batch, adds to the loss of the whole batch; `total` with
            gradient.

    Returns:
        The sums over the parts, detached.
    """
    outcome: StepLoss | None = None
    for which in how.chunks(len(batch.slots)):
        with how.autocast():
            part = loss(batch.part(which), which)
        with how.backward_of(which, len(batch.slots)):
            part.total.backward()
        part = StepLoss(
            part.total.detach(),
            {name: value.detach() for name, value in part.terms.items()},
            {name: value.detach() for name, value in part.health.items()},
        )
        outcome = part if outcome is None else _sum(outcome, part)
    assert outcome is not None, "a batch has at least one image"
    how.clock.mark("network")
    return outcome


def _sum(one: StepLoss, other: StepLoss) -> StepLoss:
    return StepLoss(
        one.total + other.total,
        {name: value + other.terms[name] for name, value in one.terms.items()},
        {name: value + other.health[name] for name, value in one.health.items()},
    )
