"""Settings of rectified flow."""

from typing import Literal

from driftkit.methods.base import MethodConfig

EULER_NFE = HEUN_NFE = 50


class FlowConfig(MethodConfig):
    """The rectified flow objective, which has nothing to set."""

    name: Literal["flow"] = "flow"
