"""Drifting. Open `field.py` first: the field V; then `objective.py`. The names below are loaded when they are used.

`from driftkit.methods.drifting import aggregated_drift, drift_field` is the public call.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from driftkit.methods.drifting.field import AggregatedDrift, aggregated_drift, drift_field
    from driftkit.methods.drifting.loss import DriftLoss, drift_loss
    from driftkit.methods.drifting.sharing import SharedFeatures, share_features

__all__ = [
    "AggregatedDrift",
    "DriftLoss",
    "SharedFeatures",
    "aggregated_drift",
    "drift_field",
    "drift_loss",
    "share_features",
]

_MODULES = {
    "AggregatedDrift": "field",
    "aggregated_drift": "field",
    "drift_field": "field",
    "DriftLoss": "loss",
    "drift_loss": "loss",
    "SharedFeatures": "sharing",
    "share_features": "sharing",
}


def __getattr__(name: str) -> Any:
    """Load a public name; torch stays out of `driftkit --help`, which reads the config beside it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
