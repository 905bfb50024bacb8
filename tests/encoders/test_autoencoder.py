"""Autoencoders of diffusers: their numbers, and what is refused."""

import importlib.util

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from driftkit.encoders import autoencoder as module
from driftkit.encoders.autoencoder import load_autoencoder, read_autoencoder_config
from driftkit.errors import ArtifactError, NotFoundError, RefusedError, UsageError
from tests.encoders.tiny_autoencoder import change_config, tiny_autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def images(count=3, size=16):
    return 2 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) - 1


def test_numbers_are_those_of_diffusers(tmp_path):
    folder = tiny_autoencoder(tmp_path / "vae", scaling_factor=1.5, shift_factor=0.25)
    ours, theirs = load_autoencoder(str(folder)), AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    with torch.no_grad():
        want = 1.5 * (theirs.encode(images()).latent_dist.mean - 0.25)
        torch.testing.assert_close(ours.to_latents(images()), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.to_images(want), theirs.decode(want / 1.5 + 0.25).sample, rtol=1e-5, atol=1e-5)
    assert want.shape[1:] == ours.config.latent_shape(16) == (4, 8, 8)


def test_mean_and_deviation_by_channel_are_applied(tmp_path):
    folder = tiny_autoencoder(tmp_path / "vae", latents_mean=(1.0, 2.0, 3.0, 4.0), latents_std=(1.0, 2.0, 4.0, 8.0))
    theirs = AutoencoderKL.from_pretrained(folder).encode(images()).latent_dist.mean.detach()
    column = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(-1, 1, 1)
    want = 2.0 * (theirs - column) / torch.tensor([1.0, 2.0, 4.0, 8.0]).view(-1, 1, 1)
    torch.testing.assert_close(load_autoencoder(str(folder)).to_latents(images()), want, rtol=1e-5, atol=1e-5)


def test_images_are_taken_some_at_a_time_with_the_same_result(tmp_path, monkeypatch):
    loaded = load_autoencoder(str(tiny_autoencoder(tmp_path / "vae")))
    latents = loaded.to_latents(images(5))
    pictures = loaded.to_images(latents)
    monkeypatch.setattr(module, "PIXELS_AT_A_TIME", 2 * 16 * 16)
    torch.testing.assert_close(loaded.to_latents(images(5)), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.to_images(latents), pictures, rtol=1e-5, atol=1e-5)


def test_only_latents_get_a_gradient(tmp_path):
    loaded = load_autoencoder(str(tiny_autoencoder(tmp_path / "vae"))).train()
    latents = torch.randn(1, 4, 8, 8, requires_grad=True)
    loaded.decode(latents).sum().backward()
    assert latents.grad is not None
    assert not loaded.training
    assert all(p.grad is None and not p.requires_grad for p in loaded.parameters())


def test_weights_with_the_earlier_names_of_attention_are_read(tmp_path):
    folder = tiny_autoencoder(tmp_path / "vae")
    want = load_autoencoder(str(folder))
    renamed = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for new, old in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{old}.") if ".attentions." in name else name
        renamed[name] = tensor
    assert any(".proj_attn." in name for name in renamed)
    save_file(renamed, folder / WEIGHTS)
    got = load_autoencoder(str(folder))
    assert got.digest == want.digest
    assert torch.equal(got.to_latents(images()), want.to_latents(images()))


@pytest.mark.parametrize("changes", [{"norm_num_groups": 2}, {"act_fn": "gelu"}])
def test_the_digest_is_of_the_architecture_that_weights_do_not_tell(tmp_path, changes):
    folder = tiny_autoencoder(tmp_path / "vae")
    want = load_autoencoder(str(folder))
    change_config(folder, _diffusers_version="0.0.0", _name_or_path="elsewhere")
    module._load.cache_clear()
    assert load_autoencoder(str(folder)).digest == want.digest
    change_config(folder, **changes)
    module._load.cache_clear()
    got = load_autoencoder(str(folder))
    assert not torch.allclose(got.to_latents(images()), want.to_latents(images()), atol=1e-4)
    assert got.digest != want.digest


def test_the_digest_is_of_weights_and_scale(tmp_path):
    digests = {load_autoencoder(str(tiny_autoencoder(tmp_path / "a"))).digest}
    digests.add(load_autoencoder(str(tiny_autoencoder(tmp_path / "b", seed=1))).digest)
    digests.add(load_autoencoder(str(tiny_autoencoder(tmp_path / "c", scaling_factor=1.0))).digest)
    assert len(digests) == 3
    assert load_autoencoder(str(tiny_autoencoder(tmp_path / "d"))).digest in digests


