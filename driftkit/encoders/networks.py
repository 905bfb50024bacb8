"""The encoders themselves: pixels, any timm model with taps, and the encoder half of a MAE trained here."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from driftkit.encoders.features import WITH_BLOCKS
from driftkit.encoders.lineage import PIXELS, Lineage
from driftkit.encoders.resizing import Resize, resize
from driftkit.encoders.specs import NORMALISATIONS, PIXEL, EncoderSpec, MapNorm
from driftkit.errors import UsageError
from driftkit.models.blocks import PointwiseConv2d
from driftkit.models.mae_resnet import MAEResNet
from driftkit.protocols import FeatureMap

LAYER_NORM_EPSILON = 1e-3  # on the standard deviation
SMALLEST_VARIANCE = 1e-12  # below which the standard deviation has no gradient


class FrozenEncoder(nn.Module):
    """What all encoders share: they stay in evaluation mode, and only images get a gradient.

    Attributes:
        name: as given on the command line.
        input_size: side in pixels to which images are resized.
        feature_set: name of the default feature set.
        map_norm: what is done to its maps.
        resize_mode: how images are resized.
        num_parameters: of the part that is used.
        weights_digest: content of the weights, "random" where they were never trained.
        random_weights: whether they were never trained.
        lineage: what its features come from.
    """

    lineage: Lineage

    def __init__(
        self,
        name: str,
        *,
        input_size: int,
        feature_set: str,
        map_norm: MapNorm = "none",
        resize_mode: Resize = "bicubic",
    ):
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.feature_set = feature_set
        self.map_norm = map_norm
        self.resize_mode = resize_mode
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
        return {
            "kind": type(self).__name__,
            "input_size": self.input_size,
            "resize": self.resize_mode,
            "map_norm": self.map_norm,
        }

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

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        return resize(images, self.input_size, self.resize_mode)


class PixelEncoder(FrozenEncoder):
    """The image itself as one vector of 3 * H * W channels."""

    def __init__(self, *, input_size: int, resize_mode: Resize = "bicubic"):
        super().__init__(PIXEL, input_size=input_size, feature_set="locations", resize_mode=resize_mode)
        self.lineage = PIXELS
        self.freeze()

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        return [FeatureMap("pixels", self._resized(images).flatten(1)[:, :, None, None])]


class TimmEncoder(FrozenEncoder):
    """A timm model read at its taps. Layers behind the last tap are dropped.

    Args:
        spec: row of the table.
        network: the timm model with its weights, without classifier.
        input_size: side in pixels to which images are resized.
        resize_mode: how.

    Raises:
        UsageError: the row wants the final norm, and the network has none for these taps.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: EncoderSpec, network: Any, *, input_size: int, resize_mode: Resize = "bicubic"):
        super().__init__(
            spec.name,
            input_size=input_size,
            feature_set=spec.feature_set,
            map_norm=spec.map_norm,
            resize_mode=resize_mode,
        )
        if spec.map_norm == "final":
            _require_final_norm(spec, network)
        self.spec = spec
        self.network: Any = network  # a timm model: has pretrained_cfg and forward_intermediates
        cfg = network.pretrained_cfg
        mean, std = NORMALISATIONS.get(spec.normalisation, (cfg["mean"], cfg["std"]))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._options: dict[str, Any] = {"norm": True} if spec.map_norm == "final" else {}
        if spec.reading == "class token":
            self._options["return_prefix_tokens"] = True
        network.prune_intermediate_layers([index for _, index in spec.taps], prune_norm=spec.map_norm != "final")

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
        outputs = self._read(images)
        return [FeatureMap(name, values) for (name, _), values in zip(self.spec.taps, outputs, strict=True)]

    def _read(self, images: torch.Tensor) -> list[torch.Tensor]:
        inputs = (self._resized(images) / 2 + 0.5 - self.mean) / self.std
        outputs = self.network.forward_intermediates(
            inputs,
            indices=[index for _, index in self.spec.taps],
            intermediates_only=True,
            output_fmt="NCHW",
            **self._options,
        )
        if self.spec.reading == "class token":  # (map, prefix tokens [N, K, C]), the first of which is the class token
            outputs = [prefix[:, 0, :, None, None] for _, prefix in outputs]
        return [layer_normalised(values) if self.map_norm == "layer" else values for values in outputs]

    def _products(self) -> tuple[type[nn.Module], ...]:
        from timm.layers import Conv2dSame, Linear

        return *super()._products(), Conv2dSame, Linear


