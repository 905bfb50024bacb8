"""Extractors: batching, what they refuse, and how weights are found and read."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3 as theirs

from driftkit.datasets.sources import open_dataset
from driftkit.errors import ArtifactError, RefusedError, UsageError
from driftkit.scoring import extractors
from driftkit.scoring.extraction import Extractor
from driftkit.scoring.extractors import load_extractor
from driftkit.storage.files import write_tensors
from driftkit.storage.images import to_float
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import load_network
from tests.conftest import TINY_DATA, train_tiny
from tests.scoring.fakes import random_images, tiny_extractor


def test_features_do_not_depend_on_the_batch_size():
    extractor, images, seen = tiny_extractor(), random_images(23), []
    whole, logits = extractor.features(images)
    parts = torch.cat([values for values, _ in extractor.blocks(images, batch_size=5, advance=seen.append)])
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)
    assert whole.shape == (23, extractor.dim)
    assert logits is None
    assert seen == [5, 5, 5, 5, 3]


def test_features_that_are_not_finite_are_refused():
    broken = Extractor(
        "x", "1", "0", "none", 1, lambda i: (torch.full((len(i), 1), torch.nan), None), torch.device("cpu")
    )
    with pytest.raises(RefusedError, match="not finite"):
        broken.features(random_images(3))


def settings_of_float32():
    """Everything that decides how float32 is computed: of convolutions, of products, and autocast."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    cpu = (torch.backends.mkldnn.conv.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
    return conv.fp32_precision, matmul.fp32_precision, *cpu, torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("fails", [False, True])
def test_extractors_compute_in_ieee_float32_and_put_the_settings_back(fails):
    seen = []

    def embed(images):
        seen.append(settings_of_float32())
        if fails:
            raise ZeroDivisionError
        return images.float().flatten(1)[:, :1] / 255, None

    extractor = Extractor("x", "1", "0", "none", 1, embed, torch.device("cpu"))
    before = settings_of_float32()
    assert before[0] == "tf32"  # cuDNN's default
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if fails:
            with pytest.raises(ZeroDivisionError):
                extractor.features(random_images(3))
        else:
            extractor.features(random_images(3))
        assert torch.is_autocast_enabled("cpu")
    assert seen == [("ieee", "ieee", "ieee", "ieee", False)]
    assert settings_of_float32() == before
    assert extractor.info.precision == "float32 (IEEE)"


def test_float_images_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        tiny_extractor().features(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["incepton", "encoder:", "timm:", "timm:no_such_model"])
def test_unknown_extractors_are_usage_errors(name):
    with pytest.raises(UsageError, match=r"inception|timm has no model"):
        load_extractor(name)


def test_encoder_takes_no_weights_file(tmp_path):
    with pytest.raises(UsageError, match="of its own"):
        load_extractor("encoder:outputs/mae", weights=tmp_path / "x")


def test_missing_inception_weights_say_where_they_belong(offline, tmp_path):
    with pytest.raises(ArtifactError) as caught:
        load_extractor("inception")
    for word in ("weights-inception-2015-12-05-6726825d.pth", str(tmp_path / "torch"), "`extractor_weights`"):
        assert word in str(caught.value)


def test_missing_dinov2_weights_name_the_option(offline):
    with pytest.raises(ArtifactError, match="`extractor_weights`"):
        load_extractor("dinov2")


def test_weights_path_that_is_absent_is_missing(offline, tmp_path):
    for name in ("inception", "dinov2"):
        with pytest.raises(ArtifactError, match="nothing"):
            load_extractor(name, weights=tmp_path / "absent.pth")


def test_inception_weights_of_another_digest_are_refused(offline, tmp_path, monkeypatch):
    path = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, path)
    monkeypatch.setenv("DRIFTKIT_INCEPTION_WEIGHTS", str(path))
    with pytest.raises(ArtifactError, match="6726825d"):
        load_extractor("inception")


