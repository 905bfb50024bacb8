"""Precision, recall, density, coverage and nearest images: literal formulas, torch-fidelity, and bounded memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity import metric_prc

from driftkit.metrics import manifold
from driftkit.metrics.manifold import manifold_scores, nearest_images
from tests.metrics.conftest import draw


def literal_manifold(fake, real, k, dense):
    """Everything of whole matrices of distances in float64."""
    fake, real = fake.double(), real.double()
    own_fake, own_real, cross = torch.cdist(fake, fake), torch.cdist(real, real), torch.cdist(fake, real)
    radius_fake = own_fake.kthvalue(k + 1).values
    radius_real, dense_real = own_real.kthvalue(k + 1).values, own_real.kthvalue(dense + 1).values
    return {
        "precision": float((cross <= radius_real).any(1).double().mean()),
        "recall": float((cross <= radius_fake[:, None]).any(0).double().mean()),
        "density": float((cross <= dense_real).double().sum() / dense / len(fake)),
        "coverage": float((cross <= dense_real).any(0).double().mean()),
    }


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(7, 60), others=st.integers(7, 60), dim=st.integers(1, 12), seed=st.integers(0, 99),
    chunk=st.integers(100, 6000), shift=st.floats(0, 2),
)  # fmt: skip
def test_manifold_scores_are_the_literal_ones_whatever_the_chunks(count, others, dim, seed, chunk, shift):
    fake, real = draw(count, seed, shift, dim), draw(others, seed + 1000, dim=dim)
    before, manifold.CHUNK_BYTES = manifold.CHUNK_BYTES, chunk
    try:
        got = manifold_scores(fake, real)
    finally:
        manifold.CHUNK_BYTES = before
    assert got == pytest.approx(literal_manifold(fake, real, 3, 5), abs=1e-9)


def test_precision_and_recall_are_torch_fidelitys():
    fake, real = draw(500, 0, 0.4, dim=32), draw(500, 1, dim=32)
    got = manifold_scores(fake, real)
    theirs = metric_prc.prc_features_to_metric(
        fake, real, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=True, verbose=False
    )
    for name in ("precision", "recall"):
        assert got[name] == pytest.approx(theirs[name], abs=1e-6)


def test_distances_are_never_whole(monkeypatch):
    """The largest tensor that scoring 1,000 x 1,000 makes, with a chunk of 64 KiB, is far below 4 MB."""
    from torch.profiler import ProfilerActivity, profile

    monkeypatch.setattr(manifold, "CHUNK_BYTES", 2**16)
    fake, real = draw(1000, 0), draw(1000, 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        manifold_scores(fake, real)
    largest = max(e.nbytes() for e in watched.profiler.kineto_results.events() if e.name() == "[memory]")
    assert largest < 2**18


def test_nearest_images_are_found_and_copies_are_at_zero():
    bank = draw(50, 0) * 100
    queries = torch.cat([bank[7:8], bank[3:4] + 1e-3])
    distance, index = nearest_images(queries, bank)
    assert index.tolist() == [7, 3]
    assert float(distance[0]) == 0
    assert float(distance[1]) == pytest.approx(1e-3 * 10**0.5, rel=0.05)
    _, others = nearest_images(bank, bank, themselves=torch.arange(50))
    assert bool((others != torch.arange(50)).all())