class MAEEncoder(FrozenEncoder):
    """Layers of a masked autoencoder's encoder, at the resolution it was trained at. Those behind the last are dropped.

    Args:
        name: as given on the command line.
        network: of which stem and stages are used.
        input_size: side in pixels to which images are resized.
        taps: which layers: stem, stage1.block1, ..., stage1, ..., stage4; None: the four stages, or for the feature set
            "paper-full" the stem, every second block and every stage.
        map_norm: "none" or "layer".
        resize_mode: how images are resized.
        feature_set: for which the default taps are taken; None: "paper".

    Raises:
        UsageError: a tap that is not there, or map_norm "final".

    Source: arXiv 2602.04770, Appendix A.5, and the authors' release, whose 12 maps the taps of "paper-full" are for
    stages of 3, 4, 6 and 3 blocks. Differs: the release normalises each stage's output by one more trained GroupNorm.
    Without it the last block of a stage of evenly many blocks and the stage are the same map, which counts twice.
    """

    def __init__(
        self,
        name: str,
        network: MAEResNet,
        *,
        input_size: int,
        taps: Sequence[str] | None = None,
        map_norm: MapNorm = "none",
        resize_mode: Resize = "bicubic",
        feature_set: str | None = None,
    ):
        super().__init__(name, input_size=input_size, feature_set="paper", map_norm=map_norm, resize_mode=resize_mode)
        if map_norm == "final":
            raise UsageError(f"--map-norm final: {name} has no final norm; expected none or layer")
        stages = [list(stage.children()) for stage in network.stages]
        depths = [len(stage) for stage in stages]
        known = ["stem"]
        for stage, depth in enumerate(depths, start=1):
            known += [*(f"stage{stage}.block{block}" for block in range(1, depth + 1)), f"stage{stage}"]
        self.taps = require_taps(name, taps or _default_taps(depths, feature_set), known)
        used = known[: known.index(self.taps[-1]) + 1]
        self.stem = network.stem
        self.stages = nn.ModuleList(
            nn.ModuleList(block for number, block in enumerate(stage, start=1) if f"stage{s}.block{number}" in used)
            for s, stage in enumerate(stages, start=1)
        )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "taps": self.taps}

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        return [FeatureMap(name, values) for name, values in zip(self.taps, self._read(images), strict=True)]

    def _read(self, images: torch.Tensor) -> list[torch.Tensor]:
        outputs = [values for name, values in self._layers(self._resized(images)) if name in self.taps]
        return [layer_normalised(values) if self.map_norm == "layer" else values for values in outputs]

    def _layers(self, h: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        h = self.stem(h)
        yield "stem", h
        for number, stage in enumerate(self.stages, start=1):
            for place, block in enumerate(stage.children(), start=1):
                h = block(h)
                yield f"stage{number}.block{place}", h
            yield f"stage{number}", h


def _default_taps(depths: Sequence[int], feature_set: str | None) -> list[str]:
    if feature_set not in WITH_BLOCKS:
        return [f"stage{stage}" for stage in range(1, len(depths) + 1)]
    blocks = [f"stage{s}.block{block}" for s, depth in enumerate(depths, start=1) for block in range(2, depth + 1, 2)]
    return ["stem", *blocks, *_default_taps(depths, None)]


def layer_normalised(values: torch.Tensor) -> torch.Tensor:
    """Every position of a map less its mean and over its standard deviation, over the channels, in float32.

    Args:
        values: [N, C, H, W].

    Returns:
        float32 [N, C, H, W].

    Source: the authors' release of arXiv 2602.04770, features of ConvNeXt V2: no affine, 1e-3 added to the standard
    deviation. Differs: a position whose variance is below 1e-12 counts as of that variance, which bounds the gradient.
    """
    values = values.float()
    centred = values - values.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).clamp(min=SMALLEST_VARIANCE).sqrt()
    return centred / (deviation + LAYER_NORM_EPSILON)


def _require_final_norm(spec: EncoderSpec, network: Any) -> None:
    norm = getattr(network, "norm", None)
    width = getattr(norm, "normalized_shape", (None,))[-1]
    if width is None:
        raise UsageError(f"--map-norm final: {spec.name} has no final norm; expected none or layer")
    info = [dict(entry) for entry in getattr(network.feature_info, "info", network.feature_info)]
    for name, index in spec.taps:
        channels = info[index]["num_chs"]
        if channels != width:
            raise UsageError(
                f"--map-norm final: the final norm of {spec.name} takes {width} channels, {name} has {channels}; "
                "expected none or layer, or other --taps"
            )


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


def check_input_size(spec: EncoderSpec, input_size: int) -> None:
    """Raise UsageError, naming the nearest sizes that fit, unless the patch divides the input size."""
    if input_size >= spec.patch and input_size % spec.patch == 0:
        return
    below = max(spec.patch, input_size // spec.patch * spec.patch)
    above = (input_size // spec.patch + 1) * spec.patch
    nearest = " or ".join(str(s) for s in sorted({below, above}))
    raise UsageError(f"--input-size {input_size}: {spec.name} needs a multiple of {spec.patch}, for example {nearest}")
