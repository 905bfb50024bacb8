"""The pixels themselves as encoders: whole images (the vanilla drifting loss), patches of a pyramid, or its details."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from driftkit.encoders.encoder_config import EncoderCard, EncoderConfig, Resize
from driftkit.encoders.frozen_encoder import EncoderKind, FrozenEncoder, require_own_weights
from driftkit.encoders.lineage import PIXEL, PIXELS
from driftkit.errors import UsageError
from driftkit.protocols import FeatureMap

FEATURE_SET = "locations"
PYRAMID, DETAILS = "pixel-pyramid", "pixel-details"
PATCH, STRIDE = 4, 2  # of a pyramid's levels, in pixels


class _Pixels(FrozenEncoder):
    """An encoder without weights."""

    title: str

    def __init__(self, *, input_size: int, resize_mode: Resize = "bicubic"):
        super().__init__(self.title, input_size=input_size, feature_set=FEATURE_SET, resize_mode=resize_mode)
        self.lineage = PIXELS
        self.freeze()


class PixelEncoder(_Pixels):
    """The image itself as one vector of 3 * H * W channels."""

    title = PIXEL

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        return [FeatureMap("pixels", self._resized(images).flatten(1)[:, :, None, None])]


class PixelPyramid(_Pixels):
    """Overlapping patches of 4x4 pixels of the image, of its half, of its quarter, and so on down to one patch.

    Small levels know colours and layout, the first one knows edges and noise, which deep features overlook.

    Source: the pyramid of patches whose distributions arXiv 1710.10196, Section 5, compares. Differs: levels are means
    of pixels, not differences of levels, and patches have 4x4 pixels instead of 7x7.
    """

    title = PYRAMID

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        level, found = self._resized(images).float(), []
        while (side := level.shape[-1]) >= PATCH:
            found.append(FeatureMap(f"side{side}", _patches(level)))
            level = F.avg_pool2d(level, 2)
        return found


class PixelDetails(_Pixels):
    """Overlapping patches of 4x4 pixels of what means over 2x2 pixels take away, of the image and of its half.

    Neighbouring pixels of photographs are nearly equal, so that a pattern of single pixels is small next to colours and
    shapes in any other features, and a generator keeps it. Here it is large.

    Source: the differences of levels of arXiv 1710.10196, Section 5. Differs: a level is a mean of pixels that is
    repeated, not smoothed; patches have 4x4 pixels instead of 7x7; two levels.
    """

    title = DETAILS

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        level, found = self._resized(images).float(), []
        for _ in range(2):
            side = level.shape[-1]
            if side < PATCH:
                break
            half = F.avg_pool2d(level, 2)
            found.append(FeatureMap(f"details{side}", _patches(level - F.interpolate(half, size=(side, side)))))
            level = half
        return found


def _patches(level: torch.Tensor) -> torch.Tensor:
    """[N, 3, H, H] -> [N, 48, rows, rows], channels within patches as `unfold` orders them."""
    rows = (level.shape[-1] - PATCH) // STRIDE + 1
    patches: torch.Tensor = F.unfold(level, PATCH, stride=STRIDE).unflatten(2, (rows, rows))  # type: ignore[no-untyped-call]
    return patches


def _kind(name: str, maps: tuple[str, ...], encoder: Callable[..., FrozenEncoder], trained_by: str) -> EncoderKind:
    def load(config: EncoderConfig, image_size: int, device: torch.device) -> FrozenEncoder:
        require_own_weights(config, "has no weights")
        if config.taps:
            raise UsageError(f"encoder {name} has no layers: leave out `taps`")
        if config.map_norm not in (None, "none"):
            raise UsageError(
                f"`map_norm` {config.map_norm}: encoder {name} has no channels to normalise over; expected none"
            )
        return encoder(input_size=config.input_size or image_size, resize_mode=config.resize).to(device)

    card = EncoderCard(name=name, trained_by=trained_by, supervised=False, maps=maps, feature_set=FEATURE_SET)
    return EncoderKind(
        accepts=lambda text: text == name,
        load=load,
        names=lambda: (name,),
        describe=lambda _: card,
        licence=lambda _: "none: pixels have no weights",
    )


PIXEL_KIND = _kind(PIXEL, ("pixels",), PixelEncoder, "nothing: the image itself")
DETAILS_KIND = _kind(DETAILS, ("details32", "details16"), PixelDetails, "nothing: differences of neighbouring pixels")
PYRAMID_KIND = _kind(PYRAMID, ("side32", "side16", "side8", "side4"), PixelPyramid, "nothing: patches at all scales")
