"""The classifier objective: its loss, what it measures, and the encoder that its run becomes."""

import pytest
import torch
import torch.nn.functional as F

from driftkit.errors import UsageError
from driftkit.methods.classifier.method import ClassifierConfig
from driftkit.methods.classifier.objective import Classifier
from driftkit.methods.encoder_training import HeldOut, LabelledImages
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.protocols import Batch, Execution
from driftkit.runtime.ranks import Ranks
from driftkit.scoring.extractors import load_extractor
from driftkit.stages.train import train
from driftkit.storage.run_folder import Run
from driftkit.training.train_config import resolve_config
from tests.encoders.loading import load
from tests.scoring.fakes import make_pack, random_images

NETWORK = MAEResNetConfig(base_channels=4, num_blocks=(1, 1, 1, 1), num_classes=3, decoder=False)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MAEResNet(NETWORK)


def batch(count=6, labels=None):
    images = random_images(count, 0).float() / 127.5 - 1
    labels = torch.arange(count) % 3 if labels is None else labels
    return Batch(images, labels, range(count), seed=0, step=0)


def test_a_network_without_decoder_has_no_parameters_that_no_loss_reaches(model):
    assert not any(name.startswith(("decoder", "output")) for name, _ in model.named_parameters())
    Classifier(ClassifierConfig(min_crop=1.0), ranks=Ranks()).accumulate(model, batch(), Execution())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_loss_is_the_cross_entropy_of_labelled_images_whatever_the_micro_batch(model):
    labels = torch.tensor([0, 1, -1, 2, 1, -1])
    objective = Classifier(ClassifierConfig(min_crop=1.0, label_smoothing=0.1), ranks=Ranks())
    known = labels >= 0
    images = batch(labels=labels).images
    expected = F.cross_entropy(model(images[known], classify=True), labels[known], label_smoothing=0.1)
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for micro_batch in (None, 2):
        model.zero_grad()
        found = objective.accumulate(model, batch(labels=labels), Execution(micro_batch=micro_batch))
        assert found.total == pytest.approx(float(expected), rel=1e-5)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_held_out_accuracy_is_a_share_of_right_answers(model):
    images = random_images(30, 3)
    with torch.no_grad():
        answers = model(images.float() / 127.5 - 1, classify=True).argmax(dim=1)
    wrong = answers.clone()
    wrong[:12] = (wrong[:12] + 1) % 3
    held_out = HeldOut(LabelledImages(images, answers), LabelledImages(images, wrong))
    objective = Classifier(ClassifierConfig(), ranks=Ranks(), held_out=held_out)
    assert objective.measure(model) == {"held_out_accuracy": pytest.approx(0.6)}
    assert Classifier(ClassifierConfig(), ranks=Ranks()).measure(model) == {}


def configured(pack, *more):
    return resolve_config(
        objective="classifier",
        assignments=[
            f"data.spec={pack.path}",
            "trainer.steps=2",
            "trainer.batch_size=4",
            "model.base_channels=4",
            *more,
        ],
    )


def test_a_run_of_it_is_an_encoder_and_an_evaluator(tmp_path):
    labels = torch.arange(40) % 3
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1), labels=labels, classes=("a", "b", "c"))
    config, origins = configured(pack)
    run = train(config, tmp_path / "run", origins=origins, device="cpu").run
    encoder = load(str(run.path))
    assert [m.name for m in encoder.maps(torch.zeros(1, 3, 8, 8))] == ["stage1", "stage2", "stage3", "stage4"]
    assert encoder.lineage.labels is True
    assert load(str(run.path / "encoder.safetensors")).lineage == encoder.lineage
    extractor = load_extractor(f"encoder:{run.path}")
    assert extractor.num_classes == 3
    assert extractor.lineage == encoder.lineage


def test_a_run_goes_on_and_is_the_same_as_one_that_was_not_interrupted(tmp_path):
    labels = torch.arange(40) % 3
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1), labels=labels, classes=("a", "b", "c"))
    for name, steps in (("whole", (4,)), ("parts", (2, 4))):
        for count in steps:
            config, origins = configured(pack, f"trainer.steps={count}")
            train(config, tmp_path / name, origins=origins, device="cpu")
    whole, parts = (Run(tmp_path / name).checkpoint().weights("ema") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_images_without_classes_are_refused(tmp_path):
    pack = make_pack(tmp_path / "real.safetensors", random_images(40, 1))
    config, origins = configured(pack)
    with pytest.raises(UsageError, match="a classifier needs at least 2 classes"):
        train(config, tmp_path / "run", origins=origins, device="cpu")
