"""The method of arXiv 2602.04770. Start with `field` (V, Algorithm 2 and Appendix A.6), then `loss` and `objective`.

README.md maps equations to code. Networks are in `models`, features in `encoders`. The public names below are loaded
when they are used, so that `config`, which help texts are made from, comes without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from driftkit.methods.drifting.field import AggregatedDrift, aggregated_drift, drift_field
    from driftkit.methods.drifting.loss import drift_loss
    from driftkit.methods.drifting.sharing import SharedFeatures, share_features

__all__ = ["AggregatedDrift", "SharedFeatures", "aggregated_drift", "drift_field", "drift_loss", "share_features"]

_MODULES = {
    "AggregatedDrift": "field",
    "aggregated_drift": "field",
    "drift_field": "field",
    "drift_loss": "loss",
    "SharedFeatures": "sharing",
    "share_features": "sharing",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
