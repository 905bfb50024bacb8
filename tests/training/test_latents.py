"""Training in the latent space of an autoencoder: every method, from training to the report."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from driftkit.comparison.run_summary import summarise
from driftkit.config.export_config import ExportConfig
from driftkit.config.sampling_config import SamplingConfig
from driftkit.encoders.autoencoder import load_autoencoder
from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.pixel import PixelEncoder
from driftkit.errors import ArtifactError, UsageError
from driftkit.methods.base import BuiltObjective
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.methods.registry import METHODS
from driftkit.protocols import UNCONDITIONAL, Batch, Execution
from driftkit.runtime.ranks import Ranks
from driftkit.stages.export import export
from driftkit.storage.images import read_samples
from driftkit.storage.run_folder import Run
from driftkit.training import latents as module
from driftkit.training.latents import DecodedNetwork, LatentObjective, in_latents, open_autoencoder
from driftkit.training.sampling import generate, load_network
from driftkit.training.train_config import load_config, resolve_config
from tests.conftest import TINY_LOOP, TINY_UNET, driftkit, first_is_fast, replace_weights, setting
from tests.encoders.tiny_autoencoder import change_config, tiny_autoencoder

CPU = torch.device("cpu")
DATA = "shapes?image_size=16&count=24"


@pytest.fixture
def place(tmp_path):
    return tiny_autoencoder(tmp_path / "vae")


def train(place, output, objective="ddpm", *more, steps=2):
    words = ["--encoder", "pixel"] if objective == "drift" else []
    line = ["train", "--objective", objective, *words, "--data", DATA, *TINY_UNET, *TINY_LOOP]
    return driftkit(*line, "--autoencoder", place, "--steps", steps, "--output", output, *more)


def trained(place, output, objective="ddpm", *more, steps=2):
    done = train(place, output, objective, *more, steps=steps)
    assert done.exit_code == 0, done.output
    return Run.open(output)


@pytest.mark.parametrize("objective", first_is_fast("drift", "ddpm", "flow"))
def test_every_method_is_trained_sampled_scored_and_compared(place, tmp_path, objective):
    run = trained(place, tmp_path / "run", objective)
    config = load_config(run.manifest().config)
    assert (config.data.image_size, config.data.latent_shape, config.model.channels) == (16, (4, 8, 8), 4)
    assert run.manifest().inputs["autoencoder"]["digest"] == load_autoencoder(str(place)).digest
    assert list((run.path / "samples").glob("step-*.png"))
    nfe = [] if objective == "drift" else ["--nfe", 3]
    done = driftkit("sample", run.path, "-n", 4, *nfe, "--device", "cpu", "-o", tmp_path / "s.safetensors")
    assert done.exit_code == 0, done.output
    assert read_samples(tmp_path / "s.safetensors").images.shape == (4, 3, 16, 16)
    done = driftkit(
        "fid", run.path, "-r", DATA, "--extractor", "pixels", "-n", 12, *nfe, "--allow-collapsed", "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    done = driftkit("compare", run.path, "-o", tmp_path / "compared", "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    assert "was not measured" not in done.output
    assert summarise(run, label="run").kind.endswith(" · latents")


def test_samples_are_the_decoded_latents_of_the_sampler_and_nothing_is_clipped(place, tmp_path):
    run = trained(place, tmp_path / "run", "ddpm")
    drawn = {}

    def draw(network, noise, request):
        drawn.update(noise=noise, options=dict(request.options))
        return 3 * noise, 1

    spec = METHODS["ddpm"].samplers["ddim"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("driftkit.training.sampling.build_sampler", lambda config, name: (spec, draw))
        images, info = generate(run, SamplingConfig(), num_images=3)
    assert drawn["noise"].shape == (3, 4, 8, 8)
    assert drawn["options"] == info["sampler_options"] == {"clip_x0": False}
    decoded = load_autoencoder(str(place)).to_images(3 * drawn["noise"])
    want = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(images, want)


@pytest.mark.parametrize("objective", ["ddpm", "drift"])
def test_a_resumed_training_is_the_same_even_with_the_cache_gone(place, tmp_path, objective):
    whole = trained(place, tmp_path / "whole", objective, steps=4)
    trained(place, tmp_path / "parts", objective, steps=2)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    parts = trained(place, tmp_path / "parts", objective, steps=4)
    for which in ("raw", "ema"):
        a, b = whole.checkpoint().weights(which), parts.checkpoint().weights(which)
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_moved_autoencoder_may_resume_and_another_one_may_not(place, tmp_path):
    run = trained(place, tmp_path / "run")
    moved = shutil.move(place, tmp_path / "moved")
    with pytest.raises(ArtifactError, match="vae"):
        generate(run, SamplingConfig(), num_images=2)
    assert train(place, run.path, steps=4).exit_code == 3
    trained(moved, run.path, steps=4)
    assert generate(run, SamplingConfig(), num_images=2)[0].shape == (2, 3, 16, 16)
    other = train(tiny_autoencoder(tmp_path / "other", seed=1), run.path, steps=6)
    assert other.exit_code == 2
    assert "another autoencoder" in other.output
    pixels = driftkit("train", "--objective", "ddpm", "--data", DATA, *TINY_UNET, *TINY_LOOP, "-o", run.path)
    assert pixels.exit_code == 2
    assert "--autoencoder" in pixels.output
    tiny_autoencoder(tmp_path / "moved", seed=2)  # other weights in the same place
    with pytest.raises(ArtifactError, match="is not the one"):
        generate(run, SamplingConfig(), num_images=2)


def test_the_objective_sees_latents_of_the_images_of_the_batch(place):
    pack = setting(torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)).pack
    autoencoder, seen = load_autoencoder(str(place)), []
    inner = SimpleNamespace(
        draws=lambda seed, step, slots, shape: {"noise": torch.zeros(len(slots), *shape)},
        accumulate=lambda model, batch, execution: seen.append(batch),
        needs_labels=False,
    )
    objective = in_latents(
        BuiltObjective(inner), autoencoder, config("ddpm", place), pack, ranks=Ranks(), device=CPU
    ).objective
    real = pack.images[[3, 5]].float() / 127.5 - 1
    real = torch.stack([real[0], real[1].flip(-1)])
    indices, flips = torch.tensor([3, 5]), torch.tensor([False, True])
    objective.accumulate(nn.Identity(), Batch(real, None, range(2), 0, 0, indices, flips), Execution())
    assert torch.allclose(seen[0].images, autoencoder.to_latents(real), atol=5e-3)
    assert seen[0].draws["noise"].shape == (2, 4, 8, 8)
    assert objective.needs_labels is False


def config(objective, place):
    return resolve_config(objective=objective, assignments=[f"data.autoencoder={place}"])[0]


class Shifted(nn.Module):
    """A generator of latents with one parameter per channel."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4, 1, 1, dtype=torch.float64))

    def forward(self, x, t, condition=UNCONDITIONAL):
        return x + self.shift


