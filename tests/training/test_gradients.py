"""Gradients are averaged over ranks from flat buffers, and begin to travel before the backward pass ends."""

import contextlib

import pytest
import torch
import torch.distributed as dist

from driftkit.runtime.ranks import Ranks
from driftkit.training.gradients import GradientExchange
from driftkit.training.optimizer import adamw
from tests.conftest import first_is_fast
from tests.on_ranks import run_on_ranks

WORLD, LAYERS, BATCH = 2, 6, 8


class Network(torch.nn.Module):
    """Convolutions, one of which no loss reaches, and a head that joins in later."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(LAYERS))
        self.unused = torch.nn.Conv2d(4, 4, 3)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x, *, with_head=False):
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x.mean((2, 3))) if with_head else x


def images():
    return torch.randn(BATCH, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def train(ranks, *, signalled=True, events=None):
    """Three steps in two micro-batches each; the head joins in with the third. Gradients of each, and the weights."""
    network = Network().to(memory_format=torch.channels_last)
    optimizer = adamw(network, learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    exchange = GradientExchange(network.parameters(), ranks, bucket_bytes=600)
    share = BATCH // ranks.world_size
    own = images()[ranks.rank * share : (ranks.rank + 1) * share]
    if events is not None:
        for name, parameter in network.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: events.append(f"gradient {name}"))
    seen = []
    for step in range(3):
        halves = own.split(share // 2)
        for number, part in enumerate(halves):
            loss = network(part).square().sum() / share
            if step == 2:  # the network runs twice before one backward pass, as for MAE with its classifier
                loss = loss + network(part, with_head=True).square().sum() / share
            is_last = signalled and number == len(halves) - 1
            with exchange.last_backward() if is_last else contextlib.nullcontext():
                loss.backward()
                if events is not None:
                    events.append("backward ends")
        exchange.finish()
        seen.append({n: None if p.grad is None else p.grad.clone() for n, p in network.named_parameters()})
        optimizer.step()
        exchange.clear()
    return seen, network.state_dict(), {n: len(optimizer.state[p]) for n, p in network.named_parameters()}


def work(ranks: Ranks) -> dict:
    events: list[str] = []
    reduce = dist.all_reduce

    def watched(tensor, **options):
        events.append(f"reduction of {tensor.numel()}")
        return reduce(tensor, **options)

    dist.all_reduce = watched
    out = {"signalled": train(ranks, events=events), "events": list(events)}
    events.clear()
    out |= {"afterwards": train(ranks, signalled=False, events=events), "late events": list(events)}
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(work, WORLD, tmp_path_factory.mktemp("gradients"))


@pytest.mark.slow
@pytest.mark.parametrize("which", first_is_fast("afterwards", "signalled"))
def test_they_are_those_of_one_process_with_the_joint_batch(ranks, which):
    want, weights, _ = train(Ranks())
    for out in ranks:
        got, got_weights, _ = out[which]
        for mine, whole in zip(got, want, strict=True):
            for name, gradient in whole.items():
                assert (mine[name] is None) == (gradient is None), name
                if gradient is not None:
                    assert mine[name].stride() == gradient.stride(), "another layout would be copied"
                    assert (mine[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
        for name, value in weights.items():
            torch.testing.assert_close(got_weights[name], value, rtol=1e-3, atol=1e-4)


def test_ranks_hold_the_same_weights(ranks):
    for which in ("signalled", "afterwards"):
        one, other = (out[which][1] for out in ranks)
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_parameters_without_gradient_are_passed_over_by_the_optimizer(ranks):
    _, initial = None, Network().state_dict()
    for out in ranks:
        gradients, weights, state = out["signalled"]
        assert torch.equal(weights["unused.weight"], initial["unused.weight"]), "no weight decay"
        assert state["unused.weight"] == 0
        assert [step["head.weight"] is None for step in gradients] == [True, True, False]
        assert state["head.weight"] > 0


def passes(events):
    """What happened in each backward pass: two of each step, the second with what followed it."""
    found = [[]]
    for event in events:
        found[-1].append(event)
        if event == "backward ends":
            found.append([])
    return found


def test_reductions_begin_before_the_last_backward_pass_ends_and_only_then(ranks):
    for out in ranks:
        _, _, earlier, last, *_ = passes(out["events"])
        # The first step has shown that the last layers get no gradient, so that the others no longer wait for them.
        kinds = [event.split()[0] for event in earlier]
        assert "reduction" not in kinds[kinds.index("gradient") :], "nothing leaves before the last pass"
        kinds = [event.split()[0] for event in last]
        assert kinds.index("reduction") < len(kinds) - 1 - kinds[::-1].index("gradient"), (
            "more gradients come meanwhile"
        )
        late = passes(out["late events"])
        assert not [event for event in late[3] if event.startswith("reduction")], "nobody said that it is the last pass"


def test_every_buffer_travels_once_a_step(ranks):
    numbers = sum(p.numel() for p in Network().parameters())
    for out in ranks:
        for which in ("events", "late events"):
            sent = [int(event.split()[-1]) for event in out[which] if event.startswith("reduction")]
            assert sum(sent) == 3 * numbers


def test_the_order_of_reductions_is_that_of_the_other_rank(ranks):
    one, other = ([e for e in out["events"] if e.startswith("reduction")] for out in ranks)
    assert one == other
    assert len(set(one)) > 1


def test_a_world_of_one_leaves_gradients_to_torch():
    network = Network()
    exchange = GradientExchange(network.parameters(), Ranks())
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in network.parameters())
    with exchange.last_backward():
        network(images()).sum().backward()
    kept = {p: p.grad for p in network.parameters()}
    exchange.finish()
    assert all(p.grad is gradient for p, gradient in kept.items())
    exchange.clear()
    assert all(p.grad is None for p in network.parameters())
