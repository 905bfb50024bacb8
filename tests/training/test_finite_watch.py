"""Numbers that are not finite stop a run, at once or when they are asked for, and nothing is updated with them."""

import pytest
import torch

from driftkit.errors import DriftkitError
from driftkit.protocols import StepLoss
from driftkit.runtime.ranks import Ranks
from driftkit.training.finite_watch import FiniteWatch
from driftkit.training.optim import adamw

GOOD, BAD = torch.tensor(1.0), torch.tensor(torch.nan)


def loss(total: torch.Tensor, **terms: torch.Tensor) -> StepLoss:
    return StepLoss(total, terms)


@pytest.mark.parametrize(
    ("outcome", "norm", "words"),
    [
        (loss(BAD, a=GOOD, b=BAD), GOOD, "loss is not finite at step 2: b;"),
        (loss(BAD, a=GOOD), GOOD, "loss is not finite at step 2: the total;"),
        (loss(GOOD, a=GOOD), torch.tensor(torch.inf), "gradient is not finite at step 2 \\(loss 1\\)"),
    ],
)
def test_the_first_bad_step_is_named_however_late_one_asks(outcome, norm, words):
    watch = FiniteWatch(Ranks(), deferred=True)
    good = loss(GOOD, **dict.fromkeys(outcome.terms, GOOD))
    watch.check()
    for step in range(2):
        watch.see(good, GOOD, step=step)
        watch.check()
        assert watch.last == 0
    watch.see(outcome, norm, step=2)
    watch.see(good, GOOD, step=3)
    watch.see(loss(BAD, **dict.fromkeys(outcome.terms, BAD)), BAD, step=4)
    assert watch.last == 1
    with pytest.raises(DriftkitError, match=words):
        watch.check()


def test_a_held_back_update_leaves_weights_and_moments_as_they_were():
    network = torch.nn.Linear(3, 2)
    optimizer = adamw(network, learning_rate=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in network.parameters()]
    state = [v.clone() for s in optimizer.state.values() for v in s.values()]
    for p in network.parameters():
        p.grad.fill_(torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(state, (v for s in optimizer.state.values() for v in s.values()), strict=True)
    )
    optimizer.found_inf = torch.tensor(0.0)
    network.zero_grad()
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before[0], network.weight)


def test_terms_may_join_in():
    watch = FiniteWatch(Ranks(), deferred=True)
    watch.see(loss(GOOD, a=GOOD), GOOD, step=0)
    watch.see(loss(BAD, a=GOOD, b=BAD), GOOD, step=1)
    with pytest.raises(DriftkitError, match="step 1: b"):
        watch.see(loss(GOOD, a=GOOD), GOOD, step=2)


class PairedRanks(Ranks):
    """Rank 0 of two, with what the other one sends."""

    other = torch.zeros(4)
    messages = 0

    def max(self, value):
        PairedRanks.messages += 1
        return torch.maximum(value, self.other)


def test_a_request_to_stop_travels_with_the_flags_of_the_step():
    ranks = PairedRanks(world_size=2)
    watch = FiniteWatch(ranks, deferred=True)
    for step, (own, others, agreed) in enumerate([(0, 0, 0), (0, 15, 15), (2, 15, 15), (1, 0, 1)]):
        PairedRanks.other = torch.tensor([0.0, 0.0, 0.0, others])
        watch.see(loss(GOOD, a=GOOD), GOOD, step=step, stop=own)
        assert watch.stop == agreed
        assert watch.last == 0, "a signal is no number that is not finite"
    assert PairedRanks.messages == 4, "one message a step"
    PairedRanks.other = torch.tensor([1.0, 1.0, 0.0, 0.0])
    watch.see(loss(GOOD, a=GOOD), GOOD, step=4)
    with pytest.raises(DriftkitError, match="loss is not finite at step 4: a"):
        watch.check()


def test_a_world_of_one_sends_nothing():
    watch = FiniteWatch(Ranks(), deferred=True)
    watch.see(loss(GOOD, a=GOOD), GOOD, step=0, stop=15)
    assert watch.stop is None
