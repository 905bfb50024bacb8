"""What every encoder is (`FrozenEncoder`) and what the registry knows of a kind of encoders (`EncoderKind`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from driftkit.encoders.encoder_config import EncoderCard, EncoderConfig, MapNorm, Resize
from driftkit.encoders.lineage import Lineage
from driftkit.encoders.resizing import resize
from driftkit.encoders.weights import PublishedFile
from driftkit.errors import UsageError
from driftkit.models.blocks import PointwiseConv2d
from driftkit.protocols import FeatureMap
from driftkit.runtime.device import fastest_layout

LAYER_NORM_EPSILON = 1e-3  # on the standard deviation
SMALLEST_VARIANCE = 1e-12  # below which the standard deviation has no gradient


class FrozenEncoder(nn.Module):
    """Base of all encoders: they stay in evaluation mode, and only images get a gradient.

    Attributes:
        name: as the user gave it.
        num_parameters: of the part that is used.
        weights_digest: of the content of the weights; "random" where they were never trained, "none" without weights.
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
        """Everything, besides the weights, that its features follow from."""
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

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Take the layout that is fastest, and keep the weights of products in the type that autocast casts them to.

        Under autocast to `dtype` on a device of that type, under which alone the encoder works from now on, features
        are the same numbers, but for rounding where norms are folded. Other norms and parameters stay float32, and so
        do layers that compute with their weights before the product. Digests and numbers of parameters are of the
        original weights: take them first.
        """
        self.to(memory_format=fastest_layout(device, dtype))  # type: ignore[call-overload]
        for module in self.modules():
            if type(module) in self._products():
                module.to(dtype)

    def _products(self) -> tuple[type[nn.Module], ...]:
        """Layers that autocast runs in its own type, weights included."""
        return nn.Conv2d, nn.Linear, PointwiseConv2d

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        return resize(images, self.input_size, self.resize_mode)


@dataclass(frozen=True)
class EncoderKind:
    """One kind of encoders; a new kind is one file and one row of ENCODERS."""

    accepts: Callable[[str], bool]  # whether a name is of this kind
    # (config, side in pixels of the images to come, device) -> the encoder; raises as `load_encoder`
    load: Callable[[EncoderConfig, int, torch.device], FrozenEncoder]
    pattern: str = ""  # how its names look, for messages; empty where `names` lists them all
    names: Callable[[], Sequence[str]] = lambda: ()  # its names that the table lists
    # name -> its card; None where only loading it shows
    describe: Callable[[str], EncoderCard | None] = lambda name: None
    licence: Callable[[str], str] = lambda name: "unknown"  # name -> licence of its weights
    # name -> the file that its weights are published in; None where it has none or brings its own
    published: Callable[[str], PublishedFile | None] = lambda name: None
    fetch: Callable[[str], object] = lambda name: None  # have the published weights in the cache
    # name -> side in pixels of the images it was trained on; None where it takes any
    image_size: Callable[[str], int | None] = lambda name: None
    is_place: bool = False  # its names say where files lie, so that the content decides and not the name


def require_own_weights(config: EncoderConfig, fact: str) -> None:
    """Refuse `encoder_weights` and `random_weights` for an encoder that has no use for them (UsageError)."""
    if config.encoder_weights is not None or config.random_weights:
        raise UsageError(f"encoder {config.encoder} {fact}: leave out `encoder_weights` and `random_weights`")


def require_taps(encoder: str, taps: Sequence[str], layers: Sequence[str]) -> list[str]:
    """The taps in the order of the layers. Raises UsageError: one is no layer, or is given twice."""
    unknown = [tap for tap in taps if tap not in layers]
    if unknown or len(set(taps)) < len(taps):
        reason = f"{encoder} has no layer {', '.join(unknown)}" if unknown else "a layer is given twice"
        raise UsageError(f"`taps` {','.join(taps)}: {reason}; expected some of {', '.join(layers)}")
    return [name for name in layers if name in taps]


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