def test_the_gradient_of_drifting_reaches_the_generator_through_the_decoder(place, monkeypatch):
    """Against finite differences of the loss whose targets, generated features moved by the field, stay fixed."""
    autoencoder = load_autoencoder(str(place))
    monkeypatch.setattr(type(autoencoder), "decode", lambda self, z: self.network.double().decode(z.double()).sample)
    encoder = PixelEncoder(input_size=16)
    inner = Drifting(DriftingConfig(encoder="pixel", clip=False), EncoderUnion.of(encoder), ranks=Ranks())
    objective = LatentObjective(inner, autoencoder, (4, 8, 8), None)
    real = (2 * torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) - 1).double()
    batch = Batch(real, None, range(6), 0, 0).drawn(objective)
    assert batch.draws["prior"].shape == (6, 4, 8, 8)
    model, gradients = Shifted(), {}
    field = inner._field
    monkeypatch.setattr(inner, "_field", lambda *a, **k: gradients.setdefault("all", field(*a, **k)))
    objective.accumulate(model, batch, Execution())
    of_features = gradients["all"][1]

    def linearised(shift):
        """Its gradient at 0 is that of the loss: the field's gradient at the features, times the features."""
        model.shift.data = shift
        with torch.no_grad():
            images = DecodedNetwork(model, autoencoder)(batch.draws["prior"].double(), torch.zeros(6))
            groups = inner.encoders.groups(images)
        return sum(float((g.values.double() * of_features[g.name].double()).sum()) for g in groups)

    for channel in range(4):
        step = torch.zeros(4, 1, 1, dtype=torch.float64)
        step[channel] = 1e-3
        want = (linearised(step) - linearised(-step)) / 2e-3
        assert float(model.shift.grad[channel]) == pytest.approx(want, rel=1e-3)
        assert abs(want) > 1e-6


@pytest.mark.parametrize("format", first_is_fast("torchscript", "onnx"))
def test_the_exported_generator_decodes_and_the_exported_denoiser_says_how(place, tmp_path, format):
    run = trained(place, tmp_path / "drift", "drift")
    weights = run.checkpoint().weights("ema")
    replace_weights(run.path, "ema", {name: tensor + 0.05 for name, tensor in weights.items()})
    made = export(run, ExportConfig(format=format))  # which compares it with the network
    assert made.document["output"] == {"images": ["N", 3, 16, 16]}
    if format == "onnx":
        return
    noise = torch.randn(3, 4, 8, 8)
    network, config, _ = load_network(run)
    latents = network(noise, torch.zeros(3, dtype=torch.long))
    want = open_autoencoder(config).to_images(latents)
    torch.testing.assert_close(torch.jit.load(str(made.model))(noise), want, rtol=1e-4, atol=1e-4)
    made = export(trained(place, tmp_path / "ddpm", "ddpm"), ExportConfig(format=format))
    assert made.document["output"] == {"noise": ["N", 4, 8, 8]}
    assert "image = decoder(latents / scale + offset), scale 2, offset 0" in (made.folder / "README.md").read_text()


