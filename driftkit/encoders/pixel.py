"""The pixels themselves as an encoder: the vanilla drifting loss."""

import torch

from driftkit.encoders.encoder_config import EncoderCard, EncoderConfig, Resize
from driftkit.encoders.frozen_encoder import EncoderKind, FrozenEncoder, require_own_weights
from driftkit.encoders.lineage import PIXEL, PIXELS
from driftkit.errors import UsageError
from driftkit.protocols import FeatureMap

FEATURE_SET = "locations"


class PixelEncoder(FrozenEncoder):
    """The image itself as one vector of 3 * H * W channels."""

    def __init__(self, *, input_size: int, resize_mode: Resize = "bicubic"):
        super().__init__(PIXEL, input_size=input_size, feature_set=FEATURE_SET, resize_mode=resize_mode)
        self.lineage = PIXELS
        self.freeze()

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        return [FeatureMap("pixels", self._resized(images).flatten(1)[:, :, None, None])]


def _load(config: EncoderConfig, image_size: int, device: torch.device) -> FrozenEncoder:
    require_own_weights(config, "has no weights")
    if config.taps:
        raise UsageError(f"encoder {PIXEL} has no layers: leave out `taps`")
    if config.map_norm not in (None, "none"):
        raise UsageError(
            f"`map_norm` {config.map_norm}: encoder {PIXEL} has no channels to normalise over; expected none"
        )
    return PixelEncoder(input_size=config.input_size or image_size, resize_mode=config.resize).to(device)


PIXEL_KIND = EncoderKind(
    accepts=lambda name: name == PIXEL,
    load=_load,
    names=lambda: (PIXEL,),
    describe=lambda name: EncoderCard(
        name=PIXEL,
        trained_by="nothing: the image itself",
        supervised=False,
        maps=("pixels",),
        feature_set=FEATURE_SET,
    ),
    licence=lambda name: "none: pixels have no weights",
)
