"""Features of real images from disk: what they are, when they are made anew, and what is refused."""

import dataclasses
import json
import shutil
from collections import namedtuple

import pytest
import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_cache import FeatureSource, open_cache
from driftkit.encoders.feature_sets import feature_set
from driftkit.encoders.trained_encoder import MAEEncoder
from driftkit.errors import ArtifactError, DriftkitError, ResourceError
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.protocols import Execution
from driftkit.runtime.ranks import Ranks
from driftkit.storage.files import read_tensors, state_digest, write_tensors
from driftkit.storage.images import to_float
from driftkit.training.feed import Feed
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, setting, train_tiny

Usage = namedtuple("Usage", "total used free")


class Counting(MAEEncoder):
    """Counts the images it encodes."""

    seen = 0

    def maps(self, images):
        self.seen += len(images)
        return super().maps(images)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    frozen = Counting("mae", MAEResNet(MAEResNetConfig(base_channels=8, num_blocks=(1, 1, 1, 1))), input_size=16)
    frozen.freeze()
    return frozen


def images(count=20):
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def opened(encoder, root, *, feature_set_name="paper", flips=True, ranks=None, **key):
    source = FeatureSource(encoder, feature_set(feature_set_name), {"data": "d", **key}, torch.device("cpu"))
    return open_cache(root, images(), source, flips=flips, ranks=ranks or Ranks(), shard_images=8)


def test_cached_groups_are_those_of_the_encoder_for_originals_and_mirror_images(encoder, tmp_path):
    cache = opened(encoder, tmp_path)
    indices, flips = torch.tensor([19, 0, 8, 8, 7]), torch.tensor([True, False, True, False, True])
    real = to_float(images()[indices])
    real = torch.where(flips.view(-1, 1, 1, 1), real.flip(-1), real)
    every = to_float(images())
    want = feature_set("paper")(encoder.maps(real), real)
    means = {g.name: g.values.mean(dim=1, keepdim=True) for g in feature_set("paper")(encoder.maps(every), every)}
    got = cache.groups(indices, flips, device=torch.device("cpu"))
    assert [g.name for g in got] == [g.name for g in want]
    for a, b in zip(got, want, strict=True):
        assert a.values.dtype == torch.float32
        spread = (b.values - means[a.name]).abs()
        assert ((a.values - b.values).abs() <= 2**-8 * spread + 1e-5).all(), a.name  # bfloat16 of the difference


def test_a_second_run_encodes_nothing_but_one_image(encoder, tmp_path):
    opened(encoder, tmp_path)
    assert encoder.seen == 1 + 20 + 2 * 20  # the layout, the mean, originals and mirror images
    encoder.seen = 0
    opened(encoder, tmp_path)
    assert encoder.seen == 1  # for the layout


def test_an_interrupted_build_goes_on_where_it_stopped(encoder, tmp_path):
    folder = opened(encoder, tmp_path).folder
    (folder / "shard-00001.safetensors").unlink()
    encoder.seen = 0
    opened(encoder, tmp_path)
    assert encoder.seen == 1 + 2 * 8


@pytest.mark.parametrize(
    "change", [{"data": "x"}, {"weights": "x"}, {"feature_set_name": "multires"}, {"flips": False}]
)
def test_whatever_the_features_follow_from_makes_another_cache(encoder, tmp_path, change):
    assert opened(encoder, tmp_path).folder != opened(encoder, tmp_path, **change).folder


def test_ranks_share_the_shards(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "barrier", lambda self: None)
    monkeypatch.setattr(Ranks, "max", lambda self, value: value)
    with pytest.raises(ArtifactError, match="shard-00001"):  # that of rank 1, for which no barrier waits here
        opened(encoder, tmp_path, ranks=Ranks(0, 2))
    assert encoder.seen == 1 + 20 + 2 * (8 + 4)
    shutil.move(next(tmp_path.iterdir()) / "shard-00000.safetensors", tmp_path / "aside")
    shutil.move(next(tmp_path.glob("*/shard-00002.safetensors")), tmp_path / "aside2")
    encoder.seen = 0
    with pytest.raises(ArtifactError, match="shard-00000"):
        opened(encoder, tmp_path, ranks=Ranks(1, 2))
    assert encoder.seen == 1 + 2 * 8


def test_features_that_are_not_finite_are_not_cached(encoder, tmp_path):
    encoder.stem.weight.data.fill_(float("nan"))
    with pytest.raises(DriftkitError, match="stage1"):
        opened(encoder, tmp_path)
    assert not list(tmp_path.rglob("shard*"))


def test_a_full_disk_is_told_before_anything_is_written(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 10**5))
    with pytest.raises(ResourceError, match=r"needs .* GiB .*DRIFTKIT_CACHE"):
        opened(encoder, tmp_path / "caches")
    assert not (tmp_path / "caches").exists()


def test_a_damaged_shard_is_named(encoder, tmp_path):
    path = opened(encoder, tmp_path).folder / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="shard-00000"):
        opened(encoder, tmp_path)


@pytest.mark.slow
def test_training_with_a_cache_has_the_same_loss_and_starts_at_once_again(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    line = ["train", "--encoder", tmp_path / "mae", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", "4"]
    losses = {}
    for name, more in {"plain": [], "cached": ["--cache-features"], "again": ["--cache-features"]}.items():
        result = driftkit(*line, *more, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
        records = [json.loads(r) for r in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = torch.tensor([r["loss"] for r in records])
    assert torch.allclose(losses["plain"], losses["cached"], rtol=1e-2)
    assert torch.equal(losses["cached"], losses["again"])
    assert len(list((tmp_path / "cache" / "features").glob("[!.]*"))) == 1


def test_the_gradient_with_cached_features_is_that_without(encoder, tmp_path):
    """The loss would hardly tell: it is flat whatever the positives are."""
    pack = setting(images(), flips=True)
    cache = opened(encoder, tmp_path)
    noise = torch.nn.Conv2d(3, 3, 3, padding=1)

    class Generator(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = noise

        def forward(self, x, t, condition):
            return self.layer(x)

    feed = Feed(pack.pack.images, pack.pack.labels, batch_size=8, horizontal_flip=True, seed=0, ranks=Ranks(),
                device=torch.device("cpu"))  # fmt: skip
    gradients = {}
    for name, used, batch in (("plain", None, 3), ("cached", cache, 3), ("other images", cache, 4)):
        noise.zero_grad()
        objective = Drifting(DriftingConfig(), EncoderUnion.of(encoder, "paper", used), ranks=Ranks())
        real = feed.batch(3)
        if batch != 3:
            other = feed.batch(batch)
            real = dataclasses.replace(real, indices=other.indices, flips=other.flips)
        objective.accumulate(Generator(), real, Execution())
        gradients[name] = torch.cat([p.grad.flatten() for p in noise.parameters()])
    error = {n: ((g - gradients["plain"]).norm() / gradients["plain"].norm()).item() for n, g in gradients.items()}
    assert error["cached"] < 1e-2
    assert error["other images"] > 0.1


def test_shards_of_another_offset_are_refused(encoder, tmp_path):
    folder = opened(encoder, tmp_path).folder
    offset = read_tensors(folder / "offset.safetensors")[0]["offset"]
    other = {"offset": offset + 1}
    write_tensors(folder / "offset.safetensors", other, header={"sha256": state_digest(other)})
    with pytest.raises(ArtifactError, match="another offset"):
        opened(encoder, tmp_path)
