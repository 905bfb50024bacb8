"""Latents of real images from disk."""

import shutil

import pytest
import torch

from driftkit.encoders import latent_cache as module
from driftkit.encoders.autoencoder import load_autoencoder
from driftkit.encoders.feature_cache import open_cache
from driftkit.encoders.latent_cache import LatentSource, open_latents
from driftkit.errors import ArtifactError, DriftkitError
from driftkit.runtime.ranks import Ranks
from driftkit.stages.verify import verify
from driftkit.storage.images import to_float
from tests.conftest import setting
from tests.encoders.tiny_autoencoder import tiny_autoencoder

CPU = torch.device("cpu")


@pytest.fixture
def autoencoder(tmp_path):
    return load_autoencoder(str(tiny_autoencoder(tmp_path / "vae")))


def images(count=20):
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def opened(autoencoder, ranks=None, flips=True):
    return open_latents(setting(images()).pack, autoencoder, flips=flips, ranks=ranks or Ranks(), device=CPU)


def test_latents_are_those_of_the_autoencoder_for_originals_and_mirror_images(autoencoder):
    indices, flips = torch.tensor([19, 0, 8, 8, 7]), torch.tensor([True, False, True, False, True])
    real = to_float(images()[indices])
    want = autoencoder.to_latents(torch.where(flips.view(-1, 1, 1, 1), real.flip(-1), real))
    got = opened(autoencoder).latents(indices, flips, device=CPU)
    assert got.dtype == torch.float32
    assert float((got - want).abs().max()) < 2**-11 * 2 * float(want.abs().max())


def test_float16_keeps_more_than_the_8_bits_of_the_images(autoencoder):
    """The reason for the number format: relative errors, and what is left of them after decoding."""
    exact = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    errors = {d: float((exact.to(d).float() - exact).square().mean().sqrt()) for d in (torch.float16, torch.bfloat16)}
    assert errors[torch.float16] < 2.5e-4 < 1e-3 < errors[torch.bfloat16]
    latents = autoencoder.to_latents(to_float(images()))
    decoded = autoencoder.to_images(latents)
    gone = {d: float((autoencoder.to_images(latents.to(d)) - decoded).square().mean().sqrt()) for d in errors}
    assert gone[torch.float16] < gone[torch.bfloat16] / 4


def test_a_cache_that_was_removed_is_built_again_and_the_same(autoencoder, monkeypatch):
    seen = []
    original = LatentSource.groups
    monkeypatch.setattr(LatentSource, "groups", lambda self, images: seen.append(len(images)) or original(self, images))
    first = opened(autoencoder)
    everything = torch.arange(20), torch.zeros(20, dtype=torch.bool)
    want = first.latents(*everything, device=CPU)
    seen.clear()
    opened(autoencoder)
    assert seen == [1]  # for the layout alone
    shutil.rmtree(first.cache.folder)
    assert torch.equal(opened(autoencoder).latents(*everything, device=CPU), want)
    assert sum(seen) > 40


def test_other_weights_or_orientations_make_another_cache(autoencoder, tmp_path):
    folders = {opened(autoencoder).cache.folder, opened(autoencoder, flips=False).cache.folder}
    other = load_autoencoder(str(tiny_autoencoder(tmp_path / "other", seed=1)))
    folders.add(opened(other).cache.folder)
    assert len(folders) == 3


def test_ranks_share_the_shards(autoencoder, tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "barrier", lambda self: None)
    monkeypatch.setattr(Ranks, "max", lambda self, value: value)
    source = LatentSource(autoencoder, {"data": "d"}, CPU)
    with pytest.raises(ArtifactError, match="shard-00001"):  # that of rank 1, for which no barrier waits here
        open_cache(tmp_path / "c", images(), source, flips=True, ranks=Ranks(0, 2), shard_images=8)
    made = sorted(tmp_path.glob("c/*/shard*"))
    assert [path.name for path in made] == ["shard-00000.safetensors", "shard-00002.safetensors"]
    for path in made:
        path.unlink()
    with pytest.raises(ArtifactError, match="shard-00000"):
        open_cache(tmp_path / "c", images(), source, flips=True, ranks=Ranks(1, 2), shard_images=8)
    assert [path.name for path in tmp_path.glob("c/*/shard*")] == ["shard-00001.safetensors"]


def test_a_damaged_cache_is_found_by_verify(autoencoder):
    folder = opened(autoencoder).cache.folder
    assert verify([folder]).ok
    path = folder / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert not verify([folder]).ok


def test_latents_that_are_not_finite_are_not_cached(autoencoder, monkeypatch):
    monkeypatch.setattr(type(autoencoder), "to_latents", lambda self, images: torch.full((len(images), 4, 8, 8), 1e5))
    with pytest.raises(DriftkitError, match="none were cached"):
        opened(autoencoder)
    assert not list(module.cache_folder().rglob("shard*"))
