"""What processes say to one another, with two real ones; the field over ranks has tests of its own."""

import contextlib
import functools
import time
from pathlib import Path

import pytest
import torch

from driftkit.errors import DriftkitError
from driftkit.runtime.ranks import Ranks
from tests.on_ranks import run_on_ranks

WORLD = 2
ROWS = (3, 5, 1)
CHANNELS = (4, 4, 1)


def tensors(rank: int) -> list[torch.Tensor]:
    """Three tensors [2, n, C] whose entries name their rank and place; the second is not contiguous."""
    made = []
    for number, (rows, channels) in enumerate(zip(ROWS, CHANNELS, strict=True)):
        values = torch.arange(2 * rows * channels, dtype=torch.float32).view(2, channels, rows)
        made.append((values + 1000 * rank + 100 * number).mT)
    return made


def refused(ranks: Ranks, parts: list[torch.Tensor]) -> str:
    try:
        ranks.start_gather(parts)
    except DriftkitError as problem:
        return str(problem)
    return "went through"


def unequal(ranks: Ranks, values: dict[str, str]) -> list:
    try:
        ranks.require_equal(values)
    except DriftkitError as problem:
        return [str(problem), problem.on_all_ranks]
    return []


def turns(ranks: Ranks, folder: Path) -> list[bool]:
    """Whether the cache was filled when a rank came to it; the second time the first rank fails at it."""
    filled = []
    for name in ("cache", "other"):
        with contextlib.suppress(OSError), ranks.first_alone():
            filled.append((folder / name).exists())
            if ranks.is_main:
                time.sleep(0.3)
                if name == "other":
                    raise OSError("no network")
                (folder / name).touch()
    return filled


def work(ranks: Ranks, folder: Path) -> dict:
    rank = ranks.rank
    parts = tensors(rank)
    first, second = ranks.start_gather(parts), ranks.start_gather([parts[2].requires_grad_()])
    out = {f"second/{i}": t for i, t in enumerate(second.wait())}  # in another order than they were begun
    out |= {f"first/{i}": t for i, t in enumerate(first.wait())}
    assert all(a is b for a, b in zip(first.wait(), first.wait(), strict=True))
    out["traffic"] = torch.tensor([ranks.traffic.gathers, ranks.traffic.gathered_bytes])
    (wide,) = ranks.start_gather([parts[0].double()]).wait()
    mixed = ranks.start_gather([parts[0].bfloat16(), parts[1]]).wait()
    out |= {"wide": wide, "mixed/0": mixed[0], "mixed/1": mixed[1]}
    one = torch.ones(2, 3, 4)
    out["messages"] = [
        refused(ranks, [one[:, : 3 - rank], one]),
        refused(ranks, [one, one[:, : 3 - rank]]),
        refused(ranks, [one[..., : 4 - rank]]),
        refused(ranks, [one] * (1 + rank)),
        refused(ranks, [one.double() if rank else one]),
        refused(ranks, [one]),  # all agree again: what went before left nothing behind
    ]
    out["turns"] = turns(ranks, folder)
    out["unequal"] = unequal(ranks, {"the step": "3", "the network": f"digest {rank}"})
    out["equal"] = unequal(ranks, {"the step": "3", "the network": "digest"})
    value = torch.tensor([1.0, 2.0]) * (1 + rank)
    out |= {"sum": ranks.sum(value), "max": ranks.max(-value), "mean": ranks.mean(value), "value": value}
    return out


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    return run_on_ranks(functools.partial(work, folder=folder), WORLD, folder)


def test_tensors_arrive_in_rank_order_without_gradient(told):
    want = [torch.cat(parts, dim=1) for parts in zip(*(tensors(rank) for rank in range(WORLD)), strict=True)]
    for out in told:
        for number, tensor in enumerate(want):
            assert torch.equal(out[f"first/{number}"], tensor)
        assert torch.equal(out["second/0"], want[2])
        assert not out["second/0"].requires_grad


def test_types_are_kept_or_widened(told):
    for out in told:
        assert out["wide"].dtype == torch.float64
        assert {out["mixed/0"].dtype, out["mixed/1"].dtype} == {torch.float32}
        assert torch.equal(out["mixed/1"], out["first/1"])


def test_traffic_counts_what_comes_from_others(told):
    floats = sum(2 * rows * channels for rows, channels in zip(ROWS, CHANNELS, strict=True)) + 2 * ROWS[2]
    for out in told:
        assert out["traffic"].tolist() == [2, 4 * floats * (WORLD - 1)]


def test_ranks_that_disagree_are_all_refused(told):
    for rank, out in enumerate(told):
        rows, positives, channels, number, types, agreed = out["messages"]
        assert rows == "ranks hold different batch sizes [3, 2]; give every rank the same `trainer.batch_size`"
        head = f"ranks hold features of different shapes or types; rank {rank} has "
        assert positives == f"{head}float32 [2, 3, 4] and [2, {3 - rank}, 4]"
        assert channels == f"{head}float32 [2, 3, {4 - rank}]"
        assert number == f"{head}float32 {' and '.join(['[2, 3, 4]'] * (1 + rank))}"
        assert types == f"{head}{('float32', 'float64')[rank]} [2, 3, 4]"
        assert agreed == "went through"


def test_values_are_reduced(told):
    for rank, out in enumerate(told):
        assert out["value"].tolist() == [1.0 + rank, 2.0 + 2 * rank]  # reductions leave their argument alone
        assert out["sum"].tolist() == [3.0, 6.0]
        assert out["max"].tolist() == [-1.0, -2.0]
        assert out["mean"].tolist() == [1.5, 3.0]


def test_rank_0_goes_first_and_the_others_go_on_even_if_it_fails(told):
    assert [out["turns"] for out in told] == [[False, False], [True, False]]


def test_ranks_that_differ_are_named_on_all_of_them(told):
    for out in told:
        message, on_all_ranks = out["unequal"]
        assert message.startswith("the network of rank 1 is not that of the other ranks")
        assert on_all_ranks
        assert out["equal"] == []


def test_a_world_of_one_copies_and_counts_nothing():
    ranks, tensor = Ranks(), torch.randn(2, 3, 4, requires_grad=True)
    (same,) = ranks.start_gather([tensor]).wait()
    assert same.data_ptr() == tensor.data_ptr()
    assert not same.requires_grad
    assert ranks.traffic.gathers == ranks.traffic.gathered_bytes == 0
    assert ranks.sum(tensor) is tensor
