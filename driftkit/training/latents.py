"""Training in the latent space of a frozen autoencoder: what stands between images and a network of latents.

Objectives and samplers know nothing of it. `LatentObjective` gives the objective latents for images; or, where the
objective compares generated images with real ones, it decodes what the network generates.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from driftkit.datasets.packs import ImagePack
from driftkit.encoders.autoencoder import Autoencoder, load_autoencoder, read_autoencoder_config
from driftkit.encoders.latent_cache import LatentCache, open_latents
from driftkit.errors import ArtifactError, UsageError
from driftkit.methods.base import BuiltObjective
from driftkit.methods.registry import METHODS
from driftkit.models.contract import GeneratorNetworkConfig
from driftkit.protocols import UNCONDITIONAL, Batch, ChosenImages, Condition, Execution, Objective, StepLoss
from driftkit.runtime.ranks import Ranks
from driftkit.storage.run_folder import Run
from driftkit.training.train_config import TrainConfig


class DecodedNetwork(nn.Module):
    """A network of latents whose output is decoded: called like the network, it returns images [N, 3, H, W]."""

    def __init__(self, network: nn.Module, autoencoder: Autoencoder):
        super().__init__()
        self.network, self.autoencoder = network, autoencoder

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        return self.autoencoder.decode(self.network(x, t, condition).float())


class LatentObjective:
    """An objective for a network of latents.

    Args:
        inner: the objective, which gets latents as if they were images; with `cache` None it gets real images
            and a network whose output is decoded, so that its gradient goes through the frozen decoder.
        shape: channels, height and width of latents.
        cache: the latents of the training images.
    """

    def __init__(
        self, inner: Objective, autoencoder: Autoencoder, shape: tuple[int, int, int], cache: LatentCache | None
    ):
        self.inner, self.autoencoder, self.shape, self.cache = inner, autoencoder, shape, cache

    @property
    def needs_labels(self) -> bool:
        return self.inner.needs_labels

    def draws(self, seed: int, step: int, slots: range, image_shape: Sequence[int]) -> dict[str, torch.Tensor]:
        return self.inner.draws(seed, step, slots, self.shape)

    def choose(self, seed: int, step: int, slots: range) -> ChosenImages | None:
        return self.inner.choose(seed, step, slots)

    def accumulate(self, model: nn.Module, batch: Batch, execution: Execution) -> StepLoss:
        batch = batch.drawn(self)
        if self.cache is None:
            return self.inner.accumulate(DecodedNetwork(model, self.autoencoder), batch, execution)
        assert batch.indices is not None
        assert batch.flips is not None
        latents = self.cache.latents(batch.indices, batch.flips, device=batch.images.device)
        execution.clock.mark("data")
        return self.inner.accumulate(model, replace(batch, images=latents), execution)

    def preview(
        self, model: nn.Module, noise: torch.Tensor, images: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        """Decoded at the end, some images at a time, whatever the objective compares."""
        # Only methods that generate train on latents, and they show no real images, so that none is encoded.
        return self.autoencoder.to_images(self.inner.preview(model, noise, images, condition))

    def measure(self, model: nn.Module) -> dict[str, float]:
        return self.inner.measure(model)


def with_latent_channels(config: TrainConfig) -> TrainConfig:
    """The config with the network's channels where an autoencoder sets them; without one it stays as it is.

    Raises:
        UsageError: the method or the network cannot be trained on latents, or channels were asked for that latents, or
            images where there is no autoencoder, do not have.
        ArtifactError: the autoencoder is absent or of another kind.
    """
    place = config.data.autoencoder
    if place is None:
        if config.data.latent_shape is not None:
            raise UsageError("data.latent_shape follows from `data.autoencoder`, which is not set; leave it out")
        if isinstance(config.model, GeneratorNetworkConfig) and config.model.channels != 3:
            raise UsageError(
                f"model.channels {config.model.channels}: images have 3 channels; leave it out, or set "
                "`data.autoencoder` to train on latents"
            )
        return config
    if not METHODS[config.objective.name].generates:
        raise UsageError(
            f"`data.autoencoder`: a {config.objective.name} run trains an encoder of images, not of latents; leave it "
            "out"
        )
    network = config.model
    if not isinstance(network, GeneratorNetworkConfig):
        raise UsageError(f"`data.autoencoder`: the network {network.kind} generates images alone; leave it out")
    channels = read_autoencoder_config(place).latent_channels
    if network.channels not in (type(network).model_fields["channels"].default, channels):
        raise UsageError(f"model.channels follows from `data.autoencoder`, and is {channels}; got {network.channels}")
    return config.model_copy(update={"model": network.model_copy(update={"channels": channels})})


def latent_shape(config: TrainConfig, image_size: int) -> tuple[int, int, int] | None:
    """Shape of the latents of images of that side; None where the run has no autoencoder. Errors as above."""
    if config.data.autoencoder is None:
        return None
    shape = read_autoencoder_config(config.data.autoencoder).latent_shape(image_size)
    if config.data.latent_shape not in (None, shape):
        raise UsageError(
            f"data.latent_shape follows from `data.autoencoder`, and is {list(shape)}; got "
            f"{list(config.data.latent_shape or ())}"
        )
    return shape


def in_latents(
    built: BuiltObjective,
    autoencoder: Autoencoder,
    config: TrainConfig,
    pack: ImagePack,
    *,
    ranks: Ranks,
    device: torch.device,
) -> BuiltObjective:
    """The objective of a complete config for networks of latents, which are computed where the objective needs them."""
    cache = None
    if not METHODS[config.objective.name].sees_pixels:
        cache = open_latents(pack, autoencoder, flips=config.data.horizontal_flip, ranks=ranks, device=device)
    objective = LatentObjective(built.objective, autoencoder, autoencoder.config.latent_shape(pack.image_size), cache)
    return replace(built, objective=objective)


def open_autoencoder(
    config: TrainConfig, device: torch.device | str = "cpu", *, run: Run | None = None
) -> Autoencoder | None:
    """The autoencoder of a complete config; None where it has none.

    Raises ArtifactError where it is absent or damaged, or is not the one that `run` was trained with.
    """
    place, shape = config.data.autoencoder, config.data.latent_shape
    if place is None:
        return None
    autoencoder = load_autoencoder(place, device)
    known = None if run is None else run.manifest().inputs.get("autoencoder", {}).get("digest")
    size = config.data.image_size
    other = run is not None and known != autoencoder.digest
    if other or (size is not None and shape != autoencoder.config.latent_shape(size)):
        source = "the config" if run is None else str(run.path)
        raise ArtifactError(f"autoencoder {place}: is not the one of {source}; put its files back there")
    return autoencoder
