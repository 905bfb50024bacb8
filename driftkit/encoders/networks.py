"""The encoders themselves: pixels, any timm model with taps, and the encoder half of a MAE trained here."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from driftkit.encoders.specs import NORMALISATIONS, PIXEL, EncoderSpec
from driftkit.errors import UsageError
from driftkit.nn.mae_resnet import MAEResNet
from driftkit.protocols import FeatureMap


class FrozenEncoder(nn.Module):
    """What all encoders share: they stay in evaluation mode, and only images get a gradient.

    Attributes:
        name: as given on the command line.
        input_size: side in pixels to which images are resized.
        feature_set: name of the default feature set.
        num_parameters: of the part that is used.
        weights_digest: content of the weights, "random" where they were never trained.
        random_weights: whether they were never trained.
    """

    def __init__(self, name: str, *, input_size: int, feature_set: str):
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.feature_set = feature_set
        self.num_parameters = 0
        self.weights_digest = "none"
        self.random_weights = False

    def freeze(self) -> None:
        """Call once the weights are in."""
        self.requires_grad_(False)
        self.num_parameters = sum(p.numel() for p in self.parameters())
        super().train(False)

    def describe(self) -> dict[str, Any]:
        """What, beside the weights, its features follow from."""
        return {"kind": type(self).__name__, "input_size": self.input_size}

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in evaluation mode whatever the model around it does."""
        return self

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        """Feature maps of float images [N, 3, H, W] in [-1, 1]."""
        raise TypeError(f"{type(self).__name__} defines no maps")


class PixelEncoder(FrozenEncoder):
    """The image itself as one vector of 3 * H * W channels."""

    def __init__(self, *, input_size: int):
        super().__init__(PIXEL, input_size=input_size, feature_set="locations")
        self.freeze()

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        return [FeatureMap("pixels", resize(images, self.input_size).flatten(1)[:, :, None, None])]


class TimmEncoder(FrozenEncoder):
    """A timm model read at its taps. Layers behind the last tap are dropped.

    Args:
        spec: row of the table.
        network: the timm model with its weights, without classifier.
        input_size: side in pixels to which images are resized.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: EncoderSpec, network: Any, *, input_size: int):
        super().__init__(spec.name, input_size=input_size, feature_set=spec.feature_set)
        self.spec = spec
        self.network: Any = network  # a timm model: has pretrained_cfg and forward_intermediates
        cfg = network.pretrained_cfg
        mean, std = NORMALISATIONS.get(spec.normalisation, (cfg["mean"], cfg["std"]))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._options: dict[str, Any] = {"norm": True} if spec.reading != "maps" else {}
        if spec.reading == "class token":
            self._options["return_prefix_tokens"] = True
        network.prune_intermediate_layers([index for _, index in spec.taps], prune_norm=spec.reading == "maps")

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "model": self.spec.model,
            "taps": [f"{name}={index}" for name, index in self.spec.taps],
            "reading": self.spec.reading,
        }

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        inputs = (resize(images, self.input_size) / 2 + 0.5 - self.mean) / self.std
        outputs = self.network.forward_intermediates(
            inputs,
            indices=[index for _, index in self.spec.taps],
            intermediates_only=True,
            output_fmt="NCHW",
            **self._options,
        )
        if self.spec.reading == "class token":  # (map, prefix tokens [N, K, C]), the first of which is the class token
            outputs = [prefix[:, 0, :, None, None] for _, prefix in outputs]
        return [FeatureMap(name, values) for (name, _), values in zip(self.spec.taps, outputs, strict=True)]


class MAEEncoder(FrozenEncoder):
    """The four scales of a masked autoencoder's encoder, at the resolution it was trained at."""

    def __init__(self, name: str, network: MAEResNet, *, input_size: int):
        super().__init__(name, input_size=input_size, feature_set="paper")
        self.stem, self.stages = network.stem, network.stages

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        h = self.stem(resize(images, self.input_size))
        maps = []
        for number, stage in enumerate(self.stages, start=1):
            h = stage(h)
            maps.append(FeatureMap(f"stage{number}", h))
        return maps


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic to size x size, antialiased when shrinking; images already of that size are returned as they are."""
    if images.shape[-2:] == (size, size):
        return images
    shrinking = size < max(images.shape[-2:])
    return F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=shrinking)


def check_input_size(spec: EncoderSpec, input_size: int) -> None:
    """Raise UsageError, naming the nearest sizes that fit, unless the patch divides the input size."""
    if input_size >= spec.patch and input_size % spec.patch == 0:
        return
    below = max(spec.patch, input_size // spec.patch * spec.patch)
    above = (input_size // spec.patch + 1) * spec.patch
    nearest = " or ".join(str(s) for s in sorted({below, above}))
    raise UsageError(f"--input-size {input_size}: {spec.name} needs a multiple of {spec.patch}, for example {nearest}")
