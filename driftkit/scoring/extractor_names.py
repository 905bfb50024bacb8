"""The names of extractors. They stand apart from what they name, so that the shell can offer them without torch."""

from driftkit.config.places import ENCODER_PREFIX
from driftkit.encoders.specs import PACKAGED

PIXELS_NAME = "pixels"
NAMES = ("inception", "dinov2", "clip", *PACKAGED, PIXELS_NAME, f"{ENCODER_PREFIX}RUN", "timm:MODEL")