def test_exported_weights_name_the_autoencoder_and_the_code_on_the_card_runs(place, tmp_path, monkeypatch):
    made = export(trained(place, tmp_path / "run", "drift"), ExportConfig(format="safetensors"))
    text = (made.folder / "README.md").read_text()
    assert f"`{place}`" in text
    assert "Its decoder\nis not part of this file" in text
    monkeypatch.chdir(made.folder)
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["latents"].shape == (16, 4, 8, 8)


def test_the_budget_counts_the_decoder(place):
    line = ["train", "-e", "pixel", "--image-size", 16, *TINY_UNET, "--batch-size", 4, "--dry-run", "--json"]
    costs = {}
    for name, more in {"pixels": [], "latents": ["--autoencoder", place]}.items():
        done = driftkit(*line, *more, "--device", "cpu")
        assert done.exit_code == 0, done.output
        costs[name] = json.loads(done.stdout)["budget"]
    assert costs["pixels"]["shapes"]["decoder_flops"] == 0
    decoder = costs["latents"]["shapes"]["decoder_flops"]
    assert decoder > 1e6
    assert costs["latents"]["steps"][0]["encoder_flops"] == 4 * 2 * decoder
    assert costs["latents"]["shapes"]["network_flops"] < costs["pixels"]["shapes"]["network_flops"] / 3
    assert costs["latents"]["shapes"]["saved_bytes"] > 0


def test_the_budget_of_a_published_shape_is_counted_for_a_gpu(tmp_path):
    """Attention of one head with as many channels as the decoder of Stable Diffusion has."""
    wide = tiny_autoencoder(tmp_path / "vae", block_out_channels=(8, 512), norm_num_groups=8)
    line = ["train", "-e", "pixel", "--image-size", 16, *TINY_UNET, "--batch-size", 4, "--dry-run", "--json"]
    done = driftkit(*line, "--autoencoder", wide, "--device", "cuda")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["budget"]["shapes"]["decoder_flops"] > 0


def test_scores_on_the_way_are_of_decoded_images(place, tmp_path):
    more = ["--eval-every", 2, "--set", "evaluation.extractor=pixels", "--set", "evaluation.num_images=12"]
    run = trained(place, tmp_path / "run", "flow", *more)
    assert any("fid@12" in record["health"] for record in run.metrics()) or "no fid@12" in str(run.metrics())


@pytest.mark.parametrize("objective", ["ddpm", "drift"])
def test_a_grid_of_latents_encodes_no_real_images(place, monkeypatch, objective):
    autoencoder = load_autoencoder(str(place))
    monkeypatch.setattr(type(autoencoder), "to_latents", lambda *a: pytest.fail("real images were encoded"))
    inner = Drifting(
        DriftingConfig(encoder="pixel", clip=False), EncoderUnion.of(PixelEncoder(input_size=16)), ranks=Ranks()
    )
    if objective == "ddpm":
        inner = METHODS["ddpm"].build(config("ddpm", place).objective, setting(torch.zeros(2, 3, 16, 16))).objective
    noise, real = torch.randn(2, 4, 8, 8), torch.zeros(2, 3, 16, 16)
    with torch.no_grad():
        images = LatentObjective(inner, autoencoder, (4, 8, 8), None).preview(Shifted().float(), noise, real)
    assert images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_images_have_three_channels(kind):
    chosen, _ = resolve_config(objective="ddpm", assignments=[f"model.kind={kind}", "model.channels=4"])
    with pytest.raises(UsageError, match=r"model.channels 4: images have 3 .* `data.autoencoder`"):
        module.with_latent_channels(chosen)


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["model.channels=5"], "model.channels follows"),
        (["data.latent_shape=[4, 9, 9]"], "data.latent_shape follows"),
    ],
)
def test_what_follows_from_the_autoencoder_cannot_be_set(place, assignments, says):
    chosen, _ = resolve_config(objective="ddpm", assignments=[f"data.autoencoder={place}", *assignments])
    with pytest.raises(UsageError, match=says):
        module.latent_shape(module.with_latent_channels(chosen), 16)


def test_the_dry_run_says_when_an_autoencoder_describes_no_network(place):
    change_config(place, norm_num_groups=0)
    for words in (["--objective", "ddpm"], ["-e", "pixel"]):
        line = ["train", *words, "--data", DATA, *TINY_UNET, "--autoencoder", place, "--dry-run"]
        assert "describes no network" in "".join(driftkit(*line).stdout.split("\n")), words
