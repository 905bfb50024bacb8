"""Clusters of images: k-means against its definition in float64, and packs whose classes they are."""

import pytest
import torch

from driftkit.comparison.run_summary import summarise
from driftkit.config.export_config import ExportConfig
from driftkit.datasets.packs import write_pack
from driftkit.datasets.sources import open_dataset
from driftkit.encoders.clusters import cluster_images, image_vectors, k_means
from driftkit.encoders.lineage import PIXELS, kinship, lineage_of_run, read_lineage, training_encoders_of
from driftkit.errors import RefusedError, UsageError
from driftkit.protocols import FeatureMap
from driftkit.stages.data import ImportConfig, import_data
from driftkit.stages.export import export
from driftkit.storage.records import ClassCount, Clustering, RunManifest
from driftkit.storage.run_folder import Run
from tests.conftest import train_tiny
from tests.encoders.loading import load
from tests.scoring.fakes import score


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


SHAPES = "shapes?count=60&image_size=16"


def clusters_of(folder, spec=SHAPES, **settings):
    config = {"clusters": 3, "cluster_encoder": "pixel-pyramid", "output": folder / "clusters", **settings}
    return import_data(spec, ImportConfig(**config))[0]


def test_a_pack_of_clusters_has_the_same_images_and_names_the_encoder(tmp_path):
    plain = open_dataset(SHAPES)
    pack = clusters_of(tmp_path)
    assert [name.rpartition("-")[2] for name in pack.classes] == ["0", "1", "2"]
    assert set(pack.labels.tolist()) == {0, 1, 2}
    assert torch.equal(pack.labels, cluster_images(pack.images, load("pixel-pyramid"), 3))
    assert read_lineage(pack.card.clusters.lineage) == PIXELS
    assert pack.digest != plain.digest == pack.image_digest
    assert clusters_of(tmp_path).path == pack.path  # it is there
    with pytest.raises(UsageError, match="holds something else"):
        clusters_of(tmp_path, clusters=4)
    assert not set(clusters_of(tmp_path, output=tmp_path / "others", cluster_encoder="pixel").classes) & set(
        pack.classes
    )
    again = clusters_of(tmp_path, spec=str(pack.path), output=tmp_path / "again")
    assert again.image_digest == plain.digest


@pytest.mark.parametrize("change", [{"image_size": 8}, {"limit": 30}])
def test_fewer_or_other_images_are_not_the_same(tmp_path, change):
    pack = clusters_of(tmp_path)
    smaller, _ = import_data(str(pack.path), ImportConfig(output=tmp_path / "smaller", **change))
    assert smaller.card.clusters == pack.card.clusters.of_changed_images()
    assert smaller.image_digest == smaller.digest
    made = clusters_of(tmp_path, spec=str(pack.path), output=tmp_path / "made", **change)
    assert made.image_digest == made.digest
    if "limit" in change:
        assert pack.limited(30).image_digest == smaller.digest


def test_images_that_are_all_alike_make_no_clusters(tmp_path):
    pack = open_dataset(SHAPES)
    images = pack.images[:1].expand(6, -1, -1, -1).contiguous()
    write_pack(tmp_path / "alike", images, torch.zeros(6).long(), ["a"], source=pack.card.source, label="alike")
    with pytest.raises(UsageError, match="`clusters` 3: the encoder finds 1 different images; give no more"):
        clusters_of(tmp_path, spec=str(tmp_path / "alike"))
    assert not (tmp_path / "clusters.safetensors").exists()


def test_features_that_are_not_finite_make_no_clusters():
    class Broken(torch.nn.Module):
        name = "broken"

        def maps(self, images):
            return [FeatureMap("map", images / 0)]

    with pytest.raises(RefusedError, match="broken gives features that are not finite"):
        image_vectors(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), Broken())


def test_an_encoder_that_made_the_classes_is_kin_to_itself():
    lite = load("efficientnet-lite0").lineage
    clusters = Clustering(encoder="efficientnet-lite0", lineage=lite.describe(), images="1234")
    config = {"model": {"kind": "unet", "num_classes": 2}}
    manifest = RunManifest(id="r", created="now", config=config, inputs={"data": {"digest": "5678"}}, clusters=clusters)
    assert training_encoders_of(manifest) == []  # the labels are not learned
    manifest = manifest.model_copy(update={"classes": (ClassCount(name="a", images=1),)})
    assert kinship(training_encoders_of(manifest), lite).degree == "kin"
    of_run = lineage_of_run(manifest, "c0")
    assert (of_run.data, of_run.labels) == (("images 1234", "ImageNet-1k"), False)


def test_runs_on_clusters_know_their_images_and_the_encoder(tmp_path):
    pack = clusters_of(tmp_path, spec="shapes?count=60&image_size=8")
    plain = open_dataset("shapes?count=60&image_size=8")
    settings = {"every": 2, "extractor": "pixels", "num_images": 32, "reference": plain.path}
    scored = [word for key, value in settings.items() for word in ("--set", f"evaluation.{key}={value}")]
    train_tiny(tmp_path / "run", "ddpm", "--class-conditional", "--data", pack.path, *scored)
    run = Run(tmp_path / "run")
    manifest = run.manifest()
    assert (manifest.data_digest, manifest.image_digest) == (pack.digest, plain.digest)
    assert manifest.scored_on_the_way["degree"] == "kin"
    record = score(run.path, str(plain.path), extractor="pixels", num_images=40).record
    assert record.reference.is_training_data
    assert record.training.digest == plain.digest
    assert record.kinship.degree == "kin"
    assert not summarise(run, label="run").learned_labels
    made = export(run, ExportConfig(output=tmp_path / "model", format="safetensors"))
    assert "clusters of what `pixel-pyramid` sees in the images" in (made.folder / "README.md").read_text()
