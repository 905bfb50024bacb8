"""Features of a set: streamed, shared among ranks, and the same in the end."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftkit.errors import DriftkitError, RefusedError
from driftkit.metrics.moments import Moments
from driftkit.runtime.ranks import Ranks, together
from driftkit.scoring.extraction import Extractor, extract, gather_rows, kept_indices
from driftkit.scoring.image_set import ImageSet, ScoringExecution, Share, default_batch_size
from tests.conftest import first_is_fast
from tests.cuda.fake import CUDA, fake_cuda, watching
from tests.on_ranks import run_on_ranks
from tests.scoring.fakes import random_images, tiny_extractor

COUNT, BATCH = 50, 8


def small_blocks():
    """The tiny extractor with blocks of 16 images."""
    return replace(tiny_extractor(), block_rows=16)


@given(total=st.integers(1, 300), batch_size=st.integers(1, 70), world=st.integers(1, 9))
def test_shares_are_whole_batches_in_order_and_miss_nothing(total, batch_size, world):
    shares = [Share.of(total, batch_size=batch_size, ranks=Ranks(rank, world)) for rank in range(world)]
    assert [i for share in shares for i in range(share.first, share.last)] == list(range(total))
    assert all(share.first % batch_size == 0 or not len(share) for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) < 2 * batch_size


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_streamed_moments_are_those_of_all_features(batch_size):
    images = random_images(COUNT)
    rows, _ = tiny_extractor().features(images)
    found = extract(small_blocks(), ImageSet.of_tensor(images), ScoringExecution(batch_size), max_rows=20)
    torch.testing.assert_close(found.moments.scatter, Moments.of(rows).scatter, rtol=1e-5, atol=1e-5)
    assert len(found) == COUNT
    assert len(found.rows) == 20
    torch.testing.assert_close(found.rows, rows[found.indices], rtol=1e-6, atol=1e-6)
    assert torch.equal(found.indices, kept_indices(COUNT, 20))
    assert len(found.survey) == COUNT


@pytest.mark.parametrize("batch_size", [1, 7, 16, 33])
def test_blocks_have_the_same_size_whatever_the_batch_and_miss_nothing(batch_size):
    images, seen = random_images(COUNT), []
    blocks = list(small_blocks().blocks(images, batch_size=batch_size, advance=seen.append))
    assert [len(values) for values, _ in blocks] == [16, 16, 16, 2]
    torch.testing.assert_close(torch.cat([values for values, _ in blocks]), tiny_extractor().features(images)[0])
    assert sum(seen) == COUNT


def test_moments_are_a_literal_sum_in_float64():
    images = random_images(COUNT)
    rows = [row.tolist() for row in tiny_extractor().features(images)[0]]
    found = extract(tiny_extractor(), ImageSet.of_tensor(images), ScoringExecution(7))
    for i in range(12):
        mean = sum(row[i] for row in rows) / COUNT
        assert float(found.moments.mean[i]) == pytest.approx(mean, rel=1e-10)
        for j in range(12):
            other = sum(row[j] for row in rows) / COUNT
            scatter = sum((row[i] - mean) * (row[j] - other) for row in rows)
            assert float(found.moments.scatter[i, j]) == pytest.approx(scatter, rel=1e-10, abs=1e-10)


def test_extraction_waits_for_a_gpu_once_per_block_and_sums_there():
    with fake_cuda() as watched, watching(watched):
        projection = torch.zeros(3 * 8 * 8, 6, device=CUDA)
        extractor = Extractor(
            "x", "1", "0", "none", 6, lambda i: (i.float().flatten(1) @ projection, None), CUDA, block_rows=16
        )
        moments = Moments(6, device=CUDA)
        for values, _ in extractor.blocks(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), batch_size=4):
            assert values.device == CUDA
            moments.update(values)
        assert (moments.scatter.device, moments.scatter.dtype) == (CUDA, torch.float64)
    assert len(watched.waits) == 3, watched  # blocks of 16, 16 and 8 images, each asked whether it is finite
    assert all("reads a value" in wait for wait in watched.waits), watched


def test_a_gpu_gets_larger_batches():
    assert default_batch_size(torch.device("cuda", 1)) == 256
    assert default_batch_size(torch.device("cpu")) == default_batch_size(torch.device("mps")) == 64


def work(ranks):
    rank = ranks.rank
    images = random_images(COUNT)
    share = Share.of(COUNT, batch_size=BATCH, ranks=ranks)
    shared = ImageSet("images", images[share.first : share.last], share)
    found = extract(tiny_extractor(), shared, ScoringExecution(BATCH, ranks=ranks), max_rows=30)
    out = {"rows": found.rows, "indices": found.indices, "mean": found.moments.mean, "scatter": found.moments.scatter}
    out |= {"digests": found.survey.digests, "uneven": gather_rows(torch.full((rank, 2), float(rank)), ranks)}
    try:
        together(lambda: 1 / (1 - rank), ranks)
    except (ZeroDivisionError, DriftkitError) as problem:
        out["problem"] = f"{type(problem).__name__}: {problem}"
    return out


@pytest.mark.slow
@pytest.mark.parametrize("world", first_is_fast(2, 3))
def test_ranks_together_make_what_one_process_makes(tmp_path, world):
    first, *others = run_on_ranks(work, world, tmp_path)
    whole = extract(tiny_extractor(), ImageSet.of_tensor(random_images(COUNT)), ScoringExecution(BATCH), max_rows=30)
    assert torch.equal(first["rows"], whole.rows)
    assert torch.equal(first["indices"], whole.indices)
    assert torch.equal(first["digests"], whole.survey.digests)
    torch.testing.assert_close(first["mean"], whole.moments.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first["scatter"], whole.moments.scatter, rtol=1e-9, atol=1e-9)
    assert first["uneven"].tolist() == [[float(r)] * 2 for r in range(world) for _ in range(r)]
    for other in others:
        assert len(other["rows"]) == 0
    problems = [part["problem"] for part in (first, *others)]
    assert problems[1].startswith("ZeroDivisionError")
    assert all("another process" in p for i, p in enumerate(problems) if i != 1)


def test_features_that_are_not_finite_stop_the_set():
    broken = tiny_extractor()
    object.__setattr__(broken, "embed", lambda images: (torch.full((len(images), 12), torch.inf), None))
    with pytest.raises(RefusedError, match="not finite"):
        extract(broken, ImageSet.of_tensor(random_images(12)), ScoringExecution())