class Executed:
    """Marks the disk when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_inception_weights_are_never_unpickled(offline, tmp_path, monkeypatch):
    path, mark = tmp_path / "hostile.pth", tmp_path / "executed"
    torch.save({"weight": torch.zeros(1), "payload": Executed(mark)}, path)
    monkeypatch.setattr(extractors, "INCEPTION_DIGEST_PREFIX", "")
    with pytest.raises(ArtifactError):
        load_extractor("inception", weights=path)
    assert not mark.exists()


def test_inception_runs_with_weights_of_the_right_shape(offline, tmp_path, monkeypatch):
    class Bare(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            return None

    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
    state = Bare("inception-v3-compat", ["2048"]).state_dict()
    path = tmp_path / "inception.pth"
    torch.save(state, path)
    monkeypatch.setattr(extractors, "INCEPTION_DIGEST_PREFIX", "")
    extractor = load_extractor("inception", weights=path)
    path.unlink()
    features, logits = extractor.features(random_images(2, size=32))
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert extractor.weights_digest
    assert "299" in extractor.resize


def test_dinov2_reads_timm_weights_and_refuses_others(tmp_path):
    model = "vit_small_patch14_dinov2.lvd142m"
    torch.manual_seed(0)
    state = timm.create_model(model, pretrained=False, num_classes=0).state_dict()
    write_tensors(tmp_path / "model.safetensors", state)
    extractor = extractors.dinov2(tmp_path / "model.safetensors", torch.device("cpu"), model=model)
    features, logits = extractor.features(random_images(2, size=32))
    assert features.shape == (2, 384)
    assert logits is None
    write_tensors(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(ArtifactError, match="does not fit VisionTransformer: lacks cls_token"):
        extractors.dinov2(tmp_path / "other.safetensors", torch.device("cpu"), model=model)


def test_clip_is_the_class_token_before_the_projection(tmp_path):
    model = "vit_base_patch32_clip_224.laion2b"
    torch.manual_seed(0)
    network = timm.create_model(model, pretrained=False).eval()
    write_tensors(tmp_path / "model.safetensors", network.state_dict())
    extractor = extractors.clip(tmp_path / "model.safetensors", torch.device("cpu"), model=model)
    images = random_images(2, size=224)
    features, _ = extractor.features(images)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = network.forward_features((images.float() / 255 - mean) / std)[:, 0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert (extractor.name, extractor.dim) == ("clip", 768)
    assert network.num_classes == 512  # which the projection would have made of it


def test_any_timm_model_scores_by_its_pooled_features(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("resnet18.tv_in1k", pretrained=False).eval()
    path = tmp_path / "model.safetensors"
    write_tensors(path, network.state_dict())
    extractor = load_extractor("timm:resnet18.tv_in1k", weights=path)
    features, logits = extractor.features(random_images(3, size=32))
    assert features.shape == (3, 512)
    assert logits is None
    assert extractor.name == "timm:resnet18.tv_in1k"
    assert "resnet18.tv_in1k, pooled features" in extractor.version
    assert "224x224 bilinear" in extractor.resize
    write_tensors(path, {"weight": torch.zeros(3)})
    with pytest.raises(ArtifactError, match="does not fit"):
        load_extractor("timm:resnet18.tv_in1k", weights=path)
    with pytest.raises(ArtifactError, match="nothing"):
        load_extractor("timm:resnet18.tv_in1k", weights=tmp_path / "absent")


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("side", "size"), [(32, 224), (300, 224), (32, 128)])
def test_images_are_resized_as_by_pillow(side, size, mode):
    images = random_images(3, size=side)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pillow = [picture.resize((size, size), Image.Resampling[mode.upper()]) for picture in pictures]
    expected = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in pillow])
    difference = (extractors.resized_as_by_pil(images, size, mode) - expected).abs()
    assert difference.max() <= 1  # 24 without rounding between rows and columns
    assert (difference > 0).float().mean() < 0.001


def resnet(path):
    return load_extractor("timm:resnet18.tv_in1k", weights=path)


@pytest.mark.parametrize(
    ("make", "prefix"),
    [(resnet, "module."), (resnet, "module._orig_mod.backbone."), (extractors.dinov2, "_orig_mod.")],
)
def test_weights_are_found_in_training_checkpoints(make, prefix, tmp_path, capsys):
    model = "resnet18.tv_in1k" if make is resnet else "vit_tiny_patch16_224.augreg_in21k"
    options = {} if make is resnet else {"device": torch.device("cpu"), "model": model}
    state = timm.create_model(model, pretrained=False, num_classes=0).state_dict()
    write_tensors(tmp_path / "plain.safetensors", state)
    wrapped = {f"{prefix}{key}": tensor for key, tensor in state.items()}
    raw = {key: torch.zeros_like(tensor) for key, tensor in wrapped.items()}
    torch.save({"state_dict": raw, "state_dict_ema": wrapped, "epoch": 3}, tmp_path / "training.pth")
    plain, training = (make(path=tmp_path / file, **options) for file in ("plain.safetensors", "training.pth"))
    assert training.weights_digest == plain.weights_digest
    assert "the weights are those of state_dict_ema; it also has state_dict" in capsys.readouterr().err


def test_run_encoder_has_the_classifier_it_was_fine_tuned_with(tmp_path):
    train_tiny(tmp_path / "plain", "mae")
    train_tiny(tmp_path / "tuned", "mae", "--set", "objective.finetune_from=0")
    images = random_images(5)
    plain, tuned = (load_extractor(f"encoder:{tmp_path / name}") for name in ("plain", "tuned"))
    assert (plain.num_classes, plain.classes) == (0, ())
    assert tuned.classes == open_dataset(TINY_DATA[1]).classes
    features, logits = tuned.features(images)
    assert logits.shape == (5, tuned.num_classes)
    network, _, _ = load_network(Run.open(tmp_path / "tuned"))
    with torch.inference_mode():
        torch.testing.assert_close(logits, network(to_float(images), classify=True), rtol=1e-4, atol=1e-5)
    exported = load_extractor(f"encoder:{tmp_path / 'tuned' / 'encoder.safetensors'}")
    assert exported.num_classes == 0
    torch.testing.assert_close(exported.features(images)[0], features)
