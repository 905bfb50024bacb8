"""Nearest real images, against a slow literal search."""

import pytest
import torch

from driftkit.comparison import neighbours
from driftkit.comparison.neighbours import nearest
from tests.scoring.fakes import random_images, tiny_extractor


@pytest.mark.parametrize("judge", [None, tiny_extractor()], ids=["pixels", "features"])
def test_neighbours_are_those_of_a_literal_search_whatever_the_chunks(judge, monkeypatch):
    generated, real = random_images(5, 1), random_images(50, 2)
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    done = []
    found = nearest(generated, real, count=3, extractor=judge, advance=done.append)
    for i, image in enumerate(generated):
        if judge is None:
            distances = [float(((image.double() - other.double()) / 255).square().mean().sqrt()) for other in real]
        else:
            features = judge.features(real)[0].double() - judge.features(image[None])[0].double()
            distances = features.norm(dim=1).tolist()
        order = sorted(range(50), key=distances.__getitem__)[:3]
        assert found.indices[i].tolist() == order
        torch.testing.assert_close(found.distances[i], torch.tensor([distances[j] for j in order]))
    assert sum(done) == 50


def test_a_copy_is_found_at_no_distance():
    real = random_images(20, 3)
    found = nearest(real[[7]], real, count=1)
    assert found.indices.tolist() == [[7]]
    assert float(found.distances) < 1e-6


def test_too_few_or_other_images_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        nearest(random_images(2), random_images(2), count=3)
    with pytest.raises(ValueError, match="expected real images of"):
        nearest(random_images(2), random_images(9, size=16))
