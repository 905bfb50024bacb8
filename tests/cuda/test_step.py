"""What a training step asks of a GPU and of the other ranks, counted on fake CUDA tensors.

Bounds on launches and bytes are a little above what was counted, so that a regression shows: `pytest -rP tests/cuda`
prints the counts. They leave out the backward pass.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.trained_encoder import MAEEncoder
from driftkit.methods.classifier.method import ClassifierConfig
from driftkit.methods.classifier.objective import Classifier
from driftkit.methods.ddpm.config import DDPMConfig
from driftkit.methods.ddpm.objective import DDPM
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.methods.mae.method import MAEConfig
from driftkit.methods.mae.objective import MAE
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.models.unet import UNet, UNetConfig
from driftkit.protocols import Execution
from driftkit.runtime.ranks import Ranks
from driftkit.training.feed import Feed
from driftkit.training.gradients import GradientExchange
from driftkit.training.monitors import FiniteWatch
from driftkit.training.optimizer import clip_gradients
from tests.cuda.fake import CUDA, Watched, fake_cuda, watching
from tests.encoders.loading import load

BATCH, SIZE = 128, 32
MOST_WAITS = 0  # in the loop one more where there are several ranks: for the stop flag of the step before
# Launches and GiB of one step on one GPU, without the backward pass.
BOUNDS = {
    "ddpm": (1100, 21.0),
    "mae": (500, 8.0),
    "classifier": (290, 3.0),
    "drift mae": (2850, 32.0),
    "drift mocov2": (2550, 85.0),
    "drift dinov2-multires": (2050, 107.0),
    "drift convnextv2": (3850, 270.0),
}


# One of each method and each kind of exchange; the others run with the campaigns.
FAST = {("ddpm", 1), ("classifier", 8), ("drift mae", 1), ("drift dinov2-multires", 8)}


def networks(method: str) -> tuple[torch.nn.Module, torch.nn.Module | None]:
    """The network that is trained and the frozen encoder, without memory."""
    with torch.device("meta"):
        if method in ("mae", "classifier"):
            config = MAEResNetConfig(num_classes=10, decoder=method == "mae")
            return MAEResNet(config).to(memory_format=torch.channels_last), None
        unet = UNet(UNetConfig(), image_size=SIZE).to(memory_format=torch.channels_last)
        if not method.startswith("drift"):
            return unet, None
        name = method.removeprefix("drift ")
        if name == "mae":
            encoder = MAEEncoder(name, MAEResNet(MAEResNetConfig()), input_size=SIZE)
        else:
            encoder = load(name, image_size=SIZE, random_weights=True, device="meta")
    return unet, encoder.to(memory_format=torch.channels_last)


def objective_of(method: str, encoder, ranks: Ranks):
    if method == "ddpm":
        return DDPM(DDPMConfig())
    if method == "mae":
        return MAE(MAEConfig(finetune_from=0), ranks=ranks)
    if method == "classifier":
        return Classifier(ClassifierConfig(), ranks=ranks)
    return Drifting(DriftingConfig(encoder=encoder.name), EncoderUnion.of(encoder), ranks=ranks)


class Steps:
    """Steps as the loop makes them, but for the optimizer and the average of the weights."""

    def __init__(self, objective, network, ranks: Ranks):
        self.objective, self.network = objective, network
        with unset_fake_temporarily():  # what the feed's own thread works on is real
            images = torch.zeros(2 * BATCH * ranks.world_size, 3, SIZE, SIZE, dtype=torch.uint8)
            labels = torch.zeros(len(images), dtype=torch.long)
            self.feed = Feed(
                images, labels, batch_size=BATCH, horizontal_flip=True, seed=0, ranks=ranks, device=CUDA,
                objective=objective,
            )  # fmt: skip
        self.exchange = GradientExchange(network.parameters(), ranks)
        self.watch = FiniteWatch(ranks, deferred=True)
        self.execution = Execution(
            autocast=lambda: torch.autocast("cuda", dtype=torch.bfloat16), last_backward=self.exchange.last_backward
        )

    def step(self, number: int) -> None:
        batch = self.feed.batch(number)
        loss = self.objective.accumulate(self.network, batch, self.execution)
        self.exchange.finish()
        norm, norms = clip_gradients(self.network, 2.0)
        self.watch.see(loss, norm, norms, step=number, sources={"real images": batch.images.sum()})
        self.exchange.clear()


def counted(method: str, *, world_size: int) -> Watched:
    """What the second of two steps asks for: the first may prepare what lasts."""
    network, encoder = networks(method)
    ranks = Ranks(3, world_size) if world_size > 1 else Ranks()
    with fake_cuda() as watched:
        network.to_empty(device=CUDA).train()
        if encoder is not None:
            encoder = encoder.to_empty(device=CUDA)
            encoder.freeze()
        steps = Steps(objective_of(method, encoder, ranks), network, ranks)
        with steps.feed.prefetching(end=2):
            with watching(Watched()):
                steps.step(0)
            with watching(watched):
                steps.step(1)
    return watched


@pytest.mark.parametrize(
    ("method", "world_size"),
    [
        pytest.param(method, world_size, marks=() if (method, world_size) in FAST else pytest.mark.slow)
        for method in BOUNDS
        for world_size in (1, 8)
    ],
)
def test_the_host_waits_for_nothing_and_all_is_on_the_device(method, world_size):
    watched = counted(method, world_size=world_size)
    print(f"{method}, world size {world_size}: {watched}")
    assert len(watched.waits) <= MOST_WAITS, str(watched)
    assert not watched.wrong, watched.wrong
    assert bool(watched.exchanged) == (world_size > 1)
    launches, gib = BOUNDS[method]
    if world_size == 1:
        assert 0.8 * launches < watched.launches.total() <= launches, str(watched)
        assert 0.8 * gib < watched.bytes / 2**30 <= gib, str(watched)
