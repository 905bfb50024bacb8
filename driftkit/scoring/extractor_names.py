"""The names of extractors. They stand apart from what they name, so that the shell can offer them without torch."""

from driftkit.encoders.specs import PACKAGED

ENCODER_PREFIX = "encoder:"
PIXELS_NAME = "pixels"
NAMES = ("inception", "dinov2", "clip", *PACKAGED, PIXELS_NAME, "encoder:RUN", "timm:MODEL")
