"""Several encoders of one run: their texts, and the loss that sums the terms of all of them."""

import dataclasses

import pytest
import torch

from driftkit.encoders.encoder_config import EncodersConfig, joined_name, read_encoder, short_encoder_names
from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_cache import FeatureSource, open_cache
from driftkit.encoders.lineage import PIXELS, Lineage, kinship, training_encoders_of
from driftkit.encoders.pixel import PixelEncoder
from driftkit.encoders.registry import load_encoder
from driftkit.encoders.trained_encoder import MAEEncoder
from driftkit.errors import UsageError
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.protocols import Batch, Execution
from driftkit.runtime.ranks import Ranks
from driftkit.storage.images import to_float
from driftkit.storage.records import RunManifest

COUNT, SIZE = 6, 8
MAE_LINEAGE = Lineage("c0", "mae_resnet", "mae_resnet", ("images 1234",), False)


def mae(seed: int, name: str = "outputs/mae") -> MAEEncoder:
    torch.manual_seed(seed)
    network = MAEResNet(MAEResNetConfig(base_channels=8, num_blocks=(1, 1, 1, 1)))
    encoder = MAEEncoder(name, network, input_size=SIZE)
    encoder.lineage = dataclasses.replace(MAE_LINEAGE, weights=f"digest {seed}")
    encoder.weights_digest = f"digest {seed}"
    encoder.freeze()
    return encoder


def union(*texts: str) -> EncoderUnion:
    """MAEs by their seed, and pixels."""
    return EncoderUnion.load(
        EncodersConfig(encoder=texts),
        lambda one: load_encoder(one, image_size=SIZE) if one.encoder == "pixel" else mae(int(one.encoder[-1])),
    )


class Generator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t, condition):
        return self.layer(x)


def batch(indices=None, flips=None) -> Batch:
    images = to_float(pictures()[:COUNT])
    return Batch(images, None, range(COUNT), seed=0, step=4, indices=indices, flips=flips)


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (12, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def step(encoders: EncoderUnion, micro_batch: int | None = None, real: Batch | None = None):
    """Terms, and the gradient of a generator's parameters."""
    generator = Generator()
    objective = Drifting(DriftingConfig(), encoders, ranks=Ranks())
    loss = objective.accumulate(generator, real or batch(), Execution(micro_batch=micro_batch))
    return loss, torch.cat([p.grad.flatten() for p in generator.parameters()])


@pytest.mark.parametrize("scale_over", ["location", "map"])
def test_terms_and_gradients_are_the_sums_of_those_of_every_encoder_alone(scale_over):
    config = DriftingConfig(scale_over=scale_over)
    gradients, losses = [], []
    alone = (EncoderUnion.of(mae(1)), EncoderUnion.of(mae(2), "multires"), EncoderUnion.of(PixelEncoder(input_size=16)))
    for encoders in (*alone, union("mae-1", "mae-2?feature_set=multires", "pixel?input_size=16")):
        generator = Generator()
        losses.append(Drifting(config, encoders, ranks=Ranks()).accumulate(generator, batch(), Execution()))
        gradients.append(torch.cat([p.grad.flatten() for p in generator.parameters()]))
    summed = sum(gradients[:3])
    assert summed.norm() > 0
    assert (gradients[3] - summed).norm() <= 1e-6 * summed.norm()
    terms = {
        name if name.startswith("input/") else f"{label}/{name}": value
        for label, loss in zip(("mae-1", "mae-2", "pixel"), losses, strict=False)
        for name, value in loss.terms.items()
    }
    assert losses[3].terms.keys() == terms.keys()
    for name, value in terms.items():
        assert torch.allclose(losses[3].terms[name], value, rtol=1e-6), name
    assert torch.allclose(losses[3].total, torch.stack([loss.total for loss in losses[:3]]).sum(), rtol=1e-6)


def test_vectors_of_the_image_are_there_once_and_names_are_unique():
    both = union("mae-1", "mae-2")
    names = [group.name for group in both.groups(batch().images)]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("input")] == ["input/rms", "input/pixels"]
    single = [group.name for group in EncoderUnion.of(mae(1)).groups(batch().images)]
    own = {name for name in single if not name.startswith("input")}
    assert set(names) == {f"mae-{n}/{name}" for n in (1, 2) for name in own} | {"input/rms", "input/pixels"}


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_have_the_gradient_of_the_whole_batch(micro_batch):
    encoders = union("mae-1", "mae-2", "pixel")
    (whole, want), (parts, got) = step(encoders), step(encoders, micro_batch)
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert torch.allclose(parts.total, whole.total, rtol=1e-5)