def test_without_diffusers_the_extra_is_named(tmp_path, monkeypatch):
    folder = tiny_autoencoder(tmp_path / "vae")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "diffusers" else found(n, *a))
    with pytest.raises(NotFoundError, match=r"diffusers.*--extra latents"):
        read_autoencoder_config(str(folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "VQModel"}, "VQModel, expected AutoencoderKL"),
        ({"_class_name": None}, "no class of diffusers, expected AutoencoderKL"),
        ({"in_channels": 1}, "in_channels"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"latents_mean": [0.0]}, "latents_mean: expected 4 numbers, got 1"),
        ({"block_out_channels": [8] * 9}, "block_out_channels"),
    ],
)
def test_configs_of_something_else_are_refused(tmp_path, changes, says):
    folder = tiny_autoencoder(tmp_path / "vae")
    change_config(folder, **changes)
    with pytest.raises(ArtifactError, match=says):
        read_autoencoder_config(str(folder))


@pytest.mark.parametrize(
    "changes", [{"latent_channels": 8}, {"down_block_types": ["Nothing", "Nothing"]}, {"norm_num_groups": "x"}]
)
def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path, changes):
    folder = tiny_autoencoder(tmp_path / "vae")
    change_config(folder, **changes)
    with pytest.raises(ArtifactError, match=r"describes"):
        load_autoencoder(str(folder))


@pytest.mark.parametrize(
    "read", [read_autoencoder_config, load_autoencoder, lambda place: load_autoencoder(place, "meta")]
)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm_num_groups": 0}, "describes no network: ZeroDivisionError"),
        ({"down_block_types": ["Nothing", "Nothing"]}, "describes no network: .*Nothing"),
        ({"block_out_channels": [8, 8, 8], "down_block_types": ["DownEncoderBlock2D"]}, r"latents are \[4, 4, 4\]"),
        (
            {
                "block_out_channels": [8] * 3,
                "down_block_types": ["DownEncoderBlock2D"] * 3,
                "up_block_types": ["UpDecoderBlock2D"],
            },
            r"images are \[3, 4, 4\], expected \[3, 8, 8\]",
        ),
    ],
)
def test_a_config_without_a_network_or_of_another_shape_is_refused_before_weights_are_read(
    tmp_path, read, changes, says
):
    folder = tiny_autoencoder(tmp_path / "vae")
    change_config(folder, **changes)
    with pytest.raises(ArtifactError, match=says):
        read(str(folder))


@pytest.mark.parametrize("place", ["./outputs/vae", "../outputs/vae", "../../vae", "owner/..", "outputs/vae--1"])
def test_a_folder_that_is_not_there_is_no_hub_id(place):
    with pytest.raises(NotFoundError, match="no such folder; expected the folder"):
        load_autoencoder(place)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    folder = tiny_autoencoder(tmp_path / "vae")
    weights = load_file(folder / WEIGHTS)
    weights["decoder.conv_out.bias"].fill_(float("nan"))
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(RefusedError, match="not finite"):
        load_autoencoder(str(folder))


def test_a_pickle_is_never_opened(tmp_path):
    folder = tiny_autoencoder(tmp_path / "vae")
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(NotFoundError, match=r"diffusion_pytorch_model.bin is a pickle"):
        load_autoencoder(str(folder))


@pytest.mark.parametrize("place", ["stabilityai/sd-vae-ft-mse", "owner/name/vae"])
def test_a_hub_id_that_is_not_here_says_what_to_fetch(place):
    with pytest.raises(NotFoundError, match=rf"huggingface.co/.*/config.json and .*/{WEIGHTS}"):
        load_autoencoder(place)


def test_a_hub_id_is_read_from_the_cache(tmp_path, monkeypatch):
    folder = tiny_autoencoder(tmp_path / "owner" / "name" / "vae")
    monkeypatch.setattr(module.HubFile, "locate", lambda self: tmp_path / self.repository / self.file, raising=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_autoencoder("owner/name/vae").digest == load_autoencoder(str(folder)).digest


def test_sides_that_cannot_be_halved_are_refused(tmp_path):
    config = read_autoencoder_config(str(tiny_autoencoder(tmp_path / "vae")))
    with pytest.raises(UsageError, match="multiple of 2"):
        config.latent_shape(9)
