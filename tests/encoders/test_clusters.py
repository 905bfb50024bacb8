"""Clusters of images: k-means against its definition in float64, and packs whose classes they are."""

import pytest
import torch

from driftkit.encoders.clusters import cluster_images, image_vectors, k_means
from driftkit.encoders.lineage import PIXELS, kinship, lineage_of_run, read_lineage, training_encoders_of
from driftkit.errors import UsageError
from driftkit.stages.data import ImportConfig, import_data
from driftkit.storage.records import RunManifest
from tests.encoders.loading import load


def blobs(count=5, rows=40, spread=0.05):
    draw = torch.Generator().manual_seed(1)
    centres = torch.randn(count, 8, generator=draw)
    true = torch.arange(count).repeat(rows)
    return centres[true] + spread * torch.randn(count * rows, 8, generator=draw), true


def test_k_means_finds_what_lies_apart():
    rows, true = blobs()
    labels = k_means(rows, 5)
    assert len({(int(a), int(b)) for a, b in zip(labels, true, strict=True)}) == 5
    assert torch.equal(labels, k_means(rows, 5))


def test_k_means_ends_where_lloyds_algorithm_rests():
    rows, _ = blobs(spread=1.0)
    labels = k_means(rows, 4)
    rows = rows.double()
    centres = torch.stack([rows[labels == number].mean(dim=0) for number in range(4)])
    nearest = ((rows[:, None] - centres[None]) ** 2).sum(dim=2).argmin(dim=1)
    assert torch.equal(nearest, labels)


def test_no_cluster_is_empty():
    rows = torch.cat([torch.zeros(50, 2), torch.arange(1, 4)[:, None].float().expand(3, 2)])
    assert torch.bincount(k_means(rows, 4), minlength=4).tolist().count(0) == 0
    assert set(k_means(torch.zeros(6, 2), 3).tolist()) <= {0, 1, 2}  # fewer different rows than clusters


def test_vectors_are_standardised_means_of_the_last_maps():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vectors = image_vectors(images, load("pixel-pyramid"))
    maps = load("pixel-pyramid").maps(images.float() / 127.5 - 1)[-2:]
    parts = [part.values.double().mean(dim=(2, 3)) for part in maps]
    parts = [(p - p.mean(0)) / p.std(0) for p in parts]
    expected = torch.cat([p / p.norm(dim=1, keepdim=True) for p in parts], dim=1)
    torch.testing.assert_close(vectors.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_pack_of_clusters_replaces_the_labels_and_names_the_encoder(tmp_path):
    config = ImportConfig(clusters=3, cluster_encoder="pixel-pyramid", output=tmp_path / "clusters", image_size=16)
    pack, path = import_data("shapes?count=60&image_size=16", config)
    assert pack.classes == ("cluster-0", "cluster-1", "cluster-2")
    assert set(pack.labels.tolist()) == {0, 1, 2}
    assert read_lineage(pack.card.label_encoder) == PIXELS
    assert torch.equal(pack.labels, cluster_images(pack.images, load("pixel-pyramid"), 3))
    assert import_data("shapes?count=60&image_size=16", config)[1] == path  # it is there
    with pytest.raises(UsageError, match="holds something else"):
        import_data("shapes?count=60&image_size=16", config.model_copy(update={"clusters": 4}))
    smaller, _ = import_data(str(path), ImportConfig(output=tmp_path / "smaller", image_size=8, limit=30))
    assert read_lineage(smaller.card.label_encoder) == PIXELS


def test_an_encoder_that_made_the_classes_is_kin_to_itself():
    lite = load("efficientnet-lite0").lineage
    manifest = RunManifest(id="r", created="now", config={"model": {"kind": "unet"}}, label_encoder=lite.describe())
    assert kinship(training_encoders_of(manifest), lite).degree == "kin"
    manifest = manifest.model_copy(update={"inputs": {"data": {"digest": "1234"}}})
    assert lineage_of_run(manifest, "c0").data == ("images 1234", "ImageNet-1k")