def test_cached_features_are_those_of_the_encoders(tmp_path):
    images, encoders = pictures(), union("mae-1", "mae-2?feature_set=multires", "pixel")

    def opened(member):
        source = FeatureSource(member.encoder, member.features, {"label": member.label}, torch.device("cpu"))
        return open_cache(tmp_path, images, source, flips=True, ranks=Ranks())

    cached = encoders.with_caches(opened)
    assert (encoders.is_cached, cached.is_cached) == (False, True)
    indices, flips = torch.tensor([3, 0, 7, 8, 1, 5]), torch.tensor([False, True] * 3)
    real = to_float(torch.stack([images[i].flip(-1) if flip else images[i] for i, flip in zip(indices, flips)]))  # noqa: B905
    want, got = encoders.groups(real), cached.cached(indices, flips, device=torch.device("cpu"))
    assert [group.name for group in got] == [group.name for group in want]
    for mine, exact in zip(got, want, strict=True):
        assert (mine.values - exact.values).norm() <= 1e-2 * exact.values.norm(), mine.name
    of_images = dataclasses.replace(batch(indices, flips), images=real)
    (_, computed), (_, read) = step(encoders, real=of_images), step(cached, real=of_images)
    assert (read - computed).norm() <= 1e-2 * computed.norm()


def test_a_single_encoder_is_recorded_as_itself_and_several_with_parts():
    single = union("mae-1").record()
    assert "parts" not in single
    assert (single["name"], single["weights_digest"]) == ("outputs/mae", "digest 1")
    record = union("mae-1", "mae-2?feature_set=multires", "pixel").record()
    assert record["name"] == "mae-1+mae-2+pixel"
    assert record["feature_set"] == "paper+multires+locations"
    assert [part["label"] for part in record["parts"]] == ["mae-1", "mae-2", "pixel"]
    assert record["parts"][0] == {"label": "mae-1", **single}
    assert record["parameters"] == sum(part["parameters"] for part in record["parts"])
    changed = union("mae-1", "mae-3?feature_set=multires", "pixel").record()
    assert changed["weights_digest"] != record["weights_digest"]
    assert len(record["lineage"]) == len({str(entry) for entry in record["lineage"]}) == 4


def test_an_evaluator_that_is_kin_to_any_of_the_encoders_is_kin():
    manifest = RunManifest(id="r", created="now", config={}, encoder=union("pixel", "mae-2").record())
    trained_by = training_encoders_of(manifest)
    for evaluator in (PIXELS, dataclasses.replace(MAE_LINEAGE, weights="digest 2")):
        assert kinship(trained_by, evaluator).degree == "kin"
    assert kinship(trained_by, Lineage("x", "resnet", "resnet", ("ImageNet-1k",))).counts


def test_an_encoder_under_two_names_is_refused():
    union("mae-1", "mae-2").require_different()
    union("mae-1", "other-1?feature_set=multires").require_different()
    with pytest.raises(UsageError, match="the same encoder"):
        union("mae-1", "other-1").require_different()


def test_settings_of_a_text_go_before_those_of_all_and_belong_to_it_alone():
    config = EncodersConfig(
        encoder=["mocov2?input_size=64&taps=layer3,layer4&random=true", "pixel?feature_set=global"], feature_set="last"
    )
    moco, pixel = config.each()
    assert (moco.encoder, moco.input_size, moco.taps, moco.random_weights) == ("mocov2", 64, ("layer3", "layer4"), True)
    assert (pixel.encoder, pixel.input_size, pixel.taps, pixel.random_weights) == ("pixel", None, None, False)
    assert (moco.feature_set, pixel.feature_set) == ("last", "global")


def test_the_settings_of_a_single_text_are_those_of_the_run():
    written = EncodersConfig(encoder=["mocov2?input_size=64&weights=a.pth"], input_size=32)
    assert written == EncodersConfig(encoder="mocov2", input_size=64, encoder_weights="a.pth")
    assert written.model_dump(mode="json")["encoder"] == "mocov2"
    assert EncodersConfig.model_validate(written.model_dump(mode="json")) == written
    several = EncodersConfig(encoder=("mocov2", "pixel"))
    assert EncodersConfig.model_validate(several.model_dump(mode="json")) == several


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a?colour=3", "unknown key .colour.; known: taps"),
        ("a?input_siz=3", "did you mean input_size?"),
        ("a?input_size=3", "greater than or equal to 8"),
        ("a?input_size=32&input_size=64", "a key twice"),
        ("a?random=maybe", "random_weights"),
        ("a?map_norm", "expected a[?]key=value"),
    ],
)
def test_settings_that_do_not_fit_are_refused(text, reason):
    with pytest.raises(UsageError, match=reason):
        read_encoder(text)
    with pytest.raises(ValueError, match=reason):
        EncodersConfig(encoder=("pixel", text))


def test_values_are_taken_as_they_are_written():
    _, settings = read_encoder("mocov2?weights=/data/c++/a%41=b.pth&input_size=64")
    assert settings == {"encoder_weights": "/data/c++/a%41=b.pth", "input_size": 64}


def test_a_folder_may_have_a_question_mark(tmp_path):
    (tmp_path / "mae?x=1").mkdir()
    assert read_encoder(f"{tmp_path}/mae?x=1") == (f"{tmp_path}/mae?x=1", {})


def test_short_names_are_unique():
    assert short_encoder_names(["outputs/a/mae", "timm:x", "outputs/mae/encoder.safetensors"]) == (
        "mae",
        "timm-x",
        "mae-2",
    )
    assert short_encoder_names(["mae-2", "b/mae", "c/mae"]) == ("mae-2", "mae", "mae-3")
    assert joined_name("mocov2") == "mocov2"
    assert joined_name(["mocov2?input_size=64", "outputs/mae"]) == "mocov2+mae"
