"""The field of a batch that is spread over processes equals that of the batch in one process."""

import pytest
import torch

from driftkit.errors import DriftkitError, NonFiniteError
from driftkit.methods.drifting import aggregated_drift, drift_loss, share_features
from driftkit.methods.drifting.cost import FieldCost
from driftkit.runtime.ranks import Ranks
from tests.on_ranks import run_on_ranks

ROWS = 12  # of the whole batch: 2, 3 and 4 divide it
CASES = {
    "map": {"scale_over": "map"},
    "location": {"scale_over": "location"},
    "groups": {"scale_over": torch.tensor([1, 0, 1])},
    "one field at a time": {"scale_over": "map", "chunk_bytes": 1},
    "floor": {"scale_over": "location", "affinity_floor": 1e-2},
    "sharp": {"scale_over": "map", "taus": (0.005,)},
    "without waiting": {"scale_over": "map", "wait": False},
    "without waiting, one field at a time": {"scale_over": torch.tensor([1, 0, 1]), "wait": False, "chunk_bytes": 1},
    "rows": {"normalisation": "rows", "taus": (0.1, 0.5)},
    "unnormalised": {"normalisation": "none", "taus": (0.1, 0.5)},
    "sinkhorn": {"normalisation": "sinkhorn(3)", "kernel": "gaussian", "taus": (0.3,)},
}


def batch(*, far: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, pos, neg = (torch.randn((3, ROWS, 6), generator=generator) for _ in range(3))
    if far:  # beyond the range of one exponential: softmaxes are made in logarithms
        x, pos = x + 200 * (torch.arange(ROWS) % 2)[:, None], pos + 200 * (torch.arange(ROWS) % 3)[:, None]
    return x, pos + 1, neg, torch.rand((3, ROWS), generator=generator)


def inputs() -> dict[str, tuple[tuple[torch.Tensor, ...], dict]]:
    x, pos, neg, weight = batch()
    plain = {name: ((x, pos), options) for name, options in CASES.items()}
    plain["clusters far apart"] = (batch(far=True)[:2], {"scale_over": "location"})
    plain["negatives"] = ((x, pos, neg), {})
    plain["weighted negatives"] = ((x, pos, neg, weight), {"scale_over": "location"})
    return plain


def field(tensors: tuple[torch.Tensor, ...], options: dict, ranks: Ranks):
    mine = slice(ranks.rank * ROWS // ranks.world_size, (ranks.rank + 1) * ROWS // ranks.world_size)
    x, pos, *rest = (t[:, mine] for t in tensors)
    weight = rest[1] if len(rest) > 1 else None
    return aggregated_drift(x, pos, rest[0] if rest else None, negative_weight=weight, ranks=ranks, **options)


def work(ranks: Ranks) -> dict[str, torch.Tensor | str]:
    rank, world = ranks.rank, ranks.world_size
    out: dict[str, torch.Tensor | str] = {}
    for name, (tensors, options) in inputs().items():
        for key, value in vars(field(tensors, options, ranks)).items():
            out[f"{name}/{key}"] = value
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    x, pos = (t[:, mine].clone() for t in batch()[:2])
    x.requires_grad_()
    before = ranks.traffic.gathered_bytes, ranks.traffic.gathers
    shared = share_features(x, pos, ranks=ranks)
    drift_loss(x, aggregated_drift(x, pos, ranks=ranks, shared=shared)).sum().backward()
    out["gradient"] = x.grad
    out["traffic"] = torch.tensor([ranks.traffic.gathered_bytes - before[0], ranks.traffic.gathers - before[1]])
    for name, (uneven, error) in {
        "uneven": (x.detach()[:, : x.shape[1] - (rank == world - 1)], DriftkitError),
        "not finite": (torch.where(torch.tensor(rank == 1), torch.nan, x.detach()), NonFiniteError),
        "mixed types": (x.detach().double() if rank == 0 else x.detach(), DriftkitError),
    }.items():
        try:
            aggregated_drift(uneven, pos, ranks=ranks)
        except error as problem:
            out[name] = str(problem)
    return out


@pytest.mark.parametrize("world", [3, *(pytest.param(world, marks=pytest.mark.slow) for world in (2, 4))])
def test_field_over_ranks_equals_that_of_the_whole_batch(tmp_path, world):
    parts = run_on_ranks(work, world, tmp_path)
    for name, (tensors, options) in inputs().items():
        whole = field(tensors, options, Ranks())
        joined = torch.cat([part[f"{name}/v"] for part in parts], dim=1)
        assert (joined - whole.v).norm() <= 1e-5 * whole.v.norm(), name
        for key in ("feature_scale", "drift_scale", "effective_points", "logit_range"):
            for part in parts:
                torch.testing.assert_close(part[f"{name}/{key}"], getattr(whole, key), rtol=1e-5, atol=1e-30)
    x, pos = batch()[:2]
    x.requires_grad_()
    drift_loss(x, aggregated_drift(x, pos)).sum().backward()
    joined = torch.cat([part["gradient"] for part in parts], dim=1) / world  # gradients are averaged over ranks
    assert (joined - x.grad).norm() <= 1e-5 * x.grad.norm()
    received = FieldCost(((3, 6),)).gathered_bytes(rows=ROWS // world, ranks=world)  # as the budget says on paper
    assert received == 2 * 3 * (ROWS - ROWS // world) * 6 * 4  # generated and positives of the others, float32
    for part in parts:
        assert part["traffic"].tolist() == [received, 1]
        counts = [ROWS // world] * (world - 1) + [ROWS // world - 1]
        assert f"ranks hold different batch sizes {counts}" in part["uneven"]
        assert "field 0 are not finite" in part["not finite"]
        assert "different shapes or types" in part["mixed types"]
