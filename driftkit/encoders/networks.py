"""The encoders themselves: pixels, any timm model with taps, and the encoder half of a MAE trained here."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from driftkit.encoders.lineage import PIXELS, Lineage
from driftkit.encoders.specs import NORMALISATIONS, PIXEL, EncoderSpec
from driftkit.errors import UsageError
from driftkit.nn.blocks import PointwiseConv2d
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
        lineage: what its features come from.
    """

    lineage: Lineage

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

    def store_weights_for(self, dtype: torch.dtype) -> None:
        """Keep the weights and biases of products in the type that autocast gives them at every forward otherwise.

        Features under autocast are the same numbers. Norms and other parameters stay float32, and so do layers that
        compute with their weights before the product. Digests are of the original weights: take them first.

        Args:
            dtype: of autocast, under which alone the encoder works from now on; float32 changes nothing.
        """
        for module in self.modules():
            if type(module) in self._products():
                module.to(dtype)

    def _products(self) -> tuple[type[nn.Module], ...]:
        """Layers that autocast runs in its own type, weights included."""
        return nn.Conv2d, nn.Linear, PointwiseConv2d


class PixelEncoder(FrozenEncoder):
    """The image itself as one vector of 3 * H * W channels."""

    def __init__(self, *, input_size: int):
        super().__init__(PIXEL, input_size=input_size, feature_set="locations")
        self.lineage = PIXELS
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
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        inputs = (resize(images, self.input_size) / 2 + 0.5 - self.mean) / self.std
        outputs = self._read(inputs)
        return [FeatureMap(name, values) for (name, _), values in zip(self.spec.taps, outputs, strict=True)]

    def _read(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        outputs = self.network.forward_intermediates(
            inputs,
            indices=[index for _, index in self.spec.taps],
            intermediates_only=True,
            output_fmt="NCHW",
            **self._options,
        )
        if self.spec.reading == "class token":  # (map, prefix tokens [N, K, C]), the first of which is the class token
            return [prefix[:, 0, :, None, None] for _, prefix in outputs]
        return list(outputs)

    def _products(self) -> tuple[type[nn.Module], ...]:
        from timm.layers import Conv2dSame, Linear

        return *super()._products(), Conv2dSame, Linear


class MAEEncoder(FrozenEncoder):
    """Scales of a masked autoencoder's encoder, at the resolution it was trained at. Those behind the last are dropped.

    Args:
        name: as given on the command line.
        network: of which stem and stages are used.
        input_size: side in pixels to which images are resized.
        taps: which scales, as stage1 to stage4; None: all.

    Raises:
        UsageError: a tap that is not there.
    """

    def __init__(self, name: str, network: MAEResNet, *, input_size: int, taps: Sequence[str] | None = None):
        super().__init__(name, input_size=input_size, feature_set="paper")
        known = [f"stage{number}" for number in range(1, len(network.stages) + 1)]
        self.taps = require_taps(name, taps or known, known)
        self.stem, self.stages = network.stem, network.stages[: known.index(self.taps[-1]) + 1]

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "taps": self.taps}

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        outputs = self._read(resize(images, self.input_size))
        return [FeatureMap(name, values) for name, values in zip(self.taps, outputs, strict=True)]

    def _read(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        h, outputs = self.stem(inputs), []
        for number, stage in enumerate(self.stages, start=1):
            h = stage(h)
            if f"stage{number}" in self.taps:
                outputs.append(h)
        return outputs


def require_taps(encoder: str, taps: Sequence[str], known: Sequence[str]) -> list[str]:
    """The taps in the order of the layers.

    Raises:
        UsageError: one is not known, or stands there twice.
    """
    unknown = [tap for tap in taps if tap not in known]
    if unknown or len(set(taps)) < len(taps):
        what = f"{encoder} has no layer {', '.join(unknown)}" if unknown else "a layer is named twice"
        raise UsageError(f"--taps {','.join(taps)}: {what}; expected some of {', '.join(known)}")
    return [name for name in known if name in taps]


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
