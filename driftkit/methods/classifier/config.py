"""Settings of the classifier."""

from typing import Literal

from pydantic import Field

from driftkit.methods.base import MethodConfig


class ClassifierConfig(MethodConfig):
    """The classifier objective."""

    name: Literal["classifier"] = "classifier"
    min_crop: float = Field(
        0.5, gt=0, le=1, description="smallest share of the area that a random resized crop keeps; 1: no cropping"
    )
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="share of the target spread over all classes")
